"""find-codes: codes for the values of a factor, which `sample --z` takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path


def test_codes_of_letters_and_samples_with_them(run_cli: Callable, free_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes"
    done = run_cli(
        "find-codes", free_run, "-o", out, "--label", "position", "--sequences", 400, "--count", 20, "--max-tokens", 14, "--json", "-q"
    )
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["label"], found["all_bits"], found["split"]) == ("position", 13 * 4, "train")
    assert [one["value"] for one in found["codes"]] == [str(place) for place in range(10)]
    assert all(one["documents"] >= 20 and 0 <= one["share"]["value"] <= 1 for one in found["codes"])
    lines = (out / "3.jsonl").read_text().splitlines()
    assert len(lines) == 20 and len(json.loads(lines[0])["z"]) == 13
    sampled = run_cli("sample", free_run, "--z", out / "3.jsonl", "--count", 3, "--json")
    assert sampled.code == 0 and [json.loads(one)["z"] for one in sampled.stdout.splitlines()] == [
        json.loads(one)["z"] for one in lines[:3]
    ]
    shown = run_cli("find-codes", free_run, "-o", out, "--label", "position", "--sequences", 400, "--count", 20)
    assert "log-odds" in shown.stdout and "freetf sample" in shown.stderr


def test_what_is_refused(refused: Callable[..., str], baseline_run: Path, free_run: Path, text_run: Path, tmp_path: Path) -> None:
    assert "has no Z" in refused("find-codes", baseline_run, "-o", tmp_path / "codes")
    assert "which label?" in refused("find-codes", free_run, "-o", tmp_path / "codes")
    assert "no labels" in refused("find-codes", text_run, "-o", tmp_path / "codes")
    assert "no split 'tran'" in refused("find-codes", free_run, "-o", tmp_path / "codes", "--split", "tran")
    (tmp_path / "file").touch()
    assert "not a folder" in refused("find-codes", free_run, "-o", tmp_path / "file")
