"""Checkpoints: weights, optimizer state, tokenizer and a SHA-256 manifest in one folder, written whole or not at all.

    step-000500/
      model.safetensors      every parameter, once
      optimizer.safetensors  AdamW's moments and step counters, `parameter.moment`
      state.json             format, step, the resolved recipe, facts about the data
      tokenizer.json
      MANIFEST.sha256        in the format of sha256sum; verified on every load

safetensors notices a file that was cut short but loads flipped data bytes, so the manifest is verified before anything is read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from freetf_cli import durable
from freetf_cli.config.files import check_recipe
from freetf_cli.config.recipe import Recipe
from freetf_cli.data import tokenizer as tokenizers
from freetf_cli.data.manifest import MANIFEST as DATA_MANIFEST
from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.errors import InputError, InputErrors
from freetf_cli.latent.build import build_model
from freetf_cli.model.decoder import Decoder

FORMAT, FORMAT_VERSION = "freetf-checkpoint", 1
MANIFEST = "MANIFEST.sha256"
_REQUIRED = ("model.safetensors", "state.json", "tokenizer.json")
_FILES = (*_REQUIRED, "optimizer.safetensors")


def save_checkpoint(
    folder: Path, model: Decoder, optimizer: Mapping[str, torch.Tensor], state: Mapping[str, Any], tokenizer: Tokenizer
) -> None:
    """Write a checkpoint folder: all files into a temporary folder, flushed to the disk, then one rename."""
    recover(folder.parent)
    temporary, old = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    temporary.mkdir(parents=True)
    try:
        for part, tensors in (("model", dict(model.named_parameters())), ("optimizer", optimizer)):
            contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, temporary / f"{part}.safetensors")
        text = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **state}, indent=1, allow_nan=False)
        (temporary / "state.json").write_text(text + "\n", encoding="utf-8")
        (temporary / "tokenizer.json").write_text(tokenizer.json, encoding="utf-8")
        names = sorted(path.name for path in temporary.iterdir())
        (temporary / MANIFEST).write_text("".join(f"{durable.sha256_of(temporary / name)}  {name}\n" for name in names), encoding="utf-8")
        for name in [*names, MANIFEST]:
            (temporary / name).chmod(0o644)  # safetensors writes 0600
            durable.flush(temporary / name)
        durable.flush(temporary)
        if folder.exists():
            durable.move(folder, old)
        durable.move(temporary, folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        durable.name_path(error, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover(checkpoints: Path) -> None:
    """Clean up after a killed save: remove its temporary files, and put back a checkpoint that it had moved out of the way."""
    durable.sweep(checkpoints)
    for old in checkpoints.glob(".step-*.old"):
        folder = old.with_name(old.name[1:-4])
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            durable.move(old, folder)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files match their manifest."""

    folder: Path
    state: Mapping[str, Any]
    recipe: Recipe

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Verify a checkpoint folder. Raises InputError, which names the damaged file."""
        _verify(folder)
        state = _read_state(folder / "state.json")
        try:
            recipe = check_recipe(state["recipe"], where=folder / "state.json")
        except InputErrors as error:
            first, *others = error.errors
            more = f", and {len(others)} more error{'s' * (len(others) > 1)}" if others else ""
            what = f"the checkpoint's recipe is not one of this version of freetf: {first.what}{more}"
            raise InputError(what, str(folder / "state.json")) from None
        return cls(folder, state, recipe)

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def data_folder(self, named: str) -> str:
        """The folder of the run's data: `named`, or, if the run's recipe names that folder too, its path relative to the run.

        If both exist, the one with the hash of the run's data is returned. Raises InputError if neither exists.
        """
        run = self.folder.resolve().parent.parent
        places = [Path(named)]
        if named == self.recipe.data.dir:  # another one was given to `freetf train`
            places.append(Path(os.path.normpath(run / str(self.state.get("data_folder") or named))))
        found = [place for place in places if (place / DATA_MANIFEST).is_file()]
        if not found:
            where = " and ".join(dict.fromkeys(str(place.absolute()) for place in places))
            hint = "name it with --data DIR; with `freetf train`, --set data.dir=DIR"
            raise InputError(f"the data folder of the run is not there: looked for {where}", str(self.folder), hint)
        sha256 = self.state["data"]["sha256"]
        same = [place for place in found if durable.sha256_of(place / DATA_MANIFEST) == sha256]
        return str((same or found)[0])

    @cached_property
    def sha256(self) -> dict[str, str]:
        """SHA-256 of each file, by name."""
        return _read_manifest(self.folder)

    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return tokenizers.load(self.folder / "tokenizer.json")

    def model(self, device: torch.device) -> Decoder:
        """The model with its weights on `device`, in evaluation mode."""
        with torch.device("meta"):
            model = build_model(self.recipe.model, self.recipe.latent)
        load_weights(model, self.folder / "model.safetensors", device)
        return model.eval()

    def optimizer(self) -> dict[str, torch.Tensor]:
        """The optimizer's tensors, on the CPU."""
        path = self.folder / "optimizer.safetensors"
        if not path.is_file():
            raise InputError("the checkpoint has no optimizer state and cannot be resumed", str(self.folder))
        return _load(path, torch.device("cpu"))


def load_weights(model: Decoder, path: Path, device: torch.device, *, partial: bool = False) -> list[str]:
    """Load a file's tensors into a model, which may be on the meta device. Raises InputError unless names and shapes match.

    Shapes are compared with the file's header before anything is allocated. partial: parameters that the file does not have keep their
    values (a Free model that starts from its baseline). Returns the names of those parameters.
    """
    expected, found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}, _header(path)
    missing = [name for name in expected if name not in found]
    faults = [f"{name} {shape} is not in the model" for name, shape in found.items() if name not in expected]
    faults += [f"{name} is {found[name]}, not {shape}" for name, shape in expected.items() if found.get(name, shape) != shape]
    faults += [] if partial else [f"{name} is missing" for name in missing]
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise InputError(f"the weights do not fit the model: {faults[0]}{more}", str(path))
    tensors = _load(path, device)
    if device.type == "cpu":  # tensors in the file's pages are not aligned, and products would be summed in another order than in training
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    model.load_state_dict(tensors, strict=False, assign=True)
    return missing


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a file."""
    with readable(path), safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        types = {part.get_dtype() for part in slices.values()}
        if types - {"F32"}:
            raise InputError(f"weights must be float32, not {', '.join(sorted(types))}", str(path))
        return {name: tuple(part.get_shape()) for name, part in slices.items()}


def _load(path: Path, device: torch.device) -> dict[str, torch.Tensor]:
    with readable(path):
        return load_file(path, device=str(device))


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise InputError if a block cannot read a safetensors file, or if the header is too large, before the library reads it."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > durable.SMALL:
            raise InputError(f"not a readable safetensors file: its header claims {size:,} bytes", str(path))
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"not a readable safetensors file: {error}", str(path)) from None


def _verify(folder: Path) -> None:
    """Compare every file of a checkpoint with its manifest."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise InputError(f"not a checkpoint: it has no {MANIFEST}", str(folder))
    for path in (manifest, folder / "state.json"):
        if path.is_file() and path.stat().st_size > durable.SMALL:
            raise InputError(f"the file has {path.stat().st_size:,} bytes, far more than a checkpoint's", str(path))
    entries = _read_manifest(folder)
    for name in _REQUIRED:
        if name not in entries:
            raise InputError(f"the checkpoint's manifest does not list {name}", str(manifest))
    for name, digest in entries.items():
        path = folder / name
        if name not in _FILES or path.is_symlink():
            raise InputError("the checkpoint lists a file that does not belong to it", str(path))
        if not path.is_file():
            raise InputError("a file of the checkpoint is missing", str(path))
        if durable.sha256_of(path) != digest:
            raise InputError("the file is damaged or cut short: its SHA-256 does not match the manifest", str(path))


def _read_manifest(folder: Path) -> dict[str, str]:
    """The manifest's SHA-256 of each file, by name."""
    try:
        lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
        return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except ValueError:
        raise InputError("the checkpoint's manifest is damaged", str(folder / MANIFEST)) from None


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise InputError("the checkpoint's state is not valid JSON", str(path)) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError("not the state of a freetf checkpoint", str(path))
    if (version := state.get("format_version")) != FORMAT_VERSION:
        hint = "install a newer freetf" if str(version) > str(FORMAT_VERSION) else ""
        raise InputError(f"checkpoint format {version} is not supported", str(path), hint)
    if type(state.get("step")) is not int or not 0 <= state["step"] < 2**53:
        raise InputError("the checkpoint's state has no step", str(path))
    if not isinstance(state.get("data"), dict) or not isinstance(state["data"].get("sha256"), str):
        raise InputError("the checkpoint's state does not say what data it was trained on", str(path))
    if not isinstance(state.get("recipe"), dict):
        raise InputError("the checkpoint's recipe is not a table", str(path))
    return state


def checkpoint_folders(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. Folders with other names, such as copies, are left out."""
    folders = (path for path in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name) and path.is_dir())
    return sorted(folders, key=folder_step)


def folder_step(folder: Path) -> int:
    """500 for step-000500."""
    return int(folder.name.removeprefix("step-"))


def open_checkpoint(path: Path, warn: Callable[[str], None]) -> Checkpoint:
    """The checkpoint that a RUN argument means: the folder itself if it is a checkpoint, or a run's newest intact checkpoint.

    warn: called with a message for each damaged checkpoint of a run. Raises InputError if there is no intact one.
    """
    if not path.is_dir():
        raise InputError("no such run or checkpoint", str(path), "create a run with `freetf train RECIPE -o RUN`")
    is_run = (path / "recipe.toml").is_file()
    if (path / MANIFEST).is_file() or (path.name.startswith("step-") and not is_run):
        return Checkpoint.open(path)
    folders = checkpoint_folders(path)
    if not folders and is_run:
        raise InputError("the run has no checkpoint yet", str(path))
    if not folders:
        raise InputError("the folder is not a run: it has no checkpoints", str(path), "create a run with `freetf train RECIPE -o RUN`")
    for folder in reversed(folders):
        try:
            return Checkpoint.open(folder)
        except (InputError, OSError) as error:
            if not folder.exists():  # a running training deleted it, and has saved a newer one before
                return open_checkpoint(path, warn)
            if isinstance(error, OSError):
                raise
            warn(f"{error}: trying the checkpoint before it")
    raise InputError("no checkpoint of the run can be read", str(path))


def open_model(path: Path, device: torch.device, warn: Callable[[str], None]) -> tuple[Checkpoint, Decoder]:
    """`open_checkpoint` and its model. If a running training deletes the checkpoint in between, the newest is looked up again."""
    while True:
        checkpoint = open_checkpoint(path, warn)
        try:
            model = checkpoint.model(device)
            checkpoint.tokenizer(), checkpoint.sha256  # read now, while the folder is there
            return checkpoint, model
        except (InputError, OSError, RuntimeError):  # safetensors and torch have several for a file that is gone
            if checkpoint.folder.exists():
                raise
