"""Checkpoints of 1, 2 and 4 processes on gloo: saved, read by one process, loaded by another number of processes, made one file."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from itertools import starmap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement

from freetf_cli import durable
from freetf_cli.data.tokenizer import characters
from freetf_cli.errors import FreetfError, InputError
from freetf_cli.evaluation.weights import compare_weights
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.runs import sharded
from freetf_cli.runs.checkpoint import MANIFEST, Checkpoint, consolidate, open_checkpoint, recover, save_checkpoint
from freetf_cli.runs.sharded import ShardedSaver, load_sharded
from freetf_cli.runs.tensors import Tensors
from tests.runs.test_checkpoint import RECIPE

CPU = torch.device("cpu")
STATE = {"step": 7, "recipe": RECIPE.model_dump(exclude_none=True), "data": {"sha256": "", "name": "ä"}, "tokens": 0.1}
TOKENIZER = characters("ab!>_", separator=False)
MODES = ("fsdp", "hsdp", "plain")


def model_of(seed: int) -> torch.nn.Module:
    model = build_model(RECIPE.model, RECIPE.latent)
    initialise_model(model, seed)
    return model


def moments_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other numbers for each weight, of its shape, and a counter."""
    found = {}
    for number, (name, weight) in enumerate(weights.items()):
        found[f"{name}.exp_avg"], found[f"{name}.exp_avg_sq"] = weight * 3 + 1, weight.square() + number
        found[f"{name}.step"] = torch.tensor(7.0)
    return found


def whole(seed: int = 7) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    weights = {name: weight.detach() for name, weight in model_of(seed).named_parameters()}
    return weights, moments_of(weights)


def spread(tensors: dict[str, Tensor], mode: str) -> dict[str, Tensor]:
    """Tensors sharded as in a mode. Some have fewer rows than there are processes, so that some processes have none."""
    size = dist.get_world_size()
    if mode == "plain":
        return {name: tensor.clone() for name, tensor in tensors.items()}
    hsdp = mode == "hsdp" and size > 1
    mesh = init_device_mesh("cpu", (2, size // 2) if hsdp else (size,))
    placements: list[Placement] = [Replicate(), Shard(0)] if hsdp else [Shard(0)]
    return {
        name: padded(distribute_tensor(tensor, mesh, placements)) if tensor.dim() else tensor.clone() for name, tensor in tensors.items()
    }


def padded(tensor: DTensor) -> DTensor:
    """The same DTensor, with its rows at the front of a larger storage, as FSDP has them."""
    rows = tensor.to_local()
    storage = torch.cat([rows, rows.new_full((1, *rows.shape[1:]), torch.nan)])[: len(rows)]
    return DTensor.from_local(storage, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride())


def full(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()}


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def processes(count: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> None:
    """Call work(*arguments) in `count` processes of one group; none may fail."""
    rendezvous = folder / f".rendezvous-{os.urandom(4).hex()}"

    def member(rank: int) -> None:
        try:
            if sys.platform == "linux":
                os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            store = dist.FileStore(str(rendezvous), count)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=60))
            work(*arguments)
            dist.destroy_process_group()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)

    members = [multiprocessing.get_context("fork").Process(target=member, args=(rank,)) for rank in range(count)]
    for one in members:
        one.start()
    for one in members:
        one.join(90)
    codes = [one.exitcode for one in members]
    for one in members:
        if one.is_alive():
            one.kill()
    rendezvous.unlink(missing_ok=True)
    assert codes == [0] * count


def save(folder: Path, mode: str = "fsdp", seed: int = 7, *, asynchronous: bool = True) -> None:
    """Save a checkpoint in the processes of a group."""
    saver = ShardedSaver()
    weights, moments = (spread(part, mode) for part in whole(seed))
    saver.save(folder, weights, moments, STATE, TOKENIZER, asynchronous=asynchronous)
    saver.close()


@pytest.fixture(scope="module", params=[1, 2, 4])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each number of processes."""
    folder = tmp_path_factory.mktemp("saved")
    processes(request.param, folder, save, folder / "step-000007")
    return folder / "step-000007"


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "step-000007")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of one process that `saved` should become."""
    folder = tmp_path_factory.mktemp("single") / "step-000007"
    save_checkpoint(folder, dict(model_of(7).named_parameters()), whole()[1], STATE, TOKENIZER)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def remake_manifest(folder: Path) -> None:
    found = {name: content for name, content in files(folder).items() if name != MANIFEST}
    (folder / MANIFEST).write_text("".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in found.items()))


def test_one_process_reads_it_as_any_checkpoint(saved: Path, single: Path) -> None:
    weights, moments = whole()
    loaded = open_checkpoint(saved, print)
    assert (loaded.step, loaded.recipe, loaded.tokenizer().json) == (7, RECIPE, TOKENIZER.json)
    assert equal(dict(loaded.model(CPU).named_parameters()), weights)
    assert equal(loaded.optimizer(), moments)
    assert loaded.weights_sha256 == Checkpoint.open(single).weights_sha256
    changes = compare_weights(loaded.weights, single / "model.safetensors").all
    assert changes is not None
    assert changes.relative == 0


def test_files_on_disk(saved: Path) -> None:
    count = json.loads((saved / "state.json").read_text())["sharded"]["processes"]
    shards = [
        f"{part}/shard-{number:05d}-model-00001-of-00001.safetensors" for part in ("model", "optimizer") for number in range(1, count + 1)
    ]
    names = sorted([*shards, "state.json", "tokenizer.json", MANIFEST])
    assert sorted(files(saved)) == names  # no pickle, such as DCP's .metadata
    assert all((saved / name).stat().st_mode & 0o777 == 0o644 for name in names)


def test_it_becomes_the_files_of_one_process(copied: Path, single: Path) -> None:
    consolidate(copied)
    assert files(copied) == files(single)
    assert [path.name for path in copied.parent.iterdir()] == [copied.name]
    consolidate(copied)
    assert files(copied) == files(single)


def test_pytorch_reads_it(saved: Path) -> None:
    from torch.distributed.checkpoint import load
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    for part, expected in zip(("model", "optimizer"), whole(), strict=True):
        found = {name: torch.full_like(tensor, torch.nan) for name, tensor in expected.items()}
        with warnings.catch_warnings(action="ignore"):  # that torch.distributed is not initialised
            load(found, storage_reader=HuggingFaceStorageReader(str(saved / part)), no_dist=True)
        assert equal(found, expected)


def reload(folder: Path, mode: str) -> None:
    expected = whole()
    weights, moments = ({name: torch.full_like(tensor, torch.nan) for name, tensor in spread(part, mode).items()} for part in expected)
    load_sharded(Checkpoint.open(folder), weights, moments)
    assert equal(full(weights), expected[0])
    assert equal(full(moments), expected[1])


def reload_all(folders: list[Path]) -> None:
    for folder in folders:
        for mode in MODES:
            reload(folder, mode)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_processes_loads_it_in_any_mode(saved: Path, single: Path, tmp_path: Path, count: int) -> None:
    processes(count, tmp_path, reload_all, [saved, single])


def save_in_every_mode(folder: Path) -> None:
    for mode in MODES:
        save(folder / mode / "step-000007", mode)
        save(folder / f"{mode}-at-once" / "step-000007", mode, asynchronous=False)


@pytest.mark.parametrize("count", [2, 4])
def test_every_mode_saves_the_same(tmp_path: Path, single: Path, count: int) -> None:
    processes(count, tmp_path, save_in_every_mode, tmp_path)
    for folder in sorted(tmp_path.glob("*/step-000007")):
        sizes = [sum(path.stat().st_size for path in folder.glob(f"*/shard-{number:05d}-*")) for number in range(1, count + 1)]
        assert min(sizes) > 0.3 * max(sizes), folder
        consolidate(folder)
        assert files(folder) == files(single), folder
    assert len(list(tmp_path.glob("*/step-000007"))) == 2 * len(MODES)


def change_while_saving(folder: Path) -> None:
    """Tensors that change after `save` has returned; saves use the memory that was reserved before."""
    saver = ShardedSaver()
    weights, moments = (spread(part, "fsdp") for part in whole())
    places = []
    stage = saver._stager.stage

    def staged(*arguments: Any, **options: Any) -> Any:
        found = stage(*arguments, **options)
        places.append({name: (each.to_local() if isinstance(each, DTensor) else each).data_ptr() for name, each in found.items()})
        return found

    saver._stager.stage = staged
    saver.reserve(weights, moments)
    for step in (1, 2, 3):
        saver.save(folder / f"step-{step:06d}", weights, moments, {**STATE, "step": step}, TOKENIZER, asynchronous=True)
        for tensor in (*weights.values(), *moments.values()):
            tensor.add_(1)
    saver.wait()
    assert places[0] == places[2] == places[4] == places[6]
    assert places[1] == places[3] == places[5] == places[7]
    assert not saver.saving
    saver.close()


def test_training_goes_on_while_it_saves(tmp_path: Path) -> None:
    processes(2, tmp_path, change_while_saving, tmp_path)
    expected = [whole()[0]]
    for _ in range(2):
        expected.append({name: weight + 1 for name, weight in expected[-1].items()})
    for step, weights in enumerate(expected, 1):
        assert equal(dict(Checkpoint.open(tmp_path / f"step-{step:06d}").model(CPU).named_parameters()), weights)


class Unpicklable(Exception):
    """An error that cannot be sent as it is."""

    def __reduce__(self) -> Any:
        raise TypeError("cannot be pickled")


def fail_on(rank: int, error: Exception, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    if dist.get_rank() == rank:
        patch.setattr(owner, name, fail)


def save_and_fail(folder: Path, rank: int, error: Exception, owner: Any, name: str) -> None:
    """A save that fails on one process, after one that succeeded and before one that does."""
    with pytest.MonkeyPatch.context() as patch:
        saver = ShardedSaver()
        weights, moments = (spread(part, "fsdp") for part in whole())
        fail_on(rank, error, patch, owner, name)
        for asynchronous in (True,) if name == "stage" else (True, False):  # only an asynchronous save copies
            expected = OSError if isinstance(error, OSError) else Unpicklable if dist.get_rank() == rank else FreetfError
            with pytest.raises(expected, match="No space" if isinstance(error, OSError) else "such luck") as found:
                saver.save(folder / "step-000009", weights, moments, STATE, TOKENIZER, asynchronous=asynchronous)
                saver.wait()
            assert not isinstance(error, OSError) or found.value.errno == errno.ENOSPC
        dist.barrier()
        assert [path.name for path in folder.glob("*step*")] == ["step-000007"]
        saver.wait()  # tells an error once
        dist.barrier()
        patch.undo()
        saver.save(folder / "step-000008", weights, moments, {**STATE, "step": 8}, TOKENIZER, asynchronous=True)
        saver.close()


PLACES = [
    (1, sharded, "write_tensors"),  # the disk of a process is full
    (0, durable, "flush"),
    (1, sharded, "settle"),
    (0, sharded, "complete"),
    (0, durable, "move"),
    (0, sharded, "replacing"),
    (1, sharded.StateDictStager, "stage"),
]


FULL, OTHER = OSError(errno.ENOSPC, "No space left on device"), Unpicklable("no such luck")
FAILURES = [(*place, FULL) for place in PLACES] + [(*place, OTHER) for place in (PLACES[0], PLACES[3], PLACES[6])]


@pytest.mark.parametrize(
    ("rank", "owner", "name", "error"), FAILURES, ids=[f"{name}-{type(error).__name__}" for *_, name, error in FAILURES]
)
def test_an_error_on_one_process_is_one_on_all(tmp_path: Path, rank: int, owner: Any, name: str, error: Exception) -> None:
    processes(2, tmp_path, save, tmp_path / "step-000007")
    before = files(tmp_path / "step-000007")
    processes(2, tmp_path, save_and_fail, tmp_path, rank, error, owner, name)
    assert files(tmp_path / "step-000007") == before
    assert Checkpoint.open(tmp_path / "step-000008").step == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000007", "step-000008"]


def save_into_little_space(folder: Path) -> None:
    saver = ShardedSaver()
    weights, moments = (spread(part, "fsdp") for part in whole())
    if dist.get_rank() == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
    saver.save(folder, weights, moments, STATE, TOKENIZER, asynchronous=True)
    with pytest.raises(OSError, match=r"File too large: .*\.step-000009\.tmp/model/shard-00002-") as found:
        saver.wait()
    assert found.value.errno == errno.EFBIG


def test_what_the_system_refuses_is_told_with_the_file(tmp_path: Path) -> None:
    processes(2, tmp_path, save_into_little_space, tmp_path / "step-000009")
    assert list(tmp_path.iterdir()) == []


def save_and_die(folder: Path, rank: int) -> None:
    saver = ShardedSaver()
    weights, moments = (spread(part, "fsdp") for part in whole())
    if dist.get_rank() == rank:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharded, "settle", lambda path: os.kill(os.getpid(), signal.SIGKILL))
            saver.save(folder, weights, moments, STATE, TOKENIZER, asynchronous=True)
            saver.wait()
    saver.save(folder, weights, moments, STATE, TOKENIZER, asynchronous=True)
    with pytest.raises(RuntimeError, match=r"Connection|closed|gloo"):
        saver.wait()
    os._exit(0)  # the group cannot be left


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_stops_the_others_and_hurts_no_checkpoint(tmp_path: Path, rank: int) -> None:
    processes(2, tmp_path, save, tmp_path / "step-000007")
    before = files(tmp_path / "step-000007")
    with pytest.raises(AssertionError, match=r"\[0, -9\]" if rank else r"\[-9, 0\]"):
        processes(2, tmp_path, save_and_die, tmp_path / "step-000007", rank)
    recover(tmp_path)
    assert files(tmp_path / "step-000007") == before
    assert [path.name for path in tmp_path.iterdir()] == ["step-000007"]


def save_and_note(folder: Path, notes: Path) -> None:
    fsync, rename = os.fsync, Path.replace
    with pytest.MonkeyPatch.context() as patch, (notes / str(dist.get_rank())).open("w", buffering=1) as file:
        patch.setattr(os, "fsync", lambda handle: (print(Path(f"/proc/self/fd/{handle}").readlink(), file=file), fsync(handle))[1])
        patch.setattr(Path, "replace", lambda self, target: (print("rename", file=file), rename(self, target))[1])
        save(folder)


def test_every_file_is_flushed_before_the_rename(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    processes(2, tmp_path, save_and_note, tmp_path / "checkpoints" / "step-000007", tmp_path / "notes")
    main, other = ((tmp_path / "notes" / str(rank)).read_text().splitlines() for rank in (0, 1))
    at = main.index("rename")
    flushed = {line.rpartition(".step-000007.tmp")[2].strip("/") for line in (*main[:at], *other)}
    assert flushed >= {*files(tmp_path / "checkpoints" / "step-000007"), "model", "optimizer", ""}
    assert main[at + 1 :] == [str(tmp_path / "checkpoints")]


def consolidate_in_a_fork(folder: Path, flushes: int) -> int:
    """Consolidate in a process that is killed at a flush; its exit code."""
    child = os.fork()
    if child == 0:
        fsync, left = os.fsync, iter(range(flushes))
        os.fsync = lambda handle: fsync(handle) if next(left, None) is not None else os.kill(os.getpid(), signal.SIGKILL)  # type: ignore
        consolidate(folder)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_while_it_becomes_one_file(copied: Path, single: Path) -> None:
    before, found, code = files(copied), [], -9
    while code != 0:
        code = consolidate_in_a_fork(copied, flushes=len(found))
        recover(copied.parent)
        assert [path.name for path in copied.parent.iterdir()] == [copied.name]
        Checkpoint.open(copied)
        found.append(files(copied))
        assert found[-1] in (before, files(single))
        if found[-1] != before:
            shutil.rmtree(copied)
            for name, content in before.items():
                (copied / name).parent.mkdir(parents=True, exist_ok=True)
                (copied / name).write_bytes(content)
    assert len(found) >= 9
    assert before in found[:-1]
    assert found[-1] == files(single)


def shards(folder: Path, part: str = "model") -> list[Path]:
    return sorted((folder / part).iterdir())


@pytest.mark.parametrize("part", ["model", "optimizer"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "empty", "surplus", "link"])
def test_damage_is_noticed_and_the_file_named(copied: Path, part: str, damage: str) -> None:
    file = shards(copied, part)[-1]
    content = bytearray(file.read_bytes())
    if damage == "surplus":
        file = Path(shutil.copy(file, file.with_name("shard-00009-model-00001-of-00001.safetensors")))
    elif damage == "link":
        file.rename(copied.parent / "elsewhere")
        file.symlink_to(copied.parent / "elsewhere")
    elif damage == "gone":
        file.unlink()
    else:
        content[-3] ^= 4
        file.write_bytes({"cut": bytes(content[:-5]), "flip": bytes(content), "empty": b""}[damage])
    with pytest.raises(InputError, match=f"{part}/{file.name}"):
        Checkpoint.open(copied)
    with pytest.raises(InputError, match=f"{part}/{file.name}"):
        consolidate(copied)


def test_a_part_that_is_not_listed_is_refused(copied: Path, single: Path) -> None:
    shutil.copy(single / "model.safetensors", copied)
    with pytest.raises(InputError, match=r"does not list it.*step-000007/model\.safetensors"):
        Checkpoint.open(copied)
    shutil.copytree(copied / "model", copied.parent / "other" / "model")
    shutil.copytree(single, copied.parent / "other", dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"does not list it.*other/model/shard"):
        Checkpoint.open(copied.parent / "other")


@pytest.mark.parametrize("both", [True, False])
def test_the_two_forms_are_not_mixed(copied: Path, single: Path, both: bool) -> None:
    if both:
        shutil.copy(single / "model.safetensors", copied)
    else:
        shutil.copy(single / "state.json", copied)  # the state of the other form
    remake_manifest(copied)
    with pytest.raises(InputError, match="does not belong" if both else r"state does not fit the files.*state\.json"):
        Checkpoint.open(copied)


def test_a_link_in_place_of_a_folder_is_not_followed(copied: Path) -> None:
    (copied / "model").rename(copied.parent / "elsewhere")
    (copied / "model").symlink_to(copied.parent / "elsewhere")
    with pytest.raises(InputError, match="does not belong"):
        Checkpoint.open(copied)


def rewritten(path: Path, *, offset: Any = None, rename: str | None = None, drop: str | None = None, cast: bool = False) -> None:
    """Write a file of rows anew with other contents, as DCP would."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        info = json.loads(file.metadata()["DCP_SHARDING_INFO"])
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.dim() > 1 and len(tensor))
    if offset is not None:
        info[name]["saved_offsets"] = offset
    if drop:
        del tensors[name]
    if rename:
        tensors[rename], info[rename] = tensors.pop(name), info.pop(name)
    if cast:
        tensors = {name: tensor.to(torch.int8) for name, tensor in tensors.items()}
    save_file(tensors, path, {"DCP_SHARDING_INFO": json.dumps(info)})


WRONG = [
    ({"offset": [1, 0]}, r"rows of .* are (missing: rows 0 to 0|there twice)"),
    ({"offset": [0, 1]}, "does not say which rows"),
    ({"offset": [0]}, "does not say which rows"),
    ({"offset": [-1, 0]}, "does not say which rows"),
    ({"offset": [0.0, 0]}, "does not say which rows"),
    ({"offset": {"0": 1}}, "does not say which rows"),
    ({"drop": "it"}, r"do not fit the model|are missing: rows 0"),
    ({"rename": "x"}, r"do not fit the model|are missing: rows 0"),
    ({"cast": True}, "must be float32, not I8"),
]


@pytest.mark.parametrize(("change", "what"), WRONG, ids=[str(change) for change, _ in WRONG])
def test_correct_hashes_of_wrong_rows_are_refused(copied: Path, change: dict[str, Any], what: str) -> None:
    rewritten(shards(copied)[0], **change)
    remake_manifest(copied)
    with pytest.raises(InputError, match=rf"(?s){what}.*model"):
        Checkpoint.open(copied).model(CPU)


@pytest.mark.parametrize("text", [None, "[]", "{", "{}", '{"x": 1}'])
def test_a_file_that_does_not_say_what_it_has_is_refused(copied: Path, text: str | None) -> None:
    file = shards(copied)[0]
    save_file(load_file(file), file, None if text is None else {"DCP_SHARDING_INFO": text})
    remake_manifest(copied)
    with pytest.raises(InputError, match=rf"does not say which rows.*{file.name}"):
        Checkpoint.open(copied).model(CPU)


def test_rows_that_no_file_has_are_not_left_as_they_are(tmp_path: Path) -> None:
    """PyTorch's own reader would: the rows of a process whose files are gone, with a manifest that does not know them."""
    processes(2, tmp_path, save, tmp_path / "step-000007")
    (tmp_path / "step-000007" / "model" / "shard-00001-model-00001-of-00001.safetensors").unlink()
    remake_manifest(tmp_path / "step-000007")
    with pytest.raises(InputError, match=r"are missing: rows 0 to .*shard-00002"):
        Checkpoint.open(tmp_path / "step-000007").model(CPU)


def test_weights_that_do_not_fit_are_refused_before_anything_is_filled(saved: Path) -> None:
    weights, moments = whole()
    checkpoint = Checkpoint.open(saved)
    name = next(iter(weights))
    with pytest.raises(InputError, match=rf"{name} is \(.*\), not \(3, 2\)"):
        load_sharded(checkpoint, {**weights, name: torch.zeros(3, 2)})
    with pytest.raises(InputError, match="new is missing"):
        load_sharded(checkpoint, {**weights, "new": torch.zeros(2)})
    with pytest.raises(InputError, match=rf"{name}.step .* is not in the model"):
        load_sharded(checkpoint, weights, {key: value for key, value in moments.items() if key != f"{name}.step"})
    assert load_sharded(checkpoint, {**weights, "new": torch.zeros(2)}, partial=True) == ["new"]


def test_rows_are_read_across_files(saved: Path) -> None:
    tensors, (weights, _) = Tensors(Checkpoint.open(saved).weights), whole()
    for name, weight in weights.items():
        for start in range(0, len(weight) if weight.dim() else 0, 3):
            stop = min(start + 5, len(weight))
            assert torch.equal(tensors.rows(name, start, stop), weight[start:stop])


def train_with_fsdp(folder: Path) -> None:
    """Two steps of a model that FSDP2 shards; a save after the first, while the second is made."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 1))
    for layer in model:
        fully_shard(layer)
    optimizer = torch.optim.AdamW(fully_shard(model).parameters(), lr=0.1)

    def tensors() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        weights = dict(model.named_parameters())
        return weights, {f"{name}.{key}": value for name, weight in weights.items() for key, value in optimizer.state[weight].items()}

    def step() -> tuple[dict[str, Tensor], ...]:
        optimizer.zero_grad()
        model(torch.ones(2, 6)).square().sum().backward()
        optimizer.step()
        return tuple({name: tensor.detach().clone() for name, tensor in full(part).items()} for part in tensors())

    saver = ShardedSaver()
    after_one = step()
    saver.save(folder, *tensors(), STATE, TOKENIZER, asynchronous=True)
    after_two = step()
    saver.close()
    for part, expected in zip(("model", "optimizer"), after_one, strict=True):
        found = Tensors(folder / part)
        assert equal({name: found.whole(name, CPU) for name in found.shapes}, expected)
    load_sharded(Checkpoint.open(folder), *tensors())
    assert all(starmap(equal, zip(map(full, tensors()), after_one, strict=True)))
    assert all(starmap(equal, zip(step(), after_two, strict=True)))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_run_with_fsdp_continues_from_it(tmp_path: Path, count: int) -> None:
    processes(count, tmp_path, train_with_fsdp, tmp_path / "step-000007")


def test_a_checkpoint_without_moments(tmp_path: Path) -> None:
    def work() -> None:
        saver = ShardedSaver()
        saver.save(tmp_path / "step-000007", spread(whole()[0], "fsdp"), {}, STATE, TOKENIZER, asynchronous=False)
        saver.close()

    processes(2, tmp_path, work)
    with pytest.raises(InputError, match="no optimizer state"):
        Checkpoint.open(tmp_path / "step-000007").optimizer()
    consolidate(tmp_path / "step-000007")
    assert not (tmp_path / "step-000007" / "optimizer.safetensors").exists()
