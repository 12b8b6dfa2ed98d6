"""Tiny untrained runs with random weights, and their Hugging Face folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from freetf_cli.config.files import check_recipe
from freetf_cli.data.tokenizer import byte_level
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.records import DataFacts
from freetf_cli.runs.checkpoint import Checkpoint, save_checkpoint
from freetf_cli.runs.folder import RunFolder

MODEL: dict[str, Any] = {"layers": 4, "width": 32, "heads": 4, "kv_heads": 2, "vocab": 257, "context": 48, "rope_theta": 5e5}
LATENT: dict[str, Any] = {"kappa": 0.5, "bits": 6, "table_std": 6.0}


def make_run(path: Path, *, latent: dict[str, Any] | None = None, **model: Any) -> Path:
    """A run with one checkpoint, at step 5. The lm_head is not tied: with random weights, a tied one would repeat the last token."""
    tree = {
        "data": {"dir": "text"},
        "model": {**MODEL, "tie_embeddings": False, **model},
        "train": {"steps": 5, "batch": 2, "lr": 1e-3},
        "description": "random",
    }
    recipe = check_recipe(tree if latent is None else {**tree, "latent": latent}, where="test")
    run, tokenizer = RunFolder.create(path, recipe), byte_level()
    decoder = build_model(recipe.model, recipe.latent)
    initialise_model(decoder, seed=1)
    with torch.no_grad():
        decoder.embedding.weight.mul_(20)
        for block in decoder.blocks:
            block.attention.out.weight.mul_(4)  # type: ignore[operator, union-attr]
    facts = asdict(DataFacts("books", None, 257, 48, 48, None, "0" * 64))
    state = {"step": 5, "tokens": 480, "recipe": recipe.model_dump(exclude_none=True), "data": facts, "data_folder": None}
    save_checkpoint(run.checkpoint(5), dict(decoder.named_parameters()), {}, state, tokenizer)
    run.update_manifest(recipe="/home/someone/books.toml", data=facts, freetf="0.2.0", status="done", started="2026-01-01T00:00:00+00:00")
    return path


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`baseline` and `free`. No test may change them."""
    folder = tmp_path_factory.mktemp("exchange")
    make_run(folder / "baseline")
    make_run(folder / "free", latent=LATENT)
    return folder


@pytest.fixture(scope="session")
def folders(runs: Path, run_cli: Callable[..., Any]) -> Path:
    """The same runs as Hugging Face folders, written by `freetf export`."""
    for name in ("baseline", "free"):
        done = run_cli("export", runs / name, "--to", "hf", "-o", runs / "hf" / name, "--device", "cpu")
        assert done.code == 0, done.stderr
    return runs / "hf"


@pytest.fixture
def opened() -> Callable[[Path], Checkpoint]:
    """The checkpoint of a run of these tests."""
    return lambda run: Checkpoint.open(next((run / "checkpoints").iterdir()))


@pytest.fixture
def changed(folders: Path, tmp_path: Path) -> Callable[..., Path]:
    """`changed(key=value)`: a copy of the baseline's folder with other keys in config.json."""

    def change(**keys: Any) -> Path:
        copy = tmp_path / "changed"
        copy.mkdir()
        for file in (folders / "baseline").iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, **keys}))
        return copy

    return change
