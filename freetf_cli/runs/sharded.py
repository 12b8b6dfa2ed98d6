"""Checkpoints of several processes: each writes its own rows of the tensors, in the background; any number of processes loads them.

PyTorch's distributed checkpoint (DCP) copies the tensors to the CPU, decides who writes what, and gives the files their form (safetensors,
no pickle), which is described in `runs/checkpoint.py`. Added here: files that are flushed, hashed and renamed together, a thread that does
not hold up training, and one error on all processes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint._hf_utils import _gen_file_name
from torch.distributed.checkpoint._state_dict_stager import StateDictStager
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.tensor import DTensor

from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.errors import FreetfError
from freetf_cli.runs.checkpoint import SHARDED, Checkpoint, check_fit, complete, replacing, settle
from freetf_cli.runs.tensors import METADATA, OFFSETS, Tensors, write_tensors

T = TypeVar("T")


class ShardedSaver:
    """Saves checkpoints together with the other processes of a group, one checkpoint at a time.

    All processes call the same methods in the same order. `torch.distributed` must be initialised. In a checkpoints folder, nothing else
    may save, consolidate or clean up until `wait` has returned.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, *, pin: bool = False) -> None:
        """group: of all processes, on gloo, and used by nothing else. By default one is made, which all processes must do together.

        pin: copy into pinned memory, for tensors on a GPU.
        """
        self._group = dist.new_group(backend="gloo") if group is None else group
        self._rank, self._size = dist.get_rank(self._group), dist.get_world_size(self._group)
        # Not DefaultStager: that of torch 2.11 frees its memory after each save, and pinning it again takes longer than the copy.
        self._stager = StateDictStager(pin_memory=pin, share_memory=False)
        self._saving: Future[None] | None = None
        self._reserving: threading.Thread | None = None

    def reserve(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Allocate the memory for copies of these tensors, in the background: the first save then holds up training no longer than others.

        Pinned memory for a large model takes many seconds. An error is left to the first save, which will meet it again.
        """
        parts = {"model": self._ours(weights), "optimizer": self._ours(moments)}
        self._reserving = threading.Thread(target=self._stage, args=(parts,), name="checkpoint memory", daemon=True)
        self._reserving.start()

    def save(
        self,
        folder: Path,
        weights: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        state: Mapping[str, Any],
        tokenizer: Tokenizer,
        *,
        asynchronous: bool,
    ) -> None:
        """Save a checkpoint folder, which replaces one of that name. First waits for the previous save, and raises its error.

        weights, moments: by name, in the same order everywhere; DTensors sharded by rows, or tensors that are equal on all processes.
        asynchronous: return as soon as the tensors are copied to the CPU; then they may change, and `wait` raises the error of the save.
        state and tokenizer: of process 0; not changed until `wait`.
        """
        self.wait()
        self._reserved()
        parts = {name: self._ours(tensors) for name, tensors in (("model", weights), ("optimizer", moments)) if tensors}
        work = self._write, folder, parts, state, tokenizer, self._stage(parts)
        self._saving = Future()
        if asynchronous:  # a daemon: a process that fails does not wait for it
            threading.Thread(target=_run, args=(self._saving, *work), name="checkpoint", daemon=True).start()
        else:
            _run(self._saving, *work)
            self.wait()

    @property
    def saving(self) -> bool:
        """Whether a save goes on in the background. Processes may see its end at different times."""
        return self._saving is not None and not self._saving.done()

    def wait(self) -> None:
        """Return when the last save is durable, or raise its error, OSError or FreetfError, on every process."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def close(self) -> None:
        """Wait for the last save, and free the memory for copies."""
        try:
            self.wait()
        finally:
            self._reserved()
            self._stager.close()  # type: ignore[no-untyped-call]

    def _reserved(self) -> None:
        """Return when `reserve` has ended."""
        if self._reserving is not None:
            self._reserving.join()
        self._reserving = None

    def _ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that this process writes."""
        numbered = enumerate(tensors.items())
        return {name: tensor.detach() for number, (name, tensor) in numbered if _is_ours(tensor, number, self._rank, self._size)}

    def _stage(self, parts: dict[str, dict[str, Tensor]]) -> Exception | None:
        """Replace tensors by copies on the CPU, in memory that is kept for the next save. Returns an error, which `_write` tells all."""
        devices = {tensor.device for tensors in parts.values() for tensor in tensors.values() if tensor.is_cuda}
        try:
            for name, tensors in parts.items():
                parts[name] = self._stager.stage(tensors, non_blocking=True)
            for device in devices:  # a thread has another current device than the one that started it
                torch.cuda.current_stream(device).synchronize()
        except Exception as error:
            return error
        return None

    def _write(
        self,
        folder: Path,
        parts: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        tokenizer: Tokenizer,
        error: Exception | None,
    ) -> None:
        """Write a checkpoint with the other processes, in the steps of `_together`: no process goes on after another has failed."""
        main, temporary = self._rank == 0, folder.with_name(f".{folder.name}.tmp")

        def begin() -> None:
            if error is not None:
                raise error
            if main:
                stack.enter_context(replacing(folder))

        def finish() -> None:
            if main:
                if absent := [name for name in digests if not (temporary / name).is_file()]:
                    raise FreetfError(f"process 0 does not see {absent[0]}: all hosts must write into the same folder", str(temporary))
                complete(temporary, {**state, SHARDED: {"processes": self._size}}, tokenizer.json, digests)
                stack.close()

        with ExitStack() as stack:
            self._together(begin)
            digests: dict[str, str] = {}
            for name, tensors in parts.items():
                writer = _Writer(temporary / name)
                self._save_part(tensors, writer)
                for found in self._together(writer.digests):
                    digests |= {f"{name}/{file}": digest for file, digest in found.items()}
            self._together(finish)

    def _save_part(self, tensors: Mapping[str, Tensor], writer: _Writer) -> None:
        try:
            dcp_save({**tensors}, storage_writer=writer, process_group=self._group)
        except CheckpointException as error:  # is a BaseException, of many lines
            rank, (failure, _) = next(iter(error.failures.items()))
            raise FreetfError(f"process {rank} could not save the checkpoint: {failure}") from error

    def _together(self, step: Callable[[], T]) -> list[T]:
        """Do a step on all processes. Returns what each has returned, by rank; raises on all of them if it failed on one."""
        result, failure = None, None
        try:
            result = step()
        except Exception as error:
            failure = error
        told: list[Any] = [None] * self._size
        dist.all_gather_object(told, (result, failure and _described(failure)), group=self._group)
        failed = [rank for rank, (_, description) in enumerate(told) if description is not None]
        if failed and failed[0] == self._rank and failure is not None:
            raise failure
        if failed:
            raise _error(failed[0], told[failed[0]][1])
        return [found for found, _ in told]


def _is_ours(tensor: Tensor, number: int, rank: int, size: int) -> bool:
    """Whether this process writes the rows of a tensor that it has. Where several have the same rows, they take turns by its number."""
    if not isinstance(tensor, DTensor):
        return number % size == rank
    places = tensor.device_mesh.get_coordinate()
    copies = [dim for dim, placement in enumerate(tensor.placements) if placement.is_replicate()]
    return places is not None and all(number % tensor.device_mesh.size(dim) == places[dim] for dim in copies)


class _Writer(HuggingFaceStorageWriter):
    """DCP's writer of safetensors, into one file a process, with two changes.

    The tensors go straight to the file: DCP makes the whole file in memory first, while no other thread of Python runs. And an error is
    kept for `digests`: DCP sends errors to the other processes in pickles, and one that cannot be pickled (every one in torch 2.11 on
    Python 3.13) leaves them waiting.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), save_distributed=True)
        self._folder = path
        self._file: str | None = None
        self._error: Exception | None = None

    def write_data(self, plan: Any, planner: Any) -> Any:
        try:
            if plan.items:
                tensors = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
                offsets = {item.index.fqn: {"saved_offsets": [*item.tensor_data.chunk.offsets]} for item in plan.items}
                self._file = _gen_file_name(1, 1, plan.storage_data["shard_index"])
                write_tensors(tensors, self._folder / self._file, {**METADATA, OFFSETS: json.dumps(offsets)})
        except Exception as error:
            self._error = error
        results: Any = torch.futures.Future()  # DCP needs them for its own metadata file only, which this form does not have
        results.set_result([])
        return results

    def digests(self) -> dict[str, str]:
        """SHA-256 of the file that this process wrote, by name; the file is flushed. Raises the error of `write_data`."""
        if self._error is not None:
            raise self._error
        return {self._file: settle(self._folder / self._file)} if self._file else {}


def load_sharded(
    checkpoint: Checkpoint, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor] | None = None, *, partial: bool = False
) -> list[str]:
    """Fill tensors of any device with those of a checkpoint of either form; each process reads only the rows of its DTensors.

    Needs no communication. moments None: only the weights. partial: weights that the checkpoint lacks keep their values; their names are
    returned. InputError unless all other names and shapes match.
    """
    tensors = Tensors(checkpoint.weights)
    missing = check_fit(tensors, {name: tuple(tensor.shape) for name, tensor in weights.items()}, partial=partial)
    _fill(tensors, weights)
    if moments is not None:
        tensors = Tensors(checkpoint.moments)
        check_fit(tensors, {name: tuple(tensor.shape) for name, tensor in moments.items()})
        _fill(tensors, moments)
    return missing


@torch.no_grad()
def _fill(tensors: Tensors, targets: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's tensors into those of the same names, if it has them."""
    for name in filter(tensors.shapes.__contains__, targets):
        target, start = targets[name], 0
        if isinstance(target, DTensor):
            (rows,) = target.__create_chunk_list__()  # type: ignore[no-untyped-call]
            start, target = (rows.offsets[0] if rows.offsets else 0), target.to_local()
        tensors.fill(name, target, start)


def _run(saving: Future[None], work: Callable[..., None], *arguments: Any) -> None:
    """Run work in a thread, and store its result or exception in a future."""
    try:
        work(*arguments)
    except BaseException as error:
        saving.set_exception(error)
    else:
        saving.set_result(None)


def _described(error: Exception) -> tuple[Any, ...]:
    """An error as plain values that can be sent to another process."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno, error.strerror, error.filename and str(error.filename)
    return (f"{type(error).__name__}: {error}",)


def _error(rank: int, description: tuple[Any, ...]) -> Exception:
    """The error of another process, from its description."""
    if len(description) == 1:
        return FreetfError(f"process {rank} could not save the checkpoint: {description[0]}")
    number, text, name = description
    return OSError(number, text, name) if name else OSError(number, text)
