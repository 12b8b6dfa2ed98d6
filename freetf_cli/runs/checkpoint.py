"""Checkpoints: weights, optimizer state, tokenizer and a SHA-256 manifest in one folder, written whole or not at all.

    step-000500/
      model.safetensors      every parameter, once
      optimizer.safetensors  AdamW's moments and step counters, `parameter.moment`
      state.json             format, step, the resolved recipe, facts about the data
      tokenizer.json
      MANIFEST.sha256        in the format of sha256sum; verified on every load

A sharded checkpoint, which several processes wrote (runs/sharded.py), has folders in place of the first two files, and their number in
state.json. `Checkpoint` reads both; `consolidate` makes the first form of the second.

    step-000500/
      model/shard-00001-model-00001-of-00001.safetensors      the rows of each parameter that process 0 had, or none
      optimizer/shard-00001-model-00001-of-00001.safetensors  of moments and step counters

safetensors notices a file that was cut short but loads flipped data bytes, so the manifest is verified before anything is read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from freetf_cli import durable
from freetf_cli.config.files import check_recipe
from freetf_cli.config.recipe import Recipe
from freetf_cli.data import tokenizer as tokenizers
from freetf_cli.data.manifest import MANIFEST as DATA_MANIFEST
from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.errors import InputError, InputErrors
from freetf_cli.latent.build import build_model
from freetf_cli.model.decoder import Decoder
from freetf_cli.runs.tensors import Tensors, write_tensors

FORMAT, FORMAT_VERSION = "freetf-checkpoint", 1
MANIFEST = "MANIFEST.sha256"
SHARDED = "sharded"  # key of the state of a sharded checkpoint: {"processes": 4}
_REQUIRED = ("state.json", "tokenizer.json")
_FILES = (*_REQUIRED, "model.safetensors", "optimizer.safetensors")
_SHARD = re.compile(r"(model|optimizer)/shard-\d{5,}-model-\d{5,}-of-\d{5,}\.safetensors")


def save_checkpoint(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, torch.Tensor] | None,
    state: Mapping[str, Any],
    tokenizer: Tokenizer,
) -> None:
    """Write a checkpoint folder: all files into a temporary folder, flushed to the disk, then one rename.

    optimizer: None of weights from elsewhere, which start a run and cannot be resumed.
    """
    with replacing(folder) as temporary:
        digests = {}
        for part, tensors in (("model", weights), ("optimizer", optimizer)):
            if tensors is None:
                continue
            path = temporary / f"{part}.safetensors"
            write_tensors(tensors, path)
            digests[path.name] = settle(path)
        complete(temporary, state, tokenizer.json, digests)


def consolidate(folder: Path) -> None:
    """Replace a sharded checkpoint by the files that `save_checkpoint` writes, byte for byte; one that is not sharded stays as it is.

    It holds one process's rows of one tensor in memory at a time, and needs disk space for both forms. If it is killed, one of the two
    is complete, and `recover` or the next save removes the other. InputError if the checkpoint is damaged.
    """
    recover(folder.parent)
    _verify(folder)
    state = _read_state(folder / "state.json")
    if state.pop(SHARDED, None) is None:
        return
    with replacing(folder) as temporary:
        digests = {}
        for part in filter(Path.is_dir, (folder / "model", folder / "optimizer")):
            path = temporary / f"{part.name}.safetensors"
            digests[path.name] = Tensors(part).write(path)
            path.chmod(0o644)
        complete(temporary, state, (folder / "tokenizer.json").read_text(encoding="utf-8"), digests)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `folder` at the end of the block. After an error `folder` is unchanged."""
    recover(folder.parent)
    temporary, old = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    temporary.mkdir(parents=True)
    try:
        yield temporary
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


def settle(path: Path) -> str:
    """Flush a file that was written, and make it readable (safetensors writes 0600). Returns its SHA-256."""
    path.chmod(0o644)
    durable.flush(path)
    return durable.sha256_of(path)


def complete(temporary: Path, state: Mapping[str, Any], tokenizer: str, digests: Mapping[str, str]) -> None:
    """Add state, tokenizer and manifest to the tensors of a checkpoint, and flush the folders. digests: of the tensors' files, by name."""
    text = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **state}, indent=1, allow_nan=False)
    found = dict(digests)
    for name, content in (("state.json", text + "\n"), ("tokenizer.json", tokenizer)):
        (temporary / name).write_text(content, encoding="utf-8")
        found[name] = settle(temporary / name)
    (temporary / MANIFEST).write_text("".join(f"{found[name]}  {name}\n" for name in sorted(found)), encoding="utf-8")
    settle(temporary / MANIFEST)
    for part in sorted({(temporary / name).parent for name in found}, reverse=True):  # the outer folder last
        durable.flush(part)


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
        if (SHARDED in state) != (folder / "model").is_dir():
            raise InputError(f"the state does not fit the files: only a sharded checkpoint has '{SHARDED}'", str(folder / "state.json"))
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

    @property
    def weights(self) -> Path:
        """The file or folder of the weights, for `Tensors`."""
        return _part(self.folder, "model")

    @property
    def moments(self) -> Path:
        """The file or folder of the optimizer's tensors. InputError if there is none."""
        path = _part(self.folder, "optimizer")
        if not path.exists():
            raise InputError("the checkpoint has no optimizer state and cannot be resumed", str(self.folder))
        return path

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of model.safetensors, or of what `consolidate` would make of a sharded checkpoint's weights, which takes reading them."""
        return _read_manifest(self.folder).get("model.safetensors") or Tensors(self.weights).sha256()

    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return tokenizers.load(self.folder / "tokenizer.json")

    def model(self, device: torch.device) -> Decoder:
        """The model with its weights on `device`, in evaluation mode."""
        with torch.device("meta"):
            model = build_model(self.recipe.model, self.recipe.latent)
        load_weights(model, self.weights, device)
        return model.eval()

    def optimizer(self) -> dict[str, torch.Tensor]:
        """The optimizer's tensors, on the CPU."""
        tensors = Tensors(self.moments)
        return {name: tensors.whole(name, torch.device("cpu")) for name in tensors.shapes}


def load_weights(model: Decoder, path: Path, device: torch.device, *, partial: bool = False) -> list[str]:
    """Load a file's or folder's tensors into a model, which may be on the meta device. Raises InputError unless names and shapes match.

    Shapes are compared with the headers before anything is allocated. partial: parameters that the file does not have keep their
    values (a Free model that starts from its baseline). Returns the names of those parameters.
    """
    tensors = Tensors(path)
    missing = check_fit(tensors, {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}, partial=partial)
    model.load_state_dict({name: tensors.whole(name, device) for name in tensors.shapes}, strict=False, assign=True)
    return missing


def check_fit(tensors: Tensors, expected: Mapping[str, tuple[int, ...]], *, partial: bool = False) -> list[str]:
    """Raise InputError unless names and shapes are the expected ones. Returns the names that are missing, if partial allows it."""
    found = tensors.shapes
    missing = [name for name in expected if name not in found]
    faults = [f"{name} {shape} is not in the model" for name, shape in found.items() if name not in expected]
    faults += [f"{name} is {found[name]}, not {shape}" for name, shape in expected.items() if found.get(name, shape) != shape]
    faults += [] if partial else [f"{name} is missing" for name in missing]
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise InputError(f"the weights do not fit the model: {faults[0]}{more}", str(tensors.path))
    return missing


def _part(folder: Path, part: str) -> Path:
    """The file, or in a sharded checkpoint the folder, of "model" or "optimizer"; it may not exist."""
    file = folder / f"{part}.safetensors"
    return file if file.is_file() else folder / part


def _verify(folder: Path) -> None:
    """Compare every file of a checkpoint with its manifest."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise InputError(f"not a checkpoint: it has no {MANIFEST}", str(folder))
    for path in (manifest, folder / "state.json"):
        if path.is_file() and path.stat().st_size > durable.SMALL:
            raise InputError(f"the file has {path.stat().st_size:,} bytes, far more than a checkpoint's", str(path))
    entries = _read_manifest(folder)
    _check_names(folder, entries)
    for name, digest in entries.items():
        path = folder / name
        if not path.is_file():
            raise InputError("a file of the checkpoint is missing", str(path))
        if durable.sha256_of(path) != digest:
            raise InputError("the file is damaged or cut short: its SHA-256 does not match the manifest", str(path))
    places = ("model.safetensors", "optimizer.safetensors", "model/*", "optimizer/*")
    for path in (path for place in places for path in folder.glob(place)):  # whatever is there would be read
        if path.relative_to(folder).as_posix() not in entries:
            raise InputError("the file does not belong to the checkpoint: its manifest does not list it", str(path))


def _check_names(folder: Path, entries: Iterable[str]) -> None:
    """Raise InputError unless a manifest names the files of one form of a checkpoint, and no links."""
    manifest = folder / MANIFEST
    for name in _REQUIRED:
        if name not in entries:
            raise InputError(f"the checkpoint's manifest does not list {name}", str(manifest))
    sharded = any(_SHARD.fullmatch(name) for name in entries)
    if not any(name.startswith("model/") if sharded else name == "model.safetensors" for name in entries):
        raise InputError("the checkpoint's manifest does not list model.safetensors", str(manifest))
    for name in entries:
        belongs = name in _REQUIRED or (_SHARD.fullmatch(name) if sharded else name in _FILES)
        path = folder / name
        if not belongs or path.is_symlink() or (path.parent != folder and path.parent.is_symlink()):
            raise InputError("the checkpoint lists a file that does not belong to it", str(path))


def size_of(folder: Path) -> int:
    """The bytes of all files of a checkpoint folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


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
            checkpoint.tokenizer(), checkpoint.weights_sha256  # read now, while the folder is there
            return checkpoint, model
        except (InputError, OSError, RuntimeError):  # safetensors and torch have several for a file that is gone
            if checkpoint.folder.exists():
                raise
