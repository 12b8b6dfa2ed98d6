"""Checkpoints load as they were saved, or not at all."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from freetf_cli import durable
from freetf_cli.config.files import check_recipe
from freetf_cli.config.recipe import Recipe
from freetf_cli.data.tokenizer import characters
from freetf_cli.durable import SMALL
from freetf_cli.errors import InputError
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.runs import checkpoint as checkpoint_module
from freetf_cli.runs.checkpoint import MANIFEST, Checkpoint, open_checkpoint, open_model, recover, save_checkpoint
from freetf_cli.runs.folder import RunFolder

RECIPE: Recipe = check_recipe(
    {
        "data": {"task": "letters"},
        "model": {"layers": 2, "width": 16, "heads": 2, "vocab": 5, "context": 8},
        "latent": {"kappa": 0.5, "bits": 3},
        "train": {"steps": 1, "batch": 1, "lr": 1.0},
    },
    where="test",
)


FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json")


def save(folder: Path, step: int = 7) -> torch.nn.Module:
    model = build_model(RECIPE.model, RECIPE.latent)
    initialise_model(model, step)
    state = {"step": step, "recipe": RECIPE.model_dump(exclude_none=True), "data": {"sha256": ""}}
    save_checkpoint(folder, dict(model.named_parameters()), {"x.step": torch.tensor(3.0)}, state, characters("ab!>_", separator=False))
    return model


def remake_manifest(folder: Path) -> None:
    import hashlib

    names = [path.name for path in folder.iterdir() if path.name != MANIFEST]
    (folder / MANIFEST).write_text("".join(f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names))


def test_round_trip(tmp_path: Path) -> None:
    model = save(tmp_path / "step-000007")
    loaded = Checkpoint.open(tmp_path / "step-000007")
    assert (loaded.step, loaded.recipe) == (7, RECIPE)
    for (name, ours), theirs in zip(model.named_parameters(), loaded.model(torch.device("cpu")).parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert loaded.tokenizer().encode("ab_") == [0, 1, 4]
    assert loaded.optimizer()["x.step"] == 3.0
    assert [path.name for path in tmp_path.iterdir()] == ["step-000007"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "empty"])
def test_damage_is_noticed_and_the_file_named(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path / "step-000007")
    file = tmp_path / "step-000007" / name
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        content[-3] ^= 4
        file.write_bytes({"cut": bytes(content[:-5]), "flip": bytes(content), "empty": b""}[damage])
    with pytest.raises(InputError, match=name):
        Checkpoint.open(tmp_path / "step-000007")


def test_newer_formats_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "step-000007")
    state = tmp_path / "step-000007" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "format_version": 2}))
    remake_manifest(state.parent)
    with pytest.raises(InputError, match=r"format 2 is not supported.*newer freetf"):
        Checkpoint.open(state.parent)


def test_a_recipe_of_another_version_is_one_line(tmp_path: Path) -> None:
    """The first fault, and how many more: a line for each would bury what happened."""
    save(tmp_path / "step-7")
    path = tmp_path / "step-7" / "state.json"
    state = json.loads(path.read_text())
    state["recipe"]["model"] |= {"tied": True, "rope_base": 1.0}
    path.write_text(json.dumps(state))
    remake_manifest(tmp_path / "step-7")
    with pytest.raises(InputError, match=r"not one of this version of freetf: unknown key 'model\.\w+'.*, and 1 more error") as found:
        Checkpoint.open(tmp_path / "step-7")
    assert len(found.value.lines()) == 1


def test_weights_of_another_shape_are_refused_before_they_are_read(tmp_path: Path) -> None:
    save(tmp_path / "step-000007")
    state = tmp_path / "step-000007" / "state.json"
    tree = json.loads(state.read_text())
    tree["recipe"]["model"]["width"] = 32
    state.write_text(json.dumps(tree))
    remake_manifest(state.parent)
    with pytest.raises(InputError, match=r"do not fit the model: .* is \(.*\), not \("):
        Checkpoint.open(state.parent).model(torch.device("cpu"))


def test_a_manifest_may_not_reach_outside(tmp_path: Path) -> None:
    save(tmp_path / "step-000007")
    manifest = tmp_path / "step-000007" / MANIFEST
    manifest.write_text(manifest.read_text() + f"{'0' * 64}  ../secret\n")
    with pytest.raises(InputError, match="does not belong"):
        Checkpoint.open(manifest.parent)


def test_a_run_falls_back_to_its_newest_intact_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path / "checkpoints" / f"step-{step:06d}", step)
    for step in (3, 2):
        (tmp_path / "checkpoints" / f"step-{step:06d}" / "model.safetensors").write_bytes(b"x")
    warnings: list[str] = []
    assert open_checkpoint(tmp_path, warnings.append).step == 1
    assert len(warnings) == 2
    assert "step-000003" in warnings[0]
    with pytest.raises(InputError, match="damaged"):  # a checkpoint that was named is not replaced by another
        open_checkpoint(tmp_path / "checkpoints" / "step-000003", warnings.append)
    (tmp_path / "checkpoints" / "step-000001" / "state.json").unlink()
    with pytest.raises(InputError, match="no checkpoint of the run can be read"):
        open_checkpoint(tmp_path, warnings.append)


@pytest.mark.parametrize("reader", ["_verify", "_read_state", "Tensors", "tokenizers.load", "_read_manifest"])
def test_a_checkpoint_that_a_running_training_deletes_is_looked_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    """It is gone just before one of its files is read, and a newer one is there."""
    save(tmp_path / "checkpoints" / "step-000007")
    owner, name = (checkpoint_module.tokenizers, "load") if "." in reader else (checkpoint_module, reader)
    plain, warnings = getattr(owner, name), list[str]()

    def rotated(path: Path, *words: object, **options: object) -> object:
        if (old := tmp_path / "checkpoints" / "step-000007").exists():
            save(tmp_path / "checkpoints" / "step-000008", step=8)
            shutil.rmtree(old)
        return plain(path, *words, **options)

    monkeypatch.setattr(owner, name, rotated)
    checkpoint, model = open_model(tmp_path, torch.device("cpu"), warnings.append)
    assert (checkpoint.step, warnings) == (8, [])
    want = load_file(tmp_path / "checkpoints" / "step-000008" / "model.safetensors")
    assert all(torch.equal(want[name], weight) for name, weight in model.state_dict().items())
    shutil.rmtree(tmp_path / "checkpoints")
    assert checkpoint.tokenizer().vocab_size == 5 and len(checkpoint.weights_sha256) == 64


def test_a_checkpoint_is_deleted_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (7, 8):
        save(tmp_path / "checkpoints" / f"step-00000{step}", step=step)

    def killed(path: Path, **_: object) -> None:
        (path / "model.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        RunFolder(tmp_path).prune(keep_last=1, keep_every=0)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-000008"]
    recover(tmp_path / "checkpoints")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000008"]


def test_a_failed_save_keeps_the_old_checkpoint_and_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "step-000007")
    before = (tmp_path / "step-000007" / MANIFEST).read_text()

    def full(path: Path) -> None:
        if path.is_dir():
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "flush", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "step-000007", step=9)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000007"]
    assert (tmp_path / "step-000007" / MANIFEST).read_text() == before


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_by_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Writes and safetensors raise errors that do not say where."""

    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr("freetf_cli.runs.tensors.save_file", full)
    with pytest.raises(OSError) as caught:
        save(tmp_path / "step-000007")
    assert caught.value.errno == 28 and "step-000007" in caught.value.filename


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
def test_a_full_disk_is_named_by_the_record(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.faults_file = Path("/dev/full")
    with pytest.raises(OSError) as caught:
        run.append_fault(step=1)
    assert (caught.value.errno, caught.value.filename) == (28, "/dev/full")


def test_another_error_of_safetensors_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freetf_cli.runs.tensors.save_file", lambda *_: (_ for _ in ()).throw(SafetensorError("invalid")))
    with pytest.raises(SafetensorError, match="invalid"):
        save(tmp_path / "step-000007")


@pytest.mark.parametrize(("make", "what"), [("nothing", "no such run"), ("empty", "not a run"), ("young", "no checkpoint yet")])
def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path, make: str, what: str) -> None:
    path = tmp_path / "x"
    if make != "nothing":
        path.mkdir()
    if make == "young":
        (path / "recipe.toml").write_text("")
    with pytest.raises(InputError, match=what):
        open_checkpoint(path, print)


def test_files_are_flushed_before_the_rename_and_the_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    fsync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (happened.append(Path(f"/proc/self/fd/{handle}").readlink().name), fsync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (happened.append("rename"), rename(self, target))[1])
    save(tmp_path / "step-000007")
    at = happened.index("rename")
    assert set(happened[:at]) >= {"model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json", MANIFEST}
    assert happened[at + 1 :] == [tmp_path.name]


def test_a_link_in_a_checkpoint_is_not_followed(tmp_path: Path) -> None:
    save(tmp_path / "step-000007")
    file = tmp_path / "step-000007" / "tokenizer.json"
    file.rename(tmp_path / "elsewhere.json")
    file.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(InputError, match="does not belong"):
        Checkpoint.open(file.parent)


def test_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "step-000007")
    weights = tmp_path / "step-000007" / "model.safetensors"
    save_file({name: value.to(torch.int8) for name, value in load_file(weights).items()}, weights)
    remake_manifest(weights.parent)
    with pytest.raises(InputError, match=r"must be float32, not I8, .*model\.safetensors"):
        Checkpoint.open(weights.parent).model(torch.device("cpu"))


def test_a_failed_replacement_restores_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "step-000007")
    before = (tmp_path / "step-000007" / MANIFEST).read_text()
    rename = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="Input/output"):
        save(tmp_path / "step-000007", step=9)
    assert (tmp_path / "step-000007" / MANIFEST).read_text() == before


def test_a_header_that_claims_too_much_is_not_read(tmp_path: Path) -> None:
    save(tmp_path / "step-000007")
    weights = tmp_path / "step-000007" / "model.safetensors"
    weights.write_bytes((SMALL + 1).to_bytes(8, "little") + weights.read_bytes()[8:])
    remake_manifest(weights.parent)
    with pytest.raises(InputError, match=r"header claims 10,000,001 bytes, .*model\.safetensors"):
        Checkpoint.open(weights.parent).model(torch.device("cpu"))


@pytest.mark.parametrize("name", ["state.json", MANIFEST])
def test_a_file_of_many_megabytes_is_not_read(tmp_path: Path, name: str) -> None:
    save(tmp_path / "step-000007")
    with (tmp_path / "step-000007" / name).open("ab") as file:
        file.truncate(SMALL + 1)
    with pytest.raises(InputError, match="far more than a checkpoint's"):
        Checkpoint.open(tmp_path / "step-000007")
