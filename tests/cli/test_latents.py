"""Every command on runs whose latent is not bits, or whose tokens share a Z."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_probe_latent import OF_BITS, check_that_the_documentation_lists_numbers_without_an_interval

pytestmark = pytest.mark.usefixtures("few_epochs", "no_charts")
QUICK = ("--sequences", 80, "--groups", 24, "--count", 4, "--device", "cpu")
GAUSSIAN = ["--set", "latent.kind=gaussian", "--set", "latent.options={dims=3}"]
SETTINGS = {
    "gaussian": GAUSSIAN,
    "gaussian-row": [*GAUSSIAN[:2], "--set", "latent.options={dims=3, inject='memory'}", "--set", "latent.every='sequence'"],
    "bits-row": ["--set", "latent.every='sequence'"],
    "bits-5": ["--set", "latent.every=5"],
    "bits-plan": ["--set", "latent.kind=plan", "--set", "latent.options={plan_bits=3}"],
}
ZS = {"gaussian": 13, "gaussian-row": 1, "bits-row": 1, "bits-5": 3, "bits-plan": 13}
BITS = {"bits-row": 4, "bits-5": 4, "bits-plan": 7}
HEADS = {
    "gaussian": "3 normal numbers of Z for each token, κ = 1/2 bits/token",
    "gaussian-row": "3 normal numbers of Z for a sequence",
    "bits-row": "4 bits of Z for a sequence",
    "bits-5": "4 bits of Z for every 5 tokens",
    "bits-plan": "4 bits of Z for each token and 3 for the row",
}


@pytest.fixture(scope="session")
def runs(workshop: Path, run_cli: Callable) -> dict[str, Path]:
    """The runs by name, of 20 steps: rows of 13 positions."""
    made = {}
    for name, settings in SETTINGS.items():
        made[name] = workshop / "latents" / name
        words = ["-o", made[name], "--device", "cpu", "-q", "--set", "train.steps=20", "--set", "eval.every=0", *settings]
        assert run_cli("train", workshop / "free.toml", *words).code == 0
    return made


@pytest.mark.parametrize("name", SETTINGS)
def test_probe_latent_has_every_measure(run_cli: Callable, runs: dict[str, Path], name: str, tmp_path: Path) -> None:
    page = tmp_path / "probe.html"
    done = run_cli("probe-latent", runs[name], *QUICK, "--json", "--report", page)
    assert done.code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    rate, zs, bits = found["rate"], ZS[name], name.startswith("bits")
    assert (found["bits"], found["dims"]) == ((BITS[name], None) if bits else (None, 3))
    assert found["every"] == {"gaussian": 1, "bits-5": 5, "bits-plan": 1}.get(name, "sequence")
    assert rate["positions"] == list(range(0, 13, 5 if name == "bits-5" else 1))[:zs] and len(rate["by_position"]) == zs
    of_row = rate["row_kl"]["value"] if name == "bits-plan" else 0
    assert rate["row_bits"] == (3 if name == "bits-plan" else 0) and (rate["row_kl"] is None) == (name != "bits-plan")
    assert sum(one["value"] for one in rate["by_position"]) + of_row == pytest.approx(rate["kl"]["value"])
    if bits:
        assert sum(one["value"] for one in rate["by_bit"][BITS[name] - rate["row_bits"] :]) == pytest.approx(of_row)
    if name == "gaussian":
        check_that_the_documentation_lists_numbers_without_an_interval(found, OF_BITS)
    own, other = ("by_bit", "by_dim") if bits else ("by_dim", "by_bit")
    assert sum(one["value"] for one in rate[own]) == pytest.approx(rate["kl"]["value"]) and rate[other] is None
    all_bits = 4 * 13 + 3 if name == "bits-plan" else BITS.get(name, 0) * zs
    assert (rate["all_bits"], rate["all_dims"]) == ((all_bits, None) if bits else (None, 3 * zs))
    for key in ("active_bits", "imbalance"):
        assert (rate[key] is not None) is bits
    for key in ("active_dims", "active_units"):
        assert (rate[key] is None) is bits
    assert 0 <= rate["information_low"]["value"] <= rate["information_high"]["value"] <= rate["kl"]["value"] + 1e-9
    assert {one["factor"] for one in found["latent_swap"]} == {"position", "noise"}
    assert {one["source"] for one in found["decoding"]} == {"Z", "hidden", "sequence"}
    assert found["intervention"]["factors"][1]["groups"] == 24
    html = re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))
    assert (
        HEADS[name] in html and ("of tokens have a KL above κ" in html) is (zs == 13) and ("of Zs have a KL above κ" in html) is (zs < 13)
    )
    assert ("KL by position" in html) is (zs > 1) and "None" not in html
    assert ("active bits" in html) is ("seen in single bits" in html) is bits and ("active dimensions" in html) is not bits


def test_what_a_terminal_shows(run_cli: Callable, runs: dict[str, Path]) -> None:
    text = run_cli("probe-latent", runs["gaussian-row"], *QUICK).stdout
    assert HEADS["gaussian-row"] in text and "None" not in text and "KL by position" not in text and "KL by dimension of Z" in text
    shown = run_cli("show", runs["gaussian-row"]).stdout
    assert "latent.kind gaussian, latent.options.dims 3, latent.options.inject memory" in shown and "latent.bits" not in shown


def test_a_sweep_over_kinds(run_cli: Callable, runs: dict[str, Path]) -> None:
    done = run_cli("probe-latent", runs["gaussian-row"], runs["bits-row"], *QUICK, "--sweep", "--json")
    assert done.code == 0 and sorted(str(one["dims"]) for one in json.loads(done.stdout)["runs"]) == ["3", "None"], done.stderr


@pytest.mark.parametrize("name", SETTINGS)
def test_the_other_commands(run_cli: Callable, refused: Callable, runs: dict[str, Path], free_run: Path, name: str, tmp_path: Path) -> None:
    run, few = runs[name], ("--sequences", 24, "--device", "cpu")
    found = json.loads(run_cli("evaluate", run, "--task", "likelihood", "--samples", 4, *few, "--json").stdout)
    assert found["kl"]["nats_per_token"] + found["ce_posterior"]["nats_per_token"] == pytest.approx(found["elbo"]["nats_per_token"])
    compared = run_cli("compare", run, free_run, *few, "--count", 1, "--json")
    assert compared.code == 0 and json.loads(compared.stdout)["metrics"]["nll"]["difference"] is not None, compared.stderr
    samples = tmp_path / "z.jsonl"
    samples.write_text(run_cli("sample", run, "--prompt", "A>", "--count", 2, "--json").stdout, encoding="utf-8")
    written = [json.loads(line)["text"] for line in samples.read_text(encoding="utf-8").splitlines()]
    again = run_cli("sample", run, "--prompt", "A>", "--count", 2, "--z", samples, "--json")
    assert [json.loads(line)["text"] for line in again.stdout.splitlines()] == written and len(written) == 2
    assert run_cli("sample", run, "--prompt", "A>", "--z-from", "A>____AAA_____").code == 0
    assert run_cli("show", run).code == 0
    if name == "gaussian":
        assert json.loads(run_cli("evaluate", run, "--task", "persistence", *few, "--json").stdout)["agreement"] is None
    else:
        assert "several share one" in (line := refused("evaluate", run, "--task", "persistence")) and "freetf probe-latent" in line
    codes = ("find-codes", run, "-o", tmp_path / "codes", "--label", "position", "--sequences", 300, "--count", 20)
    if name.startswith("bits"):
        assert json.loads(run_cli(*codes, "--json").stdout)["all_bits"] == (4 * 13 + 3 if name == "bits-plan" else BITS[name] * ZS[name])
        (first, *_) = sorted((tmp_path / "codes").glob("*.jsonl"))
        for line in first.read_text(encoding="utf-8").splitlines():
            codes_T = json.loads(line)["z"]
            shared = {"bits-row": [codes_T], "bits-5": [codes_T[:5], codes_T[5:10]], "bits-plan": [[code >> 4 for code in codes_T]]}
            assert all(len(set(part)) == 1 for part in shared[name])
    else:
        line = refused(*codes)
        assert "looks for bits of Z, and this run's latent has none" in line and "--z-from" in line
        assert not (tmp_path / "codes").exists()
