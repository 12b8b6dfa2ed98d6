"""Runs that the tests of train, sample and show share: made once, by the program, from tiny recipes. No test may change them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from freetf_cli.cli.app import main

FREE = """\
description = "tiny Free"
data = { task = "letters", params = { length = 12, target = 3, letters = 4 } }
model = { layers = 2, width = 16, heads = 2 }
latent = { kappa = 0.5, bits = 4, table_std = 20.0 }
train = { steps = 6, batch = 8, lr = 3e-2, warmup = 2, log_every = 2, keep_last = 2 }
eval = { every = 3, sequences = 16, samples = 2 }

[smoke]
train = { steps = 2, warmup = 1 }
"""
BASELINE = FREE.replace("latent = {", "# latent = {").replace("tiny Free", "tiny baseline")
TEXT = """\
description = "tiny Free on bytes"
data = {{ dir = '{data}' }}
model = {{ layers = 2, width = 16, heads = 2, context = 24 }}
latent = {{ kappa = 0.5, bits = 4 }}
train = {{ steps = 40, batch = 16, lr = 2e-2, log_every = 20 }}
eval = {{ sequences = 8, samples = 1 }}
"""
# Short documents, so that a generated text ends before its room does; one of more than a byte a character.
DOCUMENTS = ["yes\n", "no\n", "été\n", "ok\n"]


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """free.toml, baseline.toml, text.toml, and the data folder `text` of the last."""
    folder = tmp_path_factory.mktemp("workshop")
    (folder / "free.toml").write_text(FREE, encoding="utf-8")
    (folder / "baseline.toml").write_text(BASELINE, encoding="utf-8")
    (folder / "text.toml").write_text(TEXT.format(data=folder / "text"), encoding="utf-8")
    source = folder / "source.txt"
    source.write_text("%".join(DOCUMENTS * 40), encoding="utf-8")
    assert main(["prepare", str(source), "-o", str(folder / "text"), "--document-separator", "%", "-q"]) == 0
    return folder


def _run(workshop: Path, name: str) -> Path:
    assert main(["train", str(workshop / f"{name}.toml"), "-o", str(workshop / "runs" / name), "--device", "cpu", "-q"]) == 0
    return workshop / "runs" / name


@pytest.fixture(scope="session")
def free_run(workshop: Path) -> Path:
    """A Free run on letters: rows of 14 characters, 13 input positions, 16 codes; checkpoints 3 and 6."""
    return _run(workshop, "free")


@pytest.fixture(scope="session")
def baseline_run(workshop: Path) -> Path:
    """The same without Z."""
    return _run(workshop, "baseline")


@pytest.fixture(scope="session")
def text_run(workshop: Path) -> Path:
    """A Free run on bytes with a separator: rows of 25 tokens."""
    return _run(workshop, "text")


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """`copied(free_run)`: a copy that the test may damage."""
    return lambda run: Path(shutil.copytree(run, tmp_path / "copies" / run.name))


@pytest.fixture
def refused(run_cli) -> Callable[..., str]:
    """`refused("show", "x")`: asserts one clear line, exit 2, nothing on stdout, no traceback; the line without its beginning."""

    def run(*words: object, input: str | bytes | None = None, lines: int = 1) -> str:
        code, stdout, stderr = run_cli(*words, input=input)
        assert (code, stdout) == (2, ""), stderr
        assert stderr.count("\n") == lines, stderr
        assert all(line.startswith("freetf: error: ") for line in stderr.splitlines())
        assert "Traceback" not in stderr
        assert "internal error" not in stderr
        return stderr.replace("freetf: error: ", "")

    return run


@pytest.fixture
def few_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classifiers of probe-latent that are hardly trained. What they find is tested in tests/evaluation/probe."""
    monkeypatch.setattr("freetf_cli.evaluation.probe.decoding.EPOCHS", 2)
