"""Scripts in scripts/: each runs as its head says, on tiny sizes."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_every_script_imports_and_says_how_to_run_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    names = runpy.run_path(str(path))  # not as __main__: defines, and runs nothing
    assert callable(names["main"])
    assert path.name in names["__doc__"] or path.name == "speed_worker.py"


@pytest.fixture(scope="module")
def letters_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Free model of two blocks, trained on letters for two steps."""
    folder = tmp_path_factory.mktemp("letters") / "run"
    settings = ["train.steps=2", "eval.samples=0", "eval.sequences=4"]
    options = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "freetf_cli", "train", "letters-free", "--smoke", "--quiet", "-o", str(folder), *options]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, timeout=240)
    return folder


@pytest.mark.slow
def test_flags_of_a_run(letters_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "flags.json"
    run("flags.py", out, letters_run, "--groups", 20, "--count", 2, "--contexts", 2)
    (row,) = json.loads(out.read_text())
    assert set(row["parts"]) == {"all", "first 2", "first 8", "after 2", "after 8"}
    assert all(0 <= each["share"] <= 1 and each["bits"] >= 0 for each in row["flags"].values())


@pytest.mark.slow
def test_gradient_bias_of_a_run(letters_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "bias.json"
    run("gradient_bias.py", letters_run, out, "--sequences", 32)
    rows = json.loads(out.read_text())
    assert rows
    assert all(set(row) == {"sure", "bits", "worth", "paper", "heun"} for row in rows)


@pytest.mark.slow
def test_float8_error_of_a_step(tmp_path: Path) -> None:
    out = tmp_path / "error.json"
    run("float8_error.py", out, "demo-free", "train.batch=4", "--steps", 1)
    (row,) = json.loads(out.read_text())["rows"]
    assert 0.005 < row["all"] < 0.1


@pytest.mark.slow
def test_speed_compares_two_trees_and_resumes(tmp_path: Path) -> None:
    """A tree compared with itself gives the same losses and tokens; a second call measures nothing again."""
    out = tmp_path / "speed.json"
    printed = run("speed.py", out, "--old", ROOT, "--smoke")
    rows = json.loads(out.read_text())["rows"]
    assert {row["work"] for row in rows} == {"step", "loop", "sample"}
    for row in rows:
        assert row["name"] in printed
        assert row["ratio"] > 0
        assert row["old"]["check"] == row["new"]["check"]
        assert len(row["old"]["rounds_ms"]) == len(row["new"]["rounds_ms"]) == 2
    run("speed.py", out, "--old", ROOT, "--smoke")
    assert json.loads(out.read_text())["rows"] == rows


@pytest.mark.slow
def test_kernels_are_compared_with_pytorchs(tmp_path: Path) -> None:
    """Every way of every case agrees with float64, or says why it is absent."""
    out = tmp_path / "kernels.json"
    printed = run("kernels.py", out, "--smoke")
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) >= 7
    for row in rows:
        assert row["case"] in printed
        for name, way in row["ways"].items():
            if "absent" in way:
                assert "CUDA" in way["absent"] or "CPU" in way["absent"] or "torch" in way["absent"], way
            elif "another result" not in name:
                assert max(way["output_error"], way["gradient_error"]) < 0.01
                assert way["median_ms"] > 0
