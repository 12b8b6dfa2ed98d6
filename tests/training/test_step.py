"""One update against a plain loop; what it does if the loss or a gradient is not finite."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from freetf_cli.config.files import check_recipe
from freetf_cli.config.recipe import LatentConfig, ModelConfig, TrainConfig
from freetf_cli.errors import InputError
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.training.optimizer import make_optimizer, make_optimizers
from freetf_cli.training.parallel import Engine, check_engine, compiled
from freetf_cli.training.prefetch import HostBatch
from freetf_cli.training.step import FAULTS_KEPT, Fault, TrainStep, uses_graph

CPU = torch.device("cpu")
CONFIG = ModelConfig(layers=2, width=16, heads=2, vocab=7, context=6)
LATENT = LatentConfig(kappa=0.25, bits=3)
SHAPE, NOISE = (4, 6), (6, 3)
RATES, KAPPAS = (1e-2, 3e-3, 2e-3), (0.5, 0.25, 0.125)


def settings(**changed: Any) -> TrainConfig:
    return TrainConfig(steps=3, batch=4, lr=1e-2, **changed)


def fresh(latent: bool) -> Decoder:
    model = build_model(CONFIG, LATENT if latent else None)
    initialise_model(model, 0)
    return model


def batch(step: int) -> tuple[HostBatch, torch.Tensor]:
    """Rows and noise of a step; batches differ in their count of targets."""
    generator = torch.Generator().manual_seed(step)
    rows = torch.randint(0, 7, (4, 7), generator=generator)
    targets = rows[:, 1:].clone()
    targets[step % 4, 2:] = -100
    targets[3, : step + 1] = -100
    return HostBatch(rows[:, :-1], targets, int((targets != -100).sum())), torch.rand(4, *NOISE, generator=generator)


def updater(model: Decoder, config: TrainConfig) -> TrainStep:
    return TrainStep(Engine(model, config, CPU), make_optimizers(model, config, CPU), config, CPU, SHAPE)


def advance(update: TrainStep, step: int, kappa: float | None = None) -> None:
    rows, noise = batch(step)
    if update.model.latent is not None:
        update.noise.copy_(noise)
    update(step, rows, rows.count, RATES[step % 3], (KAPPAS[step % 3] if kappa is None else kappa, 0.2, 0.5, 0.7))


def everything(update: TrainStep) -> list[torch.Tensor]:
    """Weights, moments and step counters, as they are now."""
    moments = [value for optimizer in update.optimizers for state in optimizer.state.values() for value in state.values()]
    return [value.detach().clone() for value in (*update.model.parameters(), *moments)]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def plain_loop(model: Decoder, config: TrainConfig) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The same steps as a plain loop; sums and gradient norm of each."""
    optimizer, records = make_optimizer(model, config, CPU), []
    for step in range(3):
        rows, noise = batch(step)
        for group in optimizer.param_groups:
            group["lr"] = RATES[step]
        optimizer.zero_grad()
        total, weights = torch.zeros(5), ObjectiveWeights(*torch.tensor([KAPPAS[step], 0.2, 0.5, 0.7]))
        for part in torch.arange(4).chunk(config.grad_accum_steps):
            terms = model(rows.inputs[part], noise=noise[part], targets_BT=rows.targets[part], weights=weights).losses
            ((terms.ce + terms.penalty) / rows.count).backward()
            total += torch.stack([terms.ce, terms.kl, terms.penalty, terms.above, terms.latents]).detach()
        records.append((total, torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf)))
        optimizer.step()
    return records


@pytest.mark.parametrize("latent", [True, False])
@pytest.mark.parametrize("changed", [{}, {"grad_accum_steps": 2}, {"grad_clip": 0.0}, {"grad_clip": 0.1}])
def test_a_step_equals_a_plain_loop(latent: bool, changed: dict[str, Any]) -> None:
    """Bit for bit on a CPU."""
    plain, update = fresh(latent), updater(fresh(latent), settings(**changed))
    for step, (sums, grad_norm) in enumerate(plain_loop(plain, settings(**changed))):
        advance(update, step)
        assert torch.equal(update.sums, sums)
        assert torch.equal(update.grad_norm, grad_norm)
    assert same([*update.model.parameters()], [*plain.parameters()])
    assert update.faults() == []


def poison_loss(update: TrainStep) -> Callable[[], None]:
    advance(update, 1, kappa=math.nan)
    return lambda: None


def poison_gradient(update: TrainStep) -> Callable[[], None]:
    handle = update.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)  # type: ignore[union-attr]
    advance(update, 1)
    return handle.remove


@pytest.mark.parametrize("poison", [poison_loss, poison_gradient])
def test_a_step_that_is_not_finite_is_skipped(poison: Callable[[TrainStep], Callable[[], None]]) -> None:
    """And the next step is not affected by it."""
    update, other = updater(fresh(True), settings()), updater(fresh(True), settings())
    for each in (update, other):
        advance(each, 0)
    good = everything(update)
    poison(update)()
    assert same(everything(update), good)
    for each in (update, other):
        advance(each, 2)
    assert same(everything(update), everything(other)) and not same(everything(update), good)
    (fault,) = update.faults()
    assert isinstance(fault, Fault) and fault.step == 1
    assert update.faults() == [] and not update.halted


@pytest.mark.parametrize("limit", [0, 2])
def test_too_many_consecutive_skips_halt_the_updates(limit: int) -> None:
    update = updater(fresh(True), settings(skip_limit=limit))
    advance(update, 0)
    for _ in range(limit):  # a good step in between resets the count
        poison_loss(update)
        advance(update, 0)
    assert not update.halted
    good = everything(update)
    for _ in range(limit + 1):
        poison_loss(update)
    assert update.halted
    advance(update, 2)
    assert same(everything(update), good)
    assert len(update.faults()) == 2 * limit + 1


def test_the_last_faults_are_remembered_in_their_order() -> None:
    update = updater(fresh(True), settings(skip_limit=1000))
    for step in range(FAULTS_KEPT + 6):
        update.noise.copy_(batch(0)[1])
        update(step, batch(0)[0], 1, 1e-2, (math.nan, 0.0, 0.0, 1.0))
        if step == 2:
            assert [fault.step for fault in update.faults()] == [0, 1, 2]
    assert [fault.step for fault in update.faults()] == list(range(6, FAULTS_KEPT + 6))


def test_an_optimizer_that_is_not_fused_is_not_called() -> None:
    """As on MPS, where AdamW is not fused."""
    model, config = fresh(True), settings()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, fused=False)
    update = TrainStep(Engine(model, config, CPU), [optimizer], config, CPU, SHAPE)
    advance(update, 0)
    good = everything(update)
    advance(update, 1, kappa=math.nan)
    assert same(everything(update), good)
    advance(update, 2)
    assert not same(everything(update), good)


def test_an_engine_that_cannot_be_captured_goes_on_without_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    update, plain = updater(fresh(True), settings()), updater(fresh(True), settings())
    update.warn = warnings.append
    monkeypatch.setattr(update, "_uses_graph", True)
    monkeypatch.setattr(update, "_capture", lambda: pytest.fail("captured again") if warnings else fail())
    with pytest.raises(RuntimeError, match="operation not permitted"):
        advance(update, 0)  # of one process: a bug, which must not pass in silence
    monkeypatch.setattr(update.engine, "is_alone", False)
    for step in range(2):
        advance(update, step)
        advance(plain, step)
    assert same(everything(update), everything(plain))
    assert warnings == ["steps are not replayed as a CUDA graph, which cannot be captured here: operation not permitted"]


def fail() -> None:
    raise RuntimeError("operation not permitted\nCUDA kernel errors might be …")


def test_updates_while_halted_leave_no_trace() -> None:
    """The warm-up before a capture relies on this."""
    warmed, plain = updater(fresh(True), settings()), updater(fresh(True), settings())
    warmed.halted.fill_(1.0)
    for _ in range(3):
        warmed._update()
    warmed.halted.zero_()
    for step in range(3):
        advance(warmed, step)
        advance(plain, step)
    assert same(everything(warmed), everything(plain))
    assert warmed.faults() == []


def test_the_compilers_advice_about_tf32_is_not_shown() -> None:
    """Products in float32 keep their digits on purpose. Any other warning of the compiler is shown."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        compiled(abs, settings(compile="off"), CPU)
        warnings.warn("TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled.", stacklevel=1)
        warnings.warn("Not enough SMs", stacklevel=1)
    assert [str(one.message) for one in shown] == ["Not enough SMs"]


def test_budgets_need_the_compiler() -> None:
    train = {"steps": 3, "batch": 4, "lr": 1e-2, "activation_checkpointing": "budget"}
    tree = {"data": {"task": "letters"}, "model": {"layers": 2, "width": 16, "heads": 2}, "train": train}
    check_engine(check_recipe({**tree, "train": {**train, "compile": "on"}}, where="test"), CPU)
    check_engine(check_recipe(tree, where="test"), torch.device("cuda"))
    with pytest.raises(InputError, match=r"'budget' without torch\.compile"):
        check_engine(check_recipe(tree, where="test"), CPU)


def test_only_a_gpu_offloads() -> None:
    parallel = {"processes": 2, "mode": "fsdp", "cpu_offload": True}
    tree = {"data": {"task": "letters"}, "model": {"layers": 2, "width": 16, "heads": 2}, "train": {"steps": 3, "batch": 4, "lr": 1e-2}}
    made = check_recipe({**tree, "parallel": parallel}, where="test")
    check_engine(made, torch.device("cuda"))
    with pytest.raises(InputError, match=r"parallel\.cpu_offload on cpu"):
        check_engine(made, CPU)


def test_only_cuda_has_graphs() -> None:
    assert not uses_graph(settings(), CPU)
    assert uses_graph(settings(), torch.device("cuda"))
    assert uses_graph(settings(cuda_graph="on"), torch.device("cuda"))
    assert not uses_graph(settings(cuda_graph="off"), torch.device("cuda"))
    with pytest.raises(InputError, match="only CUDA has graphs"):
        uses_graph(settings(cuda_graph="on"), CPU)
