"""Checkpoints of every format that was released can still be read, and gone on from.

`tests/golden/format-N/`: a checkpoint after two steps of a run of four, the logits of a row, and the sum of each weight's absolute
values at the run's end. A new format adds a folder; none is ever made anew.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from freetf_cli.config.files import check_recipe
from freetf_cli.runs.checkpoint import FORMAT_VERSION, Checkpoint
from freetf_cli.training.run import train

GOLDEN = Path(__file__).parent / "golden"
FORMATS = sorted(GOLDEN.glob("format-*"))
CPU = torch.device("cpu")


def test_every_format_has_one() -> None:
    assert [folder.name for folder in FORMATS] == [f"format-{version}" for version in range(1, FORMAT_VERSION + 1)]


@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
def test_the_model_is_what_it_was(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    model = Checkpoint.open(folder / "step-000002").model(CPU)
    with torch.no_grad():
        logits = model(torch.tensor(expected["tokens"]), torch.tensor(expected["z"])).logits
    assert torch.allclose(logits, torch.tensor(expected["logits"]), atol=1e-5)


@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
def test_the_run_goes_on_as_it_did(folder: Path, tmp_path: Path) -> None:
    """The data, its order, the noise and the optimizer, too: another order of sums may move the last digits, and no more."""
    expected = json.loads((folder / "expected.json").read_text())
    run = tmp_path / "run"
    shutil.copytree(folder / "step-000002", run / "checkpoints" / "step-000002")
    (run / "recipe.toml").touch()
    (run / "samples").mkdir()
    train(check_recipe(expected["recipe"], where="golden"), run, device=CPU, resume=Checkpoint.open(run / "checkpoints" / "step-000002"))
    model = Checkpoint.open(run / "checkpoints" / "step-000004").model(CPU)
    for name, weight in model.named_parameters():
        assert float(weight.detach().double().abs().sum()) == pytest.approx(expected["absolute_sums_at_step_4"][name], rel=1e-4), name
