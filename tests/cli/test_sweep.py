"""`freetf sweep`: the commands that it prints, and what `--run` does with them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from freetf_cli.cli.app import main
from freetf_cli.config.files import load_recipe

pytestmark = pytest.mark.usefixtures("no_charts")

TINY = """
[data]
task = "coins"

[model]
layers = 2
width = 16
heads = 2

[latent]
kappa = 0.5
bits = 4

[train]
steps = 2
batch = 4
lr = 1e-3

[eval]
sequences = 4
samples = 1

[sweep.a]
[sweep.b]
train.lr = 1e-4
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    return "tiny.toml"


def test_a_line_for_each_run_that_a_shell_reads_back(run_cli, tiny, tmp_path):
    settings = ["--set", "latent.objective.schedule={kappa = [[0, 2.0], [0.5]]},{}", "--seeds", "0..1"]
    code, stdout, stderr = run_cli("sweep", tiny, *settings, "-o", "my runs", "--device", "cpu")
    assert (code, stderr) == (0, "")
    commands = [shlex.split(line) for line in stdout.splitlines()]
    assert len(commands) == 8
    for words in commands:
        assert words[:2] == ["freetf", "train"]
        assert words[-3:] == ["--resume", "auto", "--quiet"]
        load_recipe(words[2], overrides=[words[place + 1] for place, word in enumerate(words) if word == "--set"])
    assert len({words[words.index("-o") + 1] for words in commands}) == 8
    assert all(words[words.index("-o") + 1].startswith("my runs/tiny-") for words in commands)
    assert not (tmp_path / "my runs").exists()  # printing makes nothing


def test_json_is_an_object_for_each_run(run_cli):
    lines = run_cli("sweep", "figure4-mini", "--seeds", "3", "-o", "runs", "--smoke", "--json").stdout.splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["name"] for record in records] == [f"figure4-mini-{kind}-s3" for kind in ("16th", "literal", "4th", "1", "8")]
    assert records[2] == {
        "schema_version": 1,
        "name": "figure4-mini-4th-s3",
        "recipe": "figure4-mini/4th",
        "settings": ["train.seed=3"],
        "run": "runs/figure4-mini-4th-s3",
        "command": shlex.split(
            "freetf train figure4-mini/4th --smoke --set train.seed=3 -o runs/figure4-mini-4th-s3 --resume auto --quiet"
        ),
    }


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (
            ["figure4", "--set", "latent.kappa=0.5,99"],
            "latent.kappa = 99 is more than latent.bits = 16: a token holds no more, --set latent.kappa=99",
        ),
        (["figure4", "--set", "latent.kapa=1"], "unknown key 'latent.kapa'"),
        (["letters-free", "--set", "data.params.length=64,3"], "target = 8 is longer than length = 3, letters-free-length3"),
        (["letters-free", "--set", "model.context=999"], "model.context = 999 is too long"),
        (
            ["letters-free", "--set", "model.attention=multi-token", "--set", "model.multi_token.c_k=99"],
            "c_k = 99 is more than model.context = 65",
        ),
        (["figure5"], "no recipe named 'figure5'; did you mean 'figure4/8'? (sweeps: attention-ablations, "),
        (["figure4", "--seeds", "x"], "--seeds takes numbers"),
        (["paper-8b-free", "--smoke"], "no [smoke] overlay"),
        (["figure4", "--run", "0"], "--run"),
    ],
)
def test_faults_come_before_any_line(run_cli, tmp_path, words, what):
    code, stdout, stderr = run_cli("sweep", *words, "-o", tmp_path / "runs")
    assert (code, stdout) == (2, "")
    assert what in stderr
    assert not (tmp_path / "runs").exists()


def test_equal_values_are_one_run(run_cli, tiny):
    code, stdout, stderr = run_cli("sweep", f"{tiny}/a", "--set", "latent.kappa=0.5,0.50,1/2,0.25", "-o", "runs")
    assert (code, [line.split()[-4] for line in stdout.splitlines()]) == (0, ["runs/tiny-a-kappa0.5", "runs/tiny-a-kappa0.25"])
    assert "tiny-a-kappa0.50 is left out: it would be the same run as tiny-a-kappa0.5\n" in stderr and stderr.count("\n") == 2


@pytest.mark.parametrize("words", [("--seeds", "0,0"), ("--set", "train.seed=0,0")])
def test_a_value_given_twice_is_one_run_and_told(run_cli, tiny, words):
    code, stdout, stderr = run_cli("sweep", f"{tiny}/a", *words, "-o", "runs")
    assert (code, stdout.count("\n")) == (0, 1)
    assert "tiny-a-s0 is left out: it is given twice\n" in stderr


def test_a_run_is_no_folder_for_a_sweep(run_cli, tmp_path):
    (tmp_path / "recipe.toml").touch()
    code, _, stderr = run_cli("sweep", "letters-free", "-o", tmp_path)
    assert code == 2
    assert "cannot be a run itself" in stderr


def test_a_run_is_done_if_it_is_of_this_recipe_and_this_data(workshop, baseline_run, text_run, copied):
    from freetf_cli.training.pool import is_done

    recipe = load_recipe(str(workshop / "baseline.toml"))
    assert is_done(baseline_run, recipe) and not is_done(baseline_run / "none", recipe)
    other = load_recipe(str(workshop / "baseline.toml"), overrides=["train.seed=9"])
    assert not is_done(baseline_run, other) and not is_done(baseline_run, load_recipe(str(workshop / "free.toml")))
    assert not is_done(baseline_run, load_recipe(str(workshop / "text.toml")))
    ffn = baseline_run.parent / "wide"
    wide = load_recipe(str(workshop / "baseline.toml"), overrides=["model.ffn=24"])
    assert main(["train", str(workshop / "baseline.toml"), "--set", "model.ffn=24", "-o", str(ffn), "--device", "cpu", "-q"]) == 0
    assert is_done(ffn, wide) and not is_done(ffn, recipe)


@pytest.mark.slow
def test_runs_are_made_skipped_and_reported(run_cli, tiny):
    words = ["sweep", tiny, "-o", "runs", "--device", "cpu", "--run", 2]
    assert run_cli(*shlex.split(run_cli(*words[:-2]).stdout.splitlines()[0])[1:]).code == 0
    code, stdout, stderr = run_cli(*words)
    assert (code, stdout.splitlines()) == (0, ["skipped tiny-a: done before", "done tiny-b"])
    assert "2 at a time; watch one: freetf show runs/tiny-b" in stderr
    assert json.loads(Path("runs/tiny-b/manifest.json").read_text())["status"] == "done"
    assert "trained" in Path("runs/tiny-b.log").read_text()
    before = Path("runs/tiny-a/manifest.json").read_text()

    lines = [json.loads(line) for line in run_cli(*words, "--json").stdout.splitlines()]
    assert [line["status"] for line in lines] == ["skipped", "skipped"]
    assert Path("runs/tiny-a/manifest.json").read_text() == before

    Path(tiny).write_text(TINY.replace("steps = 2", "steps = 3"), encoding="utf-8")  # no longer what those runs were trained by
    Path("runs/tiny-b").rename("runs/kept")
    code, stdout, stderr = run_cli(*words)
    assert (code, sorted(stdout.splitlines())) == (1, ["done tiny-b", "failed tiny-a"])
    assert "warning: tiny-a: exit code 2: the recipe is not the run's: train.steps is 3, was 2" in stderr
    assert "freetf: error: 1 of 2 runs did not finish: tiny-a, runs; their output is in runs/NAME.log" in stderr
