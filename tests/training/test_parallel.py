"""Several processes train what one does: the same losses, gradient norms, codes and weights, on every engine (gloo, CPU, float32)."""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec

from freetf_cli.config.files import check_recipe
from freetf_cli.config.recipe import Recipe
from freetf_cli.errors import InputErrors
from freetf_cli.latent.binary import PostSampler
from freetf_cli.runs import spread
from freetf_cli.runs.folder import ReadOnlyRun
from freetf_cli.runs.spread import UNIT
from freetf_cli.training import parallel
from freetf_cli.training.loop import Hooks, Loop
from freetf_cli.training.parallel import Replicated
from freetf_cli.training.signals import StopRequest
from freetf_cli.training.start import make_engine, make_model, prepared, resolve
from freetf_cli.training.world import ALONE, World, process_group

CPU = torch.device("cpu")
STEPS = 4
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "ddp": (2, {"parallel.mode": "ddp"}),
    "ddp, accumulated, mismatch": (2, {"parallel.mode": "ddp", "train.grad_accum_steps": 2, "latent.objective.mismatch": 0.3}),
    "fsdp": (2, {"parallel.mode": "fsdp"}),
    "fsdp, blocks together": (2, {"parallel.mode": "fsdp"}),
    "fsdp, accumulated": (2, {"parallel.mode": "fsdp", "train.grad_accum_steps": 2}),
    "fsdp, mismatch": (2, {"parallel.mode": "fsdp", "latent.objective.mismatch": 0.3}),
    "fsdp, kept": (2, {"parallel.mode": "fsdp", "parallel.reshard_after_forward": False, "train.activation_checkpointing": "full"}),
    "fsdp, selective": (2, {"parallel.mode": "fsdp", "train.activation_checkpointing": "selective"}),
    "fsdp, baseline": (2, {"parallel.mode": "fsdp", "latent": None, "model.attention": "differential"}),
    "fsdp of four": (4, {"parallel.mode": "fsdp"}),
    "ddp, turns": (2, {"parallel.mode": "ddp", "train.encoder": {"turns": "alternating", "lr_scale": 2.0}}),
    "fsdp, turns": (2, {"parallel.mode": "fsdp", "train.encoder": {"turns": "alternating", "lr_scale": 2.0}}),
    "hsdp": (4, {"parallel.mode": "hsdp", "parallel.shard": 2}),
    "ddp of four": (4, {"parallel.mode": "ddp"}),
}


def recipe(processes: int, settings: dict[str, Any]) -> Recipe:
    tree: dict[str, Any] = {
        "data": {"task": "reviews"},  # rows have different numbers of targets
        "model": {"layers": 3, "width": 12, "heads": 2, "context": 40, "ffn": 30},  # 30 rows do not divide into 4 equal shards
        "latent": {"kappa": 0.05, "bits": 4, "depth": 1, "objective": {}},
        "train": {"steps": STEPS, "batch": 8, "lr": 3e-3, "eps": 1e-4, "grad_clip": 0.5},
        "eval": {"sequences": 6, "samples": 0},
        "parallel": {"processes": processes},
    }
    for key, value in settings.items():
        *tables, name = key.split(".")
        table = tree
        for each in tables:
            table = table[each]
        table[name] = value
    return check_recipe({key: value for key, value in tree.items() if value is not None}, where="test")


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors, gathered where they are sharded."""
    return {name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone() for name, tensor in tensors.items()}


def trained(made: Recipe, world: World, *, counts: bool = False) -> dict[str, Any]:
    """A few steps: sums, gradient norms and codes of each, the final weights and moments, and the held-out loss.

    counts: of DTensors and their specs after each step, which takes longer than the step.
    """
    made, source = resolve(made)
    engine = make_engine(made, CPU, world, None, None)
    loop = Loop(made, source, engine, ReadOnlyRun(Path("nowhere")), CPU, Hooks(), StopRequest(), world)
    codes: list[Tensor] = []
    for module in engine.model.modules():
        if isinstance(module, PostSampler):
            module.register_forward_pre_hook(lambda _, inputs: codes.append(inputs[0].clone()))
    first = whole(engine.states({})[0])
    steps, drawn, specs = [], [], []
    with loop.batches:
        for _ in range(STEPS):
            codes.clear()
            sums, norm, count, size_bytes = loop.train_step()
            loop.step += 1
            steps.append([*sums.tolist(), float(norm), count, size_bytes])
            rows = [row for span in loop.rows for row in span]
            specs.append(sum(isinstance(each, DTensor | DTensorSpec) for each in gc.get_objects()) if counts else 0)
            drawn.append(dict(zip(rows, torch.cat(codes[: made.train.grad_accum_steps]), strict=True)) if codes else {})
    with engine.whole() as model:
        held_out = loop.evaluate(model)
    from freetf_cli.training.optimizer import named_state

    weights, moments = engine.states(named_state(engine.parameters, *loop.optimizers))
    kept = whole({**weights, **moments})
    return {
        "first": first,
        "steps": steps,
        "codes": drawn,
        "held_out": [held_out.loss, held_out.ce, held_out.kl],
        "kept": kept,
        "specs": specs,
    }


def member(rank: int, size: int, port: int, answers: Any, cases: Mapping[str, tuple[int, dict[str, Any]]] = CASES) -> None:
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in variables.items()}
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    found = {}
    with process_group(CPU, StopRequest()) as world:
        for name, (processes, settings) in cases.items():
            if processes == size:
                spread.UNIT = UNIT if "together" in name else 1  # so that each of these small blocks is a unit
                found[name] = trained(recipe(size, settings), world, counts=name == "fsdp" and rank == 0)
    torch.save((rank, found), answers / f"{rank}.pt")


def together(size: int, folder: Path, target: Callable[..., None] = member) -> list[dict[str, Any]]:
    """What `size` processes found, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes: list[Any] = [context.Process(target=target, args=(rank, size, port, folder), daemon=True) for rank in range(size)]
    for each in processes:
        each.start()
    for each in processes:
        each.join(120)
    assert [each.exitcode for each in processes] == [0] * size
    return [torch.load(folder / f"{rank}.pt")[1] for rank in range(size)]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """For each case what each process found."""
    found: dict[str, list[dict[str, Any]]] = {}
    for size in (2, 4):
        of_ranks = together(size, tmp_path_factory.mktemp(str(size)))
        found |= {name: [each[name] for each in of_ranks] for name in of_ranks[0]}
    return found


@pytest.mark.parametrize("name", CASES)
def test_several_processes_train_what_one_does(several: dict[str, list[dict[str, Any]]], name: str) -> None:
    alone = trained(recipe(1, {key: value for key, value in CASES[name][1].items() if not key.startswith("parallel.")}), ALONE)
    ranks = several[name]
    for each in ranks:
        assert each["steps"] == [pytest.approx(step, rel=1e-5) for step in alone["steps"]]
        assert each["steps"] == ranks[0]["steps"]
        assert each["held_out"] == pytest.approx(alone["held_out"], rel=1e-5)
        assert all(torch.equal(each["first"][key], tensor) for key, tensor in alone["first"].items())
        for key, tensor in alone["kept"].items():
            torch.testing.assert_close(each["kept"][key], tensor, rtol=2e-3, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")
    for step, codes in enumerate(alone["codes"]):
        together_codes = {row: code for each in ranks for row, code in each["codes"][step].items()}
        assert together_codes.keys() == codes.keys()
        assert all(torch.equal(together_codes[row], code) for row, code in codes.items())


def test_a_step_leaves_no_objects_behind(several: dict[str, list[dict[str, Any]]]) -> None:
    """A fused AdamW over DTensors left a DTensorSpec for each parameter and step (pytorch issue 188174)."""
    first, *_, last = several["fsdp"][0]["specs"][1:]
    assert 0 < last <= first


@pytest.mark.parametrize("kind", ["full", "selective"])
def test_blocks_that_are_computed_again_are_compiled(kind: str) -> None:
    made, _ = resolve(recipe(1, {"train.activation_checkpointing": kind}))
    model, graphs = prepared(make_model(made, CPU, None, None), made), []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model.blocks[0].compile(backend=backend)
    model(torch.randint(9, (2, 40)), torch.randint(16, (2, 40)))
    assert len(graphs) == 1


@pytest.mark.parametrize(("small", "compiled"), [(10**9, {""}), (0, {"blocks.0", "blocks.1", "blocks.2", "latent.encoder"})])
def test_ddp_compiles_a_small_model_as_a_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: int, compiled: set[str]) -> None:
    found: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **_: found.append(module))
    monkeypatch.setattr(parallel, "SMALL", small)
    made, _ = resolve(recipe(1, {"train.compile": "on"}))
    torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        with torch._dynamo.config.patch(optimize_ddp=True):
            model = Replicated(make_model(made, CPU, None, None), made.train, CPU, ALONE).model
            assert torch._dynamo.config.optimize_ddp == (small == 0)
    finally:
        torch.distributed.destroy_process_group()
    assert {name for name, module in model.named_modules() if module in found} == compiled


@pytest.mark.parametrize(
    ("processes", "settings", "what"),
    [
        (2, {"parallel.mode": "none"}, "parallel.mode = 'none' with 2 processes"),
        (2, {"parallel.mode": "hsdp"}, "'hsdp' needs parallel.shard"),
        (2, {"parallel.shard": 2}, "parallel.shard is for parallel.mode = 'hsdp', not 'ddp'"),
        (4, {"parallel.mode": "hsdp", "parallel.shard": 3}, "parallel.shard = 3 does not divide parallel.processes = 4"),
        (2, {"parallel.reshard_after_forward": False}, "is for fsdp and hsdp, not 'ddp'"),
        (1, {"parallel.mode": "fsdp", "parallel.cpu_offload": True}, "for fsdp and hsdp with several processes"),
    ],
)
def test_settings_that_do_not_fit_the_mode_are_refused(processes: int, settings: dict[str, Any], what: str) -> None:
    with pytest.raises(InputErrors, match=what):
        recipe(processes, settings)
