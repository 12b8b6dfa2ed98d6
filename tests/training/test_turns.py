"""Encoder and decoder updated apart (`train.encoder`): against the literal algorithm, and after a resume."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from freetf_cli.config.files import check_recipe
from freetf_cli.config.recipe import EncoderConfig, LatentConfig, ModelConfig
from freetf_cli.data.batches import Batch
from freetf_cli.errors import InputError, InputErrors
from freetf_cli.evaluation.posterior import PosteriorPass, information
from freetf_cli.latent.build import build_model
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders
from freetf_cli.training.loop import Hooks
from freetf_cli.training.optimizer import make_optimizers
from freetf_cli.training.parallel import Engine
from freetf_cli.training.run import train
from freetf_cli.training.step import TrainStep
from freetf_cli.training.turns import WINDOW, Turn, Turns
from tests.training.test_loop import CPU, files, recipe, stopped_run
from tests.training.test_step import KAPPAS, RATES, SHAPE, batch, fresh, settings

OF_ENCODER = {"zeta", "norm.weight", "to_bit_logits.weight"}


def apart(**encoder: Any) -> dict[str, Any]:
    return {"encoder": encoder}


def updater(model: Decoder, **changed: Any) -> TrainStep:
    config = settings(**changed)
    return TrainStep(Engine(model, config, CPU), make_optimizers(model, config, CPU), config, CPU, SHAPE)


def advance(update: TrainStep, step: int, turn: Turn) -> None:
    rows, noise = batch(step)
    update.noise.copy_(noise)
    update(step, rows, rows.count, RATES[step % 3], (KAPPAS[step % 3], 0.2, 0.5, 0.7), turn)


def gradients(model: Decoder, step: int) -> dict[str, torch.Tensor]:
    rows, noise = batch(step)
    weights = ObjectiveWeights(*torch.tensor([KAPPAS[step % 3], 0.2, 0.5, 0.7]))
    terms = model(rows.inputs, noise=noise, targets_BT=rows.targets, weights=weights).losses
    names, values = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad((terms.ce + terms.penalty) / rows.count, values), strict=True))


@pytest.mark.parametrize("turns", [[Turn.ENCODER, Turn.ENCODER, Turn.DECODER, Turn.ENCODER, Turn.DECODER], [Turn.BOTH] * 3])
@torch.enable_grad()
def test_updates_equal_the_literal_algorithm_in_float64(turns: Sequence[Turn]) -> None:
    """AdamW written out, of the parameters whose turn it is; the encoder's learning rate is three times the decoder's."""
    update, plain = updater(fresh(True).double(), grad_clip=0.0, **apart(turns="alternating", lr_scale=3.0)), fresh(True).double()
    config, moments = settings(), {name: [0, torch.zeros_like(p), torch.zeros_like(p)] for name, p in plain.named_parameters()}
    for step, turn in enumerate(turns):
        found = gradients(plain, step)
        for name, parameter in plain.named_parameters():
            is_encoders = name.startswith("latent.encoder.")
            if turn is not Turn.BOTH and is_encoders != (turn is Turn.ENCODER):
                continue
            rate = RATES[step % 3] * (3.0 if is_encoders else 1.0)
            decays = parameter.dim() == 2 and name not in ("embedding.weight", "latent.post_sampler.weight")
            state = moments[name]
            state[0] += 1
            state[1] = config.beta1 * state[1] + (1 - config.beta1) * found[name]
            state[2] = config.beta2 * state[2] + (1 - config.beta2) * found[name] ** 2
            mean, square = state[1] / (1 - config.beta1 ** state[0]), state[2] / (1 - config.beta2 ** state[0])
            with torch.no_grad():
                parameter.mul_(1 - rate * config.weight_decay * decays)
                parameter.sub_(rate * mean / (square.sqrt() + config.eps))
        advance(update, step, turn)
        for (name, ours), theirs in zip(update.model.named_parameters(), plain.parameters(), strict=True):
            assert (ours - theirs).abs().max() < 1e-12, (step, name)


def test_the_encoders_parameters_are_those_that_only_the_posterior_reads() -> None:
    """With Z given, exactly the parameters of the other optimizer get a gradient, of every kind of latent."""
    for kind in ({"bits": 3}, {"bits": 3, "encoder": "full"}, {"kind": "gaussian", "encoder": "full"}):
        model = build_model(ModelConfig(layers=2, width=16, heads=2, vocab=7, context=6), LatentConfig(kappa=0.5, **kind))  # type: ignore[arg-type]
        decoders, encoders = make_optimizers(model, settings(**apart(lr_scale=2.0)), CPU)
        tokens = batch(0)[0].inputs
        z = model.latent.batch([model.latent.prior(np.random.default_rng(row), 6) for row in range(4)], [0] * 4, 6)  # type: ignore[union-attr]
        model(tokens, z, targets_BT=tokens).losses.ce.backward()
        for optimizer, reads in ((decoders, True), (encoders, False)):
            owned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            assert owned and all((parameter.grad is not None) == reads for parameter in owned)


def test_a_scale_of_the_learning_rate_is_the_encoders_alone() -> None:
    scaled, slow, fast = (updater(fresh(True), **more) for more in (apart(lr_scale=2.0), {}, {}))
    rows, noise = batch(0)
    for update, rate in ((scaled, 1e-2), (slow, 1e-2), (fast, 2e-2)):
        update.noise.copy_(noise)
        update(0, rows, rows.count, rate, (0.5, 0.2, 0.5, 0.7))
    for (name, ours), a, b in zip(scaled.model.named_parameters(), slow.model.parameters(), fast.model.parameters(), strict=True):
        theirs = b if name.startswith("latent.encoder.") else a
        assert torch.equal(ours, theirs) and not torch.equal(a, b), name


def test_whose_turn_it_is_not_keeps_weights_moments_and_counters() -> None:
    """Of a fused AdamW and of one that is not; a step that is not finite is skipped whoever's turn it is."""
    for fused in (True, False):
        update = updater(fresh(True), **apart(turns="alternating"))
        update._fused = fused
        for optimizer in update.optimizers if not fused else ():
            optimizer.found_inf = None  # type: ignore[attr-defined]
            for group in optimizer.param_groups:
                group["fused"] = False
        decoders, encoders = update.optimizers

        def kept(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
            found = [value for state in optimizer.state.values() for value in state.values()]
            return [value.detach().clone() for value in (*found, *(p for group in optimizer.param_groups for p in group["params"]))]

        for step, (turn, idle, active) in enumerate([(Turn.ENCODER, decoders, encoders), (Turn.DECODER, encoders, decoders)]):
            before, other = kept(idle), kept(active)
            advance(update, step, turn)
            assert all(torch.equal(a, b) for a, b in zip(before, kept(idle), strict=True))
            assert not any(torch.equal(a, b) for a, b in zip(other, kept(active), strict=True) if a.numel() > 1)
        before = kept(decoders) + kept(encoders)
        rows, _ = batch(2)
        update(2, rows, rows.count, 1e-2, (math.nan, 0.0, 0.0, 1.0), Turn.ENCODER)
        assert all(torch.equal(a, b) for a, b in zip(before, kept(decoders) + kept(encoders), strict=True))
        assert len(update.faults()) == 1


def test_alternating_turns_are_a_function_of_the_step() -> None:
    turns = Turns(EncoderConfig(turns="alternating", steps=2))
    assert [turns.now(step) for step in range(6)] == [Turn.ENCODER, Turn.ENCODER, Turn.DECODER] * 2
    assert not turns.reads_objective and turns.state() == {}
    assert {Turns(EncoderConfig()).now(step) for step in range(4)} == {Turn.BOTH}


@pytest.mark.parametrize("most", [5, 25, 100])
def test_a_lagging_encoders_turn_ends_when_the_bound_stops_improving(most: int) -> None:
    """Against He et al.'s loop: at each tenth step of the turn, compare the mean of the last ten with the ten before."""
    objectives = iter((0.97 ** np.arange(2000) + 0.3 * np.random.default_rng(0).random(2000)).tolist())
    seen: list[float] = []
    expected: list[Turn] = []
    while len(expected) < 300:  # the literal loop
        before, burst = math.inf, []
        for inner in range(1, most + 1):
            burst.append(next(objectives))
            if inner % WINDOW == 0:
                now = float(np.mean(burst[-WINDOW:]))
                if now >= before:
                    break
                before = now
        expected += [Turn.ENCODER] * len(burst) + [Turn.DECODER]
        seen += [*burst, next(objectives)]
    turns, found = Turns(EncoderConfig(turns="lagging", steps=most)), []
    for step, objective in enumerate(seen):
        found.append(turns.now(step))
        state = json.loads(json.dumps(turns.state()))  # through a checkpoint
        turns = Turns(turns.config)
        turns.restore(state)
        turns.after(found[-1], objective)
    assert found == expected
    assert most == 5 or len({len(run) for run in "".join(turn.value[0] for turn in found).split("d")}) > 1


def test_the_turns_end_at_the_first_information_that_does_not_rise() -> None:
    turns = Turns(EncoderConfig(turns="lagging", steps=3, check_every=10))
    assert turns.is_checked(10) and not turns.is_checked(11)
    for value in (0.1, 0.5):
        turns.check(value)
        assert turns.lags and turns.now(0) is Turn.ENCODER
    turns.check(0.5)
    assert not turns.lags and turns.now(0) is Turn.BOTH and not turns.is_checked(20)


@pytest.mark.parametrize("latent", [{"bits": 4}, {"kind": "gaussian", "options": {"dims": 3}}, {"bits": 4, "every": "sequence"}], ids=str)
def test_information_equals_the_literal_sum(latent: dict[str, Any]) -> None:
    """mean_i log Q(z_i|s_i) / mean_j Q(z_i|s_j), in float64, over batches of unequal size."""
    model = build_model(ModelConfig(layers=2, width=16, heads=2, vocab=7, context=6), LatentConfig(kappa=0.5, **latent))
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.double()
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 7, (5, 7), generator=generator).numpy()
    noise = torch.rand(5, *model.latent.noise_shape(6), generator=generator)  # type: ignore[union-attr]
    given = iter([noise[:3], noise[3:]])
    found = information(model, [Batch(part[:, :-1], part[:, 1:]) for part in (rows[:3], rows[3:])], lambda count: next(given))
    with torch.no_grad():
        posterior = PosteriorPass(model, Batch(rows[:, :-1], rows[:, 1:])).posterior
        z = posterior.sample(noise)
        log_q = torch.stack([posterior.log_prob(z[i].expand(5, *z.shape[1:])).sum(-1) for i in range(5)])
    literal = float((log_q.diagonal() - torch.log(log_q.exp().mean(1))).mean())
    assert 0.01 < abs(literal) < math.log(5)
    assert found == pytest.approx(literal, abs=1e-9)


LAGGING = apart(turns="lagging", steps=2, check_every=2, lr_scale=0.5)


@pytest.mark.parametrize("encoder", [apart(turns="alternating", steps=2), apart(lr_scale=3.0), LAGGING], ids=str)
def test_resume_is_exact(tmp_path: Path, encoder: dict[str, Any]) -> None:
    made = recipe(steps=9, **encoder)
    train(made, tmp_path / "whole", device=CPU)
    for step in (1, 2, 4, 7):
        run = tmp_path / f"stopped-{step}"
        stopped_run(run, step, made)
        train(made, run, device=CPU, resume=Checkpoint.open(checkpoint_folders(run)[-1]))
        assert files(run) == files(tmp_path / "whole"), step


def test_resume_without_the_state_of_the_turns_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(**LAGGING)
    with monkeypatch.context() as patched:
        patched.setattr(Turns, "state", lambda self: {})
        stopped_run(tmp_path / "run", 3, made)
    with pytest.raises(InputError, match=r"encoder\.lags is None"):
        train(made, tmp_path / "run", device=CPU, resume=Checkpoint.open(checkpoint_folders(tmp_path / "run")[-1]))


def test_a_lagging_run_checks_held_out_rows_and_records_when_its_turns_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, made, warnings = iter([0.2, 0.3, 0.25]), [], []
    monkeypatch.setattr("freetf_cli.training.loop.information", lambda model, batches, noise: next(values))
    call = TrainStep.__call__

    def recorded(self: TrainStep, *arguments: Any) -> None:
        made.append(arguments[-1])
        call(self, *arguments)

    monkeypatch.setattr(TrainStep, "__call__", recorded)
    train(recipe(steps=9, **LAGGING), tmp_path / "run", device=CPU, hooks=Hooks(warn=warnings.append))
    e, d, b = Turn.ENCODER, Turn.DECODER, Turn.BOTH
    assert made == [e, e, d, e, e, d, b, b, b]
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["encoder_lagged"] == {"steps": 6, "information_nats": 0.25}
    assert any("no longer rises (0.25 nats)" in line and "after step 6" in line for line in warnings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": apart(turns="alternating"), "latent": None}, "this recipe is a baseline"),
        ({"train": apart(lr_scale=2.0), "latent": None}, "this recipe is a baseline"),
        ({"train": apart(turns="lagging"), "parallel": {"processes": 2}}, "in one process only"),
        ({"train": apart(steps=3)}, "train.encoder.steps = 3 needs train.encoder.turns"),
    ],
)
def test_what_cannot_be_combined_is_refused(changes: dict[str, Any], words: str) -> None:
    tree = recipe().model_dump(exclude_none=True)
    for table, values in changes.items():
        if values is None:
            del tree[table]
        else:
            tree[table] = {**tree.get(table, {}), **values}
    with pytest.raises((InputError, InputErrors), match=words):
        check_recipe(tree, where="test")


def test_another_way_of_taking_turns_is_another_run(tmp_path: Path) -> None:
    stopped_run(tmp_path / "run", 3, recipe())
    with pytest.raises(InputError, match=r"train\.encoder\.lr_scale is 2\.0, was 1\.0"):
        train(recipe(**apart(lr_scale=2.0)), tmp_path / "run", device=CPU, resume=Checkpoint.open(checkpoint_folders(tmp_path / "run")[-1]))
