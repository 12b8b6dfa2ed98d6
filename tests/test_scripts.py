"""Scripts in scripts/: each runs as its head says, on tiny sizes."""

from __future__ import annotations

import json
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
