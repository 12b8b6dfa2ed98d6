"""`freetf demo`: the whole story, in its smoke size."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from freetf_cli.cli import demo
from freetf_cli.errors import Stopped
from freetf_cli.training import pool
from freetf_cli.training.pool import Children

SHORTER = {"probe-latent": ["--sequences", "64", "--groups", "24", "--count", "2"]}  # options that a test adds


@pytest.fixture(scope="module")
def told(tmp_path_factory, run_cli):
    """(folder, code, stdout, stderr) of `demo --smoke` with fewer rows."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "ROWS", 5000)
        return folder, *run_cli("demo", "--smoke", "-o", folder)


def test_a_run_is_no_folder_for_a_demo(run_cli, tmp_path):
    (tmp_path / "recipe.toml").touch()
    code, _, stderr = run_cli("demo", "-o", tmp_path)
    assert (code, "the folder of a demo cannot be a run itself" in stderr, len(list(tmp_path.iterdir()))) == (2, True, 1)


@pytest.mark.slow
def test_the_story(told):
    folder, code, stdout, stderr = told
    assert code == 0
    for number, said in enumerate(("Data", "A baseline", "A Free Transformer", "What does Z decide"), start=1):
        assert f"\n{number}  {said}" in stdout
    assert stdout.count("╭─ independent Z") == 1
    assert stdout.count("╭─ shared Z") == 3
    rows = [line for line in stdout.splitlines() if line.startswith("│ K>")]
    assert len(rows) == 6 * 4
    assert all(len(line) == 2 + 66 + 2 for line in rows)
    assert "agreement on" in stdout
    assert "times as often when Z is shared" in stdout
    assert stdout.endswith(f"freetf show {folder}/free\n")
    assert "\x1b" not in stdout + stderr
    assert "…" not in stdout + stderr
    assert "step 20/20" in stderr
    assert "step 20/20" not in stdout
    for name in ("baseline", "free"):
        assert (folder / name / "report.html").is_file()


@pytest.mark.slow
def test_what_the_story_says_to_try_works(told, run_cli):
    folder = told[0]
    tries = [line.split() and shlex.split(line) for line in told[2].partition("Try next:\n")[2].splitlines()]
    assert [words[1] for words in tries] == ["recipe", "sample", "probe-latent", "show"]
    for line in tries:
        assert shutil.which(line[0])  # it can be pasted as it is
        words = line[1:]
        code, stdout, stderr = run_cli(*words, *SHORTER.get(words[0], []))
        assert (code, stderr) == (0, ""), line
        assert stdout
    assert (folder / "letters" / "manifest.json").is_file()


@pytest.mark.parametrize(("on_path", "typed"), [(True, "freetf"), (False, "venv/bin/freetf")])
def test_commands_are_named_as_they_can_be_typed(tmp_path, monkeypatch, on_path, typed):
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "freetf").touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", str(programs) if on_path else str(tmp_path))
    assert demo._program() == typed


@pytest.mark.slow
def test_again_goes_on_where_it_was_and_json_is_one_object(told, run_cli, monkeypatch):
    """From another folder too: the data's path is then another, the data the same."""
    folder = told[0]
    before = {path: path.read_bytes() for name in ("baseline", "free") for path in (folder / name).glob("**/*.safetensors")}
    metrics = (folder / "free" / "metrics.jsonl").read_bytes()
    monkeypatch.chdir(folder.parent)
    code, stdout, stderr = run_cli("demo", "--smoke", "-o", "demo", "--json")
    assert (code, stderr, stdout.count("\n")) == (0, "", 1)
    found = json.loads(stdout)
    assert found["schema_version"] == 1
    assert (found["baseline"]["kind"], found["free"]["kind"], found["free"]["steps"]) == ("baseline", "free", 20)
    assert [one["factor"] for one in found["agreement"]] == ["position", "noise"]
    assert all(0 <= one["within"] <= 1 and one["pairs_across"] > 0 for one in found["agreement"])
    assert len(before) == 4
    assert {path: path.read_bytes() for path in before} == before
    assert (folder / "free" / "metrics.jsonl").read_bytes() == metrics


def test_a_folder_that_is_no_demo_is_refused(run_cli, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "thesis.txt").write_text("mine")
    code, stdout, stderr = run_cli("demo", "--smoke", "--json", "-o", tmp_path)
    assert (code, stdout) == (2, "")
    assert str(tmp_path / "letters") in json.loads(stderr)["error"]["where"]
    assert [path.name for path in tmp_path.rglob("*")] == ["letters", "thesis.txt"]


def test_a_stop_of_the_demo_stops_the_baselines_process(tmp_path, monkeypatch):
    started = []

    def start(children, words, environment, **options):
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], **options)
        started.append((words, process))
        children.all.append(process)
        return process

    def stop(*_, **__):
        raise Stopped("stopped by SIGTERM")

    monkeypatch.setattr(Children, "start", start)
    monkeypatch.setattr(demo, "_train", stop)
    with pytest.raises(Stopped):
        demo._train_pair(tmp_path / "letters", tmp_path / "baseline", tmp_path / "free", "cpu", 0, smoke=True, shown=False)
    ((words, process),) = started
    assert words[:4] == ["train", "demo-baseline", "-o", str(tmp_path / "baseline")]
    assert process.returncode == -signal.SIGTERM


def test_a_baseline_whose_process_failed_is_continued(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(pool, "freetf_command", lambda words: [sys.executable, "-c", "import sys; sys.exit(1)"])
    monkeypatch.setattr(demo, "_train", lambda recipe, *_, **__: trained.append(recipe))
    demo._train_pair(tmp_path / "letters", tmp_path / "baseline", tmp_path / "free", "cpu", 0, smoke=True, shown=False)
    assert trained == ["demo-free", "demo-baseline"]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (Stopped("stopped by SIGTERM"), 75)])
def test_a_stopped_demo_names_the_command_that_continues_it(run_cli, tmp_path, monkeypatch, error, code):
    def stop(*_, **__):
        raise error

    monkeypatch.setattr(demo, "_make_data", stop)
    found, stdout, stderr = run_cli("demo", "--smoke", "-o", tmp_path / "a b", "--seed", "3", "-q")
    assert found == code
    assert f"gen-synthetic letters -o '{tmp_path}/a b/letters' --count" in stdout
    assert stderr.rstrip().endswith(f"; continue with: {demo._program()} demo -o '{tmp_path}/a b' --device cpu --seed 3 --smoke")
