"""The Python API is imported lazily, and agrees with the command line, the model, and the sum over all Zs."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import freetf_cli
from freetf_cli import Run, load, log_likelihood, posterior, prior, sample
from freetf_cli.errors import InputError
from tests.exchange.conftest import make_run

LN2 = math.log(2)


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two bits per token: all Zs of three positions can be enumerated."""
    latent = {"kappa": 0.5, "bits": 2, "table_std": 6.0}
    return load(make_run(tmp_path_factory.mktemp("api") / "free", latent=latent), device="cpu")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load(make_run(tmp_path_factory.mktemp("api") / "baseline"), device="cpu")


def test_the_package_imports_no_torch_until_a_name_is_used(environment: dict[str, str]) -> None:
    code = "import sys, freetf_cli; before = 'torch' in sys.modules; freetf_cli.load; print(before, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=100)
    assert done.stdout == "False True\n", done.stderr
    with pytest.raises(AttributeError, match="nothing"):
        freetf_cli.nothing  # noqa: B018


def test_ten_names_or_fewer_and_each_is_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "python.md").read_text(encoding="utf-8")
    assert len(freetf_cli.__all__) <= 10
    assert [name for name in freetf_cli.__all__ if f"`{name}" not in page or not getattr(freetf_cli, name).__doc__] == []
    assert set(freetf_cli.__all__) <= set(dir(freetf_cli))


def test_samples_are_those_of_the_command(free: Run, run_cli: Callable[..., Any]) -> None:
    words = ("--prompt", "ab", "--count", 2, "--groups", 2, "--z", "shared", "--max-tokens", 9, "--seed", 3, "--json", "--device", "cpu")
    lines = run_cli("sample", free.folder, *words).stdout.splitlines()
    found = sample(free, "ab", count=2, groups=2, z="shared", max_tokens=9, seed=3)
    assert [(one.text, one.z) for one in found] == [(line["text"], line["z"]) for line in map(json.loads, lines)]
    assert len({tuple(one.z or ()) for one in found}) == 2


def test_given_codes_decide_a_greedy_sample(free: Run) -> None:
    z = prior(free, 20, count=2, seed=1)
    assert z.shape == (2, 20) and z.min() >= 0 and z.max() == 3
    first, second = sample(free, "ab", count=2, z=z, temperature=0, max_tokens=12)
    (again,) = sample(free, ["ab"], z=[z[1].tolist()], temperature=0, max_tokens=12)
    assert first.text != second.text == again.text
    assert second.z == z[1, : len(second.z or ())].tolist()


def test_log_likelihood_of_a_baseline_and_of_a_given_z(free: Run, baseline: Run) -> None:
    tokens = torch.tensor([[256, *b"abcd", 256]])
    z = torch.tensor([[1, 2, 3, 0, 1]])
    for run, codes in ((baseline, None), (free, z)):
        with torch.inference_mode():
            logits = run.model(tokens[:, :-1], codes).logits
        nats = -F.cross_entropy(logits[0], tokens[0, 1:], reduction="none")
        given = {} if codes is None else {"z": codes[0].tolist()}
        ended = log_likelihood(run, "cd", prompt="ab", end=True, **given)
        assert (ended.nats, ended.standard_error, ended.tokens) == (pytest.approx(float(nats[2:].sum()), abs=1e-5), 0.0, 3)
        whole = log_likelihood(run, "abcd", **given)
        assert (whole.nats, whole.tokens) == (pytest.approx(float(nats[:4].sum()), abs=1e-5), 4)
        assert whole.bits == pytest.approx(whole.nats / LN2)


@pytest.mark.parametrize("z", ["posterior", "prior"])
def test_both_estimates_agree_with_the_sum_over_every_z(z: Any, free: Run) -> None:
    every = itertools.product(range(4), repeat=3)  # the separator and two letters are read
    exact = np.logaddexp.reduce([log_likelihood(free, "bc", prompt="a", z=codes).nats for codes in every]) - math.log(4**3)
    found = log_likelihood(free, "bc", prompt="a", z=z, draws=4096)
    assert found.nats == pytest.approx(exact, abs=5 * found.standard_error)
    assert 0 < found.standard_error < 0.1
    assert found == log_likelihood(free, "bc", prompt="a", z=z, draws=4096)
    assert found != log_likelihood(free, "bc", prompt="a", z=z, draws=4096, seed=1)


def test_posterior_is_the_encoders(free: Run) -> None:
    found = posterior(free, "cd", prompt="ab")
    assert found.probabilities.shape == (5, 2) and found.kl.shape == (5,)
    p = found.probabilities
    assert found.kl == pytest.approx((1 + p * np.log2(p) + (1 - p) * np.log2(1 - p)).sum(-1), abs=1e-6)
    drawn = found.draw(20_000, seed=2)
    assert drawn.shape == (20_000, 5)
    assert ((drawn[..., None] >> np.arange(2)) & 1).mean(0) == pytest.approx(p, abs=0.02)
    assert (found.draw(seed=3) == found.draw(seed=3)).all()


def test_mistakes_are_named(free: Run, baseline: Run) -> None:
    refused = {
        "there is no token to predict": lambda: log_likelihood(free, ""),
        "z has 2 codes, and 3 positions are read": lambda: log_likelihood(free, "abc", z=[0, 1]),
        "code 4 is outside 0 … 3": lambda: log_likelihood(free, "abc", z=[4, 0, 0]),
        "a baseline has no Z to give": lambda: sample(baseline, "ab", z=[[0] * 47]),
        "a baseline has no Z, and no posterior": lambda: posterior(baseline, "ab"),
        "a baseline has no Z, and no prior": lambda: prior(baseline, 3),
        "it must be 'independent', 'shared', or a list": lambda: sample(free, "ab", z="other"),  # type: ignore[arg-type]
        "it must be 'posterior', 'prior', or codes": lambda: log_likelihood(baseline, "ab", z="other"),  # type: ignore[arg-type]
        "baseline has no Z to give": lambda: log_likelihood(baseline, "ab", z=[0, 0]),
        "codes of Z = 1: it must be a list": lambda: sample(free, "ab", z=[1] * 47),  # type: ignore[list-item]
        "prompt_z = 'x'": lambda: sample(free, "ab", prompt_z="x"),  # type: ignore[arg-type]
        "prompt_z = 'prior' has no effect beside a list of Zs": lambda: sample(free, "ab", z=[[0] * 47], prompt_z="prior"),
        "temperature = nan": lambda: sample(free, "ab", temperature=math.nan),
        "temperature = -1": lambda: sample(free, "ab", temperature=-1),
        "top_k = -1": lambda: sample(free, "ab", top_k=-1),
        "top_p = 0": lambda: sample(free, "ab", top_p=0),
        "max_tokens = 0": lambda: sample(free, "ab", max_tokens=0),
        "count = 0": lambda: sample(free, "ab", count=0),
        "groups = 1.5": lambda: sample(free, "ab", groups=1.5),  # type: ignore[arg-type]
        "seed = -1": lambda: prior(free, 3, seed=-1),
        "length = -1": lambda: prior(free, -1),
        "draws = 0": lambda: log_likelihood(free, "abc", draws=0),
        "no such run or checkpoint": lambda: load("nowhere"),
    }
    for words, call in refused.items():
        with pytest.raises(InputError, match=words):
            call()
    assert (free.bits, baseline.bits, free.step) == (2, 0, 5)


def test_codes_may_be_a_tensor_and_a_long_text_is_warned_of(free: Run) -> None:
    codes = torch.from_numpy(prior(free, 47))
    (one,) = sample(free, "ab", z=codes)
    assert one.z == codes[0].tolist()[: len(one.z or [])]
    with pytest.warns(UserWarning, match="and 199 are read"):
        log_likelihood(free, "a" * 199, draws=1)
