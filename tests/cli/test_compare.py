"""`freetf compare`: two models on the same rows, refused where they cannot be compared, and the checks on them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from freetf_cli.cli.app import main

pytestmark = pytest.mark.usefixtures("no_charts")

SMALL = ("--sequences", 24, "--samples", 4, "--count", 2, "--device", "cpu")
NO_CHECK = ("--sequences", 24, "--samples", 1, "--count", 0, "--device", "cpu", "-q")


def trained(workshop: Path, out: Path, recipe: str, *words: object) -> Path:
    assert main(["train", str(workshop / f"{recipe}.toml"), "-o", str(out), "--device", "cpu", "-q", *map(str, words)]) == 0
    return out


@pytest.fixture(scope="module")
def other_run(workshop, tmp_path_factory) -> Path:
    """As free_run, of another seed and a smaller κ."""
    return trained(workshop, tmp_path_factory.mktemp("other") / "other", "free", "--seed", 1, "--set", "latent.kappa=0.25")


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def perturb(run: Path, change: Callable[[dict], None]) -> None:
    """Change the newest checkpoint's weights, and its manifest with them."""
    folder = newest(run)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    rewrite_manifest(folder)


def rewrite_manifest(folder: Path) -> None:
    manifest = folder / "MANIFEST.sha256"
    names = [line.split("  ", 1)[1] for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names))


def change_state(run: Path, change: Callable[[dict], None]) -> None:
    file = newest(run) / "state.json"
    state = json.loads(file.read_text())
    change(state)
    file.write_text(json.dumps(state))
    rewrite_manifest(file.parent)


@pytest.fixture
def compared(run_cli) -> Callable[..., dict]:
    """`compared(a, b)`: the JSON of a comparison that ends well."""

    def run(a: Path, b: Path, *words: object) -> dict:
        code, stdout, stderr = run_cli("compare", a, b, *SMALL, "--json", *words)
        assert (code, stdout.count("\n")) == (0, 1), stderr
        return json.loads(stdout)

    return run


@pytest.fixture
def no_forward(monkeypatch):
    """Building a model or measuring one fails the test."""
    import freetf_cli.evaluation.compare
    import freetf_cli.runs.checkpoint

    def fail(*args, **settings):
        raise AssertionError("a model was built or run")

    monkeypatch.setattr(freetf_cli.runs.checkpoint.Checkpoint, "model", fail)
    monkeypatch.setattr(freetf_cli.runs.checkpoint, "build_model", fail)
    monkeypatch.setattr(freetf_cli.evaluation.compare, "row_costs", fail)
    monkeypatch.setattr(freetf_cli.evaluation.compare, "compare_weights", fail)
    monkeypatch.setattr(freetf_cli.evaluation.compare, "plan_run", fail)


def test_two_free_models(run_cli, free_run, other_run):
    code, stdout, stderr = run_cli("compare", free_run, other_run, *SMALL)
    assert code == 0
    for said in (
        "12,864 parameters",
        "Cost of held-out sequences, bits/sequence",
        "Floor",
        "By position",
        "Training, held out",
        "Use of Z",
        "Weights",
    ):
        assert said in stdout
    for said in ("train.seed", "latent.kappa", "Samples after the prompt", "A: independent Z", "B: independent Z", "Size and speed"):
        assert said in stdout
    assert "train.lr" not in stdout  # settings that agree
    assert "Checks" not in stdout
    assert f"freetf probe-latent {free_run}" in stderr and f"freetf probe-latent {other_run}" in stderr


def test_json(compared, free_run, other_run):
    found = compared(free_run, other_run)
    assert (found["schema_version"], found["equal"], found["checks"]) == (1, False, [])
    assert (found["a"]["run"], found["b"]["run"], found["a"]["kind"]) == (str(free_run), str(other_run), "free")
    assert (found["split"], found["sequences"], found["seed"], found["importance_samples"]) == ("val", 24, 0, 4)
    assert {row["key"]: (row["a"], row["b"]) for row in found["recipe"]} == {"train.seed": (0, 1), "latent.kappa": (0.5, 0.25)}
    assert list(found["metrics"]) == ["nll", "elbo", "ce_posterior", "ce_prior", "kl"]
    for pair in found["metrics"].values():
        a, b, apart = (pair[name]["nats_per_token"] for name in ("a", "b", "difference"))
        assert apart == pytest.approx(b - a)
        assert pair["difference"]["low"] <= apart <= pair["difference"]["high"]
        assert pair["relative_percent"] == pytest.approx(100 * (b - a) / abs(a))
        assert pair["difference"]["bits_per_sequence"] == pytest.approx(apart / math.log(2) * found["tokens"] / 24)
        assert pair["difference"]["bits_per_byte"] is None
    assert found["metrics"]["elbo"]["a"]["nats_per_token"] == pytest.approx(
        found["metrics"]["ce_posterior"]["a"]["nats_per_token"] + found["metrics"]["kl"]["a"]["nats_per_token"]
    )
    assert found["facts"]["task"] == "letters" and found["floor_bits"] == found["facts"]["floor_bits"]


def test_json_of_curves_weights_and_speed(compared, free_run, other_run):
    found = compared(free_run, other_run)
    assert found["a"]["curve"] == [json.loads(line) for line in (free_run / "metrics.jsonl").read_text().splitlines()]
    rates = sorted(json.loads(line)["tokens_per_second"] for line in (free_run / "timing.jsonl").read_text().splitlines())
    assert rates[0] <= found["a"]["train_tokens_per_second"] <= rates[-1]
    assert found["a"]["evaluation_seconds"] > 0 and found["a"]["train_flops_per_token"] > 0
    assert found["a"]["checkpoint_bytes"] == sum(file.stat().st_size for file in newest(free_run).iterdir())
    tensors = {one["name"]: one for one in found["weights"]["tensors"]}
    assert tensors.keys() == load_file(newest(free_run) / "model.safetensors").keys()
    assert all(one["change"]["relative"] > 0 for name, one in tensors.items() if name.startswith("blocks"))
    assert (found["a"]["latent"]["kappa"], found["b"]["latent"]["kappa"]) == (0.5, 0.25)
    assert found["a"]["latent"]["kl"] == found["metrics"]["kl"]["a"]


def test_a_metric_by_position_adds_up_to_the_whole(compared, free_run, other_run):
    found = compared(free_run, other_run)
    places = found["by_position"]
    for side in "ab":
        whole = sum(value * targets for value, targets in zip(places[side], places["targets"], strict=True) if targets)
        assert whole / found["tokens"] == pytest.approx(found["metrics"]["elbo"][side]["bits_per_token"])
    assert sum(places["targets"]) == found["tokens"]


def test_the_same_rows_and_seeds_every_time(compared, free_run, other_run):
    first, swapped = compared(free_run, other_run), compared(other_run, free_run)
    assert first["metrics"]["nll"]["a"] == swapped["metrics"]["nll"]["b"]
    ours, theirs = (found["metrics"]["nll"]["difference"]["nats_per_token"] for found in (first, swapped))
    assert ours == pytest.approx(-theirs)
    assert first["samples"]["a"] == swapped["samples"]["b"]


def test_samples_are_those_of_sample(run_cli, compared, free_run, baseline_run):
    found = compared(baseline_run, free_run, "--prompt", "A>", "--seed", 3, "--count", 40)["samples"]
    assert (found["prompt"], found["seed"], len(found["a"])) == ("A>", 3, 40)
    for run, side in ((baseline_run, "a"), (free_run, "b")):
        words = ("--prompt", "A>", "--count", 40, "--seed", 3, "--prompt-z", "prior", "--device", "cpu", "--json")
        records = [json.loads(line) for line in run_cli("sample", run, *words).stdout.splitlines()]
        assert [record["text"] for record in records] == found[side]


def test_the_page_colours_what_the_task_reads_in_samples(run_cli, free_run, baseline_run, tmp_path):
    """The page shows the factors of letters; without them every sample would be plain text after its prompt."""
    words = ("--sequences", 20, "--samples", 1, "--count", 40, "--device", "cpu", "--report", tmp_path / "page.html")
    assert run_cli("compare", baseline_run, free_run, *words).code == 0
    roles = set(re.findall(r'tspan class="s-(\w+)"', (tmp_path / "page.html").read_text()))
    assert roles - {"prompt", "plain"}


def test_a_baseline_against_a_free_model(run_cli, compared, baseline_run, free_run):
    found = compared(baseline_run, free_run)
    pairs = found["metrics"]
    assert pairs["nll"]["a"] == pairs["elbo"]["a"]
    assert pairs["nll"]["difference"] and pairs["elbo"]["difference"]
    for name in ("ce_posterior", "ce_prior", "kl"):
        assert pairs[name]["a"] is None and pairs[name]["b"] and pairs[name]["difference"] is None
    assert found["a"]["latent"] is None and found["b"]["latent"]
    assert {one["name"].split(".")[0] for one in found["weights"]["only_b"]} == {"latent"}
    stdout = run_cli("compare", baseline_run, free_run, *SMALL).stdout
    assert "A: no Z" in stdout and "upper bound" in stdout and "not compared" in stdout
    assert "only in B" in stdout


def test_two_baselines_have_no_z(run_cli, workshop, baseline_run, tmp_path):
    other = trained(workshop, tmp_path / "other", "baseline", "--seed", 1)
    code, stdout, stderr = run_cli("compare", baseline_run, other, *SMALL)
    assert code == 0
    assert "Use of Z" not in stdout and "KL" not in stdout.split("Recipe")[0].split("By position")[0]
    assert "probe-latent" not in stderr


def test_a_planted_difference_is_found(compared, run_cli, free_run, copied):
    """An lm_head with far too large logits is worse on every sequence, and only the embedding moved."""
    worse = copied(free_run)
    perturb(worse, lambda tensors: tensors["embedding.weight"].mul_(30.0))
    found = compared(free_run, worse)
    assert found["metrics"]["nll"]["difference"]["low"] > 0
    changes = {one["name"]: one["change"] for one in found["weights"]["tensors"]}
    assert changes["embedding.weight"]["relative"] == pytest.approx(29.0)
    assert changes["embedding.weight"]["cosine"] == pytest.approx(1.0)
    assert all(change["relative"] == 0 for name, change in changes.items() if name != "embedding.weight")
    assert run_cli("compare", free_run, worse, *SMALL).stdout.splitlines()[2].startswith("A has the lower bound: ")
    assert run_cli("compare", worse, free_run, *SMALL).stdout.splitlines()[2].startswith("B has the lower bound: ")


def test_a_difference_too_small_to_see(compared, run_cli, free_run, copied):
    other = copied(free_run)
    perturb(other, lambda tensors: tensors["norm.weight"].mul_(1 + 1e-7))
    found = compared(free_run, other)
    assert not found["equal"]
    assert abs(found["metrics"]["elbo"]["relative_percent"]) < 0.01


def test_weights_that_are_no_numbers_fail_every_check(run_cli, free_run, copied):
    broken = copied(free_run)
    perturb(broken, lambda tensors: tensors["norm.weight"].fill_(math.nan))
    code, stdout, _ = run_cli("compare", free_run, broken, *SMALL, "--fail-if", "nll>5%", "--fail-if", "nll<-5%", "--json")
    assert code == 3
    found = json.loads(stdout)
    assert found["metrics"]["nll"]["b"]["nats_per_token"] is None
    assert [one["passed"] for one in found["checks"]] == [False, False]
    assert run_cli("compare", free_run, broken, *SMALL).stdout.count("No verdict: ") == 1


@pytest.mark.parametrize("condition", ["nll>+0.5%", "elbo > 0.01", "nll>=0"])
def test_a_failed_check_is_exit_3_after_everything_was_printed(run_cli, free_run, copied, condition):
    worse = copied(free_run)
    perturb(worse, lambda tensors: tensors["embedding.weight"].mul_(30.0))
    code, stdout, stderr = run_cli("compare", free_run, worse, *NO_CHECK, "--fail-if", condition, "--fail-if", "nll<-50%")
    assert code == 3
    assert stderr.startswith("freetf: error: a check failed: ") and stderr.count("\n") == 1
    assert f"'{condition}' (found +" in stderr and "-50%" not in stderr
    assert "Size and speed" in stdout and "Checks" in stdout
    better = run_cli("compare", worse, free_run, *NO_CHECK, "--fail-if", condition)
    assert better.code == 0 and better.stderr == ""


def test_a_failed_check_under_json_is_an_object_on_stderr(run_cli, free_run, other_run):
    code, stdout, stderr = run_cli("compare", free_run, other_run, *NO_CHECK, "--fail-if", "nll>-99%", "--json")
    assert (code, json.loads(stderr)["error"]["exit_code"]) == (3, 3)
    check = json.loads(stdout)["checks"][0]
    assert (check["expression"], check["passed"], check["unit"]) == ("nll>-99%", False, "%")
    assert check["found"] == json.loads(stdout)["metrics"]["nll"]["relative_percent"]


@pytest.mark.parametrize("kind", ["same folder", "run and checkpoint", "copy"])
def test_equal_checkpoints_are_not_measured(run_cli, free_run, copied, no_forward, kind):
    b = {"same folder": free_run, "run and checkpoint": newest(free_run), "copy": None}[kind] or copied(free_run)
    code, stdout, stderr = run_cli("compare", free_run, b, "--fail-if", "nll>+0.5%")
    assert (code, stderr) == (0, "")
    assert "Equal: " in stdout
    found = json.loads(run_cli("compare", free_run, b, "--json").stdout)
    assert found["equal"] is True
    assert (found["metrics"], found["weights"], found["recipe"], found["samples"]) == ({}, None, [], None)


@pytest.mark.parametrize(("condition", "code"), [("nll>+0.5%", 0), ("elbo<0", 0), ("nll>-1%", 3), ("nll>=0", 3), ("kl<=0%", 3)])
def test_checks_of_equal_checkpoints_see_exactly_nothing(run_cli, free_run, no_forward, condition, code):
    found = run_cli("compare", free_run, free_run, "--fail-if", condition)
    assert found.code == code
    assert "Equal: " in found.stdout
    assert ("found +0 " in found.stderr) == (code == 3)


def test_equal_weights_tell_what_differs_in_their_recipes(run_cli, free_run, copied, no_forward):
    other = copied(free_run)
    change_state(other, lambda state: state["recipe"]["train"].update(lr=0.5))
    found = json.loads(run_cli("compare", free_run, other, "--json").stdout)
    assert found["equal"] and found["recipe"] == [{"key": "train.lr", "a": 0.03, "b": 0.5}]
    assert "train.lr" in run_cli("compare", free_run, other).stdout


def test_the_same_weights_in_another_model_are_not_equal(compared, free_run, copied):
    other = copied(free_run)
    change_state(other, lambda state: state["recipe"]["model"].update(rope_theta=500.0))
    found = compared(free_run, other)
    assert not found["equal"] and found["weights"]["all"]["relative"] == 0
    assert found["metrics"]["nll"]["difference"]["nats_per_token"] != 0


def test_checkpoints_outside_a_run_have_no_curve(compared, free_run, tmp_path):
    import shutil

    alone = shutil.copytree(free_run / "checkpoints" / "step-000003", tmp_path / "alone")
    found = compared(alone, newest(free_run))
    assert (found["a"]["curve"], found["a"]["train_tokens_per_second"]) == ([], None)
    assert (found["a"]["step"], found["b"]["step"], len(found["b"]["curve"]) > 0) == (3, 6, True)


def test_text_is_told_in_bits_per_byte_on_the_shorter_context(run_cli, compared, workshop, text_run, tmp_path):
    shorter = trained(
        workshop, tmp_path / "shorter", "text", "--set", "model.context=16", "--set", "train.steps=4", "--set", "train.log_every=2"
    )
    found = compared(text_run, shorter, "--split", "train")
    assert found["facts"]["context"] == 16
    assert found["tokens"] == found["sequences"] * 16
    cost = found["metrics"]["nll"]["a"]
    assert cost["bits_per_byte"] > 0
    stdout = run_cli("compare", text_run, shorter, *SMALL, "--split", "train").stdout
    assert "Cost of sequences of the train split, bits/byte" in stdout and "Samples without a prompt" in stdout


@pytest.mark.parametrize("metric", ["ce_posterior", "ce_prior", "kl"])
def test_a_posterior_ce_against_a_baseline_is_refused(refused, free_run, baseline_run, no_forward, metric):
    line = refused("compare", baseline_run, free_run, "--fail-if", f"{metric}>1%")
    assert "A is a baseline" in line and "use nll or elbo" in line
    assert ("a posterior CE cannot be compared with a baseline's CE" in line) == (metric == "ce_posterior")


@pytest.mark.parametrize(
    ("condition", "hint"), [("nl>1%", "did you mean 'nll'?"), ("nll", "for example --fail-if"), ("nll>x", "for example")]
)
def test_a_bad_condition_is_refused_before_anything_is_read(refused, tmp_path, condition, hint):
    line = refused("compare", tmp_path / "no", tmp_path / "where", "--fail-if", condition)
    assert hint in line and "no such run" not in line


@pytest.mark.parametrize("report", ["-", "no/such.html", "."])
def test_a_page_that_cannot_be_written_is_refused_before_the_work(refused, tmp_path, monkeypatch, report):
    monkeypatch.chdir(tmp_path)
    assert "report" in refused("compare", "no", "where", "--report", report)


def test_a_page_replaces_no_pipe_and_no_link(refused, run_cli, free_run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    links = {"to-pipe": "pipe", "loop": "loop", "nowhere": "no/page.html", "old": "old.html", "new": "new.html"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "old.html").write_text("old")
    for name, why in {"pipe": "a pipe", "to-pipe": "a pipe", "loop": "a loop of links", "nowhere": "folder does not exist"}.items():
        assert why in refused("compare", "no", "where", "--report", tmp_path / name)
    for name, said in {"old": " (replaced)", "new": ""}.items():
        code, _, stderr = run_cli("compare", free_run, free_run, "--report", tmp_path / name)
        assert (code, stderr) == (0, f"freetf: report: {tmp_path / name}{said}\n")
        assert (tmp_path / f"{name}.html").read_text().startswith("<!")
    assert {name: str((tmp_path / name).readlink()) for name in links} == links and (tmp_path / "pipe").is_fifo()


def test_other_tokenizers_are_refused(refused, free_run, text_run, no_forward):
    line = refused("compare", free_run, text_run)
    assert "the tokenizers differ" in line and str(free_run) in line and str(text_run) in line


def test_other_data_is_refused_and_a_common_folder_is_taken(refused, compared, run_cli, workshop, free_run, tmp_path):
    """The same task from a prepared folder: other data by its hash, so the user names what to measure both on."""
    params = ("--param", "length=12", "--param", "target=3", "--param", "letters=4")
    assert run_cli("gen-synthetic", "letters", "-o", tmp_path / "data", "--count", 100, "--split", "train=60,val=40", *params).code == 0
    recipe = (
        (workshop / "free.toml")
        .read_text()
        .replace('task = "letters", params = { length = 12, target = 3, letters = 4 }', f"dir = '{tmp_path}/data'")
    )
    (tmp_path / "free.toml").write_text(recipe)
    other = trained(tmp_path, tmp_path / "other", "free")
    line = refused("compare", free_run, other)
    assert "different data" in line and "--data DIR" in line
    found = compared(free_run, other, "--data", tmp_path / "data", "--sequences", 100)
    assert found["sequences"] == 40


def test_data_of_another_task_is_refused(refused, run_cli, free_run, other_run, tmp_path):
    assert run_cli("gen-synthetic", "letters", "-o", tmp_path / "data", "--count", 100).code == 0
    assert str(tmp_path / "data") in refused("compare", free_run, other_run, "--data", tmp_path / "data")


def test_other_lengths_of_documents_are_refused(refused, free_run, workshop, tmp_path):
    shorter = trained(workshop, tmp_path / "shorter", "free", "--set", "model.context=10")
    assert "rows have 13 positions for A, 10 for B" in refused("compare", free_run, shorter)


def test_too_few_sequences_are_refused(refused, free_run, other_run, no_forward):
    assert "at least 20" in refused("compare", free_run, other_run, "--sequences", 19)


def test_a_prompt_that_cannot_be_written_is_refused_before_the_work(refused, free_run, other_run, no_forward):
    assert "'k'" in refused("compare", free_run, other_run, "--prompt", "k>")


def test_no_samples_on_request(compared, free_run, other_run):
    assert compared(free_run, other_run, "--count", 0)["samples"] is None


@pytest.mark.parametrize("name", ["a", "b"])
def test_what_is_not_a_run(refused, free_run, tmp_path, name):
    words = {"a": (tmp_path / "x", free_run), "b": (free_run, tmp_path / "x")}[name]
    assert str(tmp_path / "x") in refused("compare", *words)


def test_a_damaged_checkpoint_is_refused(refused, free_run, copied):
    other = copied(free_run)
    file = newest(other) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    assert "model.safetensors" in refused("compare", free_run, newest(other))


def test_a_report_beside_json(run_cli, free_run, baseline_run, tmp_path):
    page = tmp_path / "page.html"
    code, stdout, stderr = run_cli("compare", free_run, baseline_run, *SMALL, "--json", "--report", page)
    assert code == 0 and json.loads(stdout)["equal"] is False
    assert str(page) in stderr
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("columns", ["80", None])
def test_nothing_is_cut_or_coloured_in_a_pipe(run_cli, monkeypatch, free_run, other_run, columns):
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    code, stdout, stderr = run_cli("compare", free_run, other_run, *SMALL, "-q")
    assert (code, stderr) == (0, "")
    assert "\x1b" not in stdout and "…" not in stdout


def test_the_use_of_z_is_in_bits_and_against_kappa(compared, run_cli, free_run, copied):
    """CE prior − CE posterior agrees with the metrics of the same rows, the share above κ with what probe-latent finds on them."""
    other = copied(free_run)
    perturb(other, lambda tensors: tensors["latent.encoder.to_bit_logits.weight"].mul_(1.7))  # some tokens above κ, not all
    found = compared(free_run, other)
    use, metrics = found["b"]["latent"], found["metrics"]
    difference = metrics["ce_prior"]["b"]["bits_per_token"] - metrics["ce_posterior"]["b"]["bits_per_token"]
    assert use["prior_less_posterior"]["value"] == pytest.approx(difference, abs=1e-6)
    assert use["kl"]["nats_per_token"] == pytest.approx(metrics["kl"]["b"]["nats_per_token"])
    probed = json.loads(run_cli("probe-latent", other, "--sequences", 24, "--groups", 60, "--count", 4, "--device", "cpu", "--json").stdout)
    assert use["above_kappa"] == pytest.approx(probed["rate"]["above_kappa"]["value"]) and 0 < use["above_kappa"] <= 1
