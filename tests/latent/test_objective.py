"""Where the encoder is credited, and what positions beyond the window read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.errors import InputError
from freetf_cli.latent.binary import BinaryDistribution, BinaryLatent, ResidualInjection
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.latent.objective import without_early_targets
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.model.loss import IGNORE

FREE_OF_CHARGE = ObjectiveWeights(1e3, 0.0, 0.0)  # no KL is above the free bits: the objective is the cross-entropy


def small(**latent: object) -> Decoder:
    """A model in float64 that uses its Z."""
    model = build_model(ModelConfig(layers=4, width=16, heads=2, vocab=7), LatentConfig(kappa=1.0, bits=3, **latent))  # type: ignore[arg-type]
    initialise_model(model, seed=0)
    return model.double()


def gradients(model: Decoder, tokens_BT1: Tensor, noise: Tensor, targets_BT: Tensor, held: slice = slice(None)) -> dict[str, Tensor]:
    """Gradients of the cross-entropy of some rows."""
    model.zero_grad()
    rows = tokens_BT1[held, :-1]
    model(rows, noise=noise[held], targets_BT=targets_BT[held], weights=FREE_OF_CHARGE).losses.objective.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def test_the_encoder_learns_from_later_targets_alone_and_the_decoder_from_all() -> None:
    """Against the two halves of the batch apart: all targets, nothing for the encoder; later targets, and the encoder too."""
    torch.manual_seed(0)
    tokens_BT1, noise = torch.randint(7, (6, 10)), torch.rand(6, 9, 3, dtype=torch.float64)
    targets_BT = tokens_BT1[:, 1:]
    ours, plain = small(objective={"credit_from": 4}).train(), small().train()
    late_BT = targets_BT.clone()
    late_BT[:, :4] = IGNORE
    found = gradients(ours, tokens_BT1, noise, targets_BT)
    decoders = gradients(plain, tokens_BT1, noise, targets_BT, slice(3))
    both = gradients(plain, tokens_BT1, noise, late_BT, slice(3, None))
    for name, gradient in found.items():
        of_first = torch.zeros_like(gradient) if name.startswith("latent.encoder") else decoders[name]
        if name.startswith(("latent", "blocks.2", "blocks.3", "norm")):  # the lower half gets gradients through the encoder too
            assert torch.allclose(gradient, of_first + both[name], atol=1e-12), name
    assert found["latent.encoder.to_bit_logits.weight"].abs().sum() > 0
    evaluated = [model.eval()(tokens_BT1[:, :-1], noise=noise, targets_BT=targets_BT, weights=FREE_OF_CHARGE) for model in (ours, plain)]
    assert evaluated[0].losses.ce == evaluated[1].losses.ce, "evaluation counts every target"


def test_beside_the_credit_the_kl_weighs_as_much_as_what_it_buys() -> None:
    """The encoder's gradient: the CE of later targets of the sequences that give credit, half of all, and half of the penalty of all."""
    torch.manual_seed(0)
    tokens_BT1, noise = torch.randint(7, (6, 10)), torch.rand(6, 9, 3, dtype=torch.float64)
    targets_BT, settings = tokens_BT1[:, 1:], {"mismatch": 0.7}
    late_BT = targets_BT.clone()
    late_BT[:, :4] = IGNORE
    priced = ObjectiveWeights(1e-3, 0.0, 0.7)
    ours, plain = small(objective={"credit_from": 4, **settings}).train(), small(objective=settings).train()
    torch.nn.init.normal_(ours.latent.encoder.to_bit_logits.weight)  # type: ignore[union-attr, arg-type]
    plain.load_state_dict(ours.state_dict())
    names = [name for name, _ in ours.named_parameters() if name.startswith("latent.encoder")]

    def encoders(model: Decoder, weights: ObjectiveWeights, targets: Tensor, rows: slice) -> dict[str, Tensor]:
        model.zero_grad()
        model(tokens_BT1[rows, :-1], noise=noise[rows], targets_BT=targets[rows], weights=weights).losses.objective.backward()
        return {name: model.get_parameter(name).grad.clone() for name in names}  # type: ignore[union-attr]

    found = encoders(ours, priced, targets_BT, slice(None))
    credit = encoders(plain, FREE_OF_CHARGE, late_BT, slice(3, None))
    model_losses = plain(tokens_BT1[:, :-1], noise=noise, targets_BT=targets_BT, weights=priced).losses
    plain.zero_grad()
    model_losses.penalty.backward()
    for name in names:
        penalty = plain.get_parameter(name).grad
        assert penalty is not None and penalty.abs().sum() > 0
        assert torch.allclose(found[name], credit[name] + penalty / 2, atol=1e-10), name
    evaluated = [model.eval()(tokens_BT1[:, :-1], noise=noise, targets_BT=targets_BT, weights=priced) for model in (ours, plain)]
    assert evaluated[0].losses.penalty == evaluated[1].losses.penalty, "evaluation has the whole penalty"


@pytest.mark.parametrize("every", [1, 3, "sequence"])
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("order", [None, 2])
def test_a_z_that_several_tokens_read_is_mapped_once(every: int | str, window: int | None, order: int | None) -> None:
    """Logits get the gradients that they have if every token's Z is mapped, where they are inferred; the table and r are the same."""
    latent = small(every=every, window=window, table={"order": order}).latent
    assert isinstance(latent, BinaryLatent)
    torch.manual_seed(0)
    torch.nn.init.normal_(latent.post_sampler.weight)
    starts = torch.tensor([0 if every == "sequence" else t - t % int(every) for t in range(8)])
    logits_BTH, c_BTD = torch.randn(2, 8, 3).double().requires_grad_(), torch.randn(2, 8, 16).double()
    posterior = BinaryDistribution(logits_BTH, None if every == 1 else starts.expand(2, 8))
    z_BT = posterior.sample(torch.rand(2, 8, 3))
    sizes: list[int] = []
    mapped = type(latent.post_sampler).forward

    def counted(self: torch.nn.Module, codes_BT: Tensor, bit_logits_BTH: Tensor | None = None) -> Tensor:
        sizes.append(0 if bit_logits_BTH is None else codes_BT.shape[1])
        return mapped(self, codes_BT, bit_logits_BTH)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(latent.post_sampler), "forward", counted)
        injection = latent.inject(z_BT, posterior)
    assert isinstance(injection, ResidualInjection)
    inferred = [t for t in sorted(set(starts.tolist())) if window is None or t < window]
    assert sum(sizes) == len(inferred) == latent.mapped(8)
    weight = latent.post_sampler.weight
    got = torch.autograd.grad((injection.r_BTD * c_BTD).sum(), [logits_BTH, weight])
    every_token = latent.post_sampler(z_BT, logits_BTH[:, starts])
    want = torch.autograd.grad((every_token * c_BTD).sum(), [logits_BTH, weight])
    assert torch.equal(injection.r_BTD, every_token)
    assert torch.allclose(got[0][:, inferred], want[0][:, inferred], atol=1e-12) and torch.allclose(got[1], want[1], atol=1e-12)
    assert got[0][:, inferred].abs().min() > 0 and got[0].count_nonzero() == 2 * len(inferred) * 3


def test_early_targets_of_later_rows_do_not_count() -> None:
    targets_BT = without_early_targets(torch.arange(12).view(3, 4), half=1, credit_from=2)
    assert targets_BT.tolist() == [[0, 1, 2, 3], [IGNORE, IGNORE, 6, 7], [IGNORE, IGNORE, 10, 11]]


def test_positions_beyond_the_window_read_nothing() -> None:
    """Z there changes no logit, and the logits are those of a Z whose rows of the table are 0 there; with the prior they are not."""
    torch.manual_seed(0)
    tokens_BT, z_BT = torch.randint(7, (3, 8)), torch.randint(8, (3, 8))
    other_BT = z_BT.clone()
    other_BT[:, 2:] = (other_BT[:, 2:] + 1) % 8
    model, plain = small(window=2, beyond="nothing").eval(), small(window=2).eval()
    with torch.no_grad():
        assert torch.equal(model(tokens_BT, z_BT).logits, model(tokens_BT, other_BT).logits)
        assert not torch.allclose(plain(tokens_BT, z_BT).logits, plain(tokens_BT, other_BT).logits)
        for each in (model, plain):
            each.latent.post_sampler.weight[0] = 0
        silent_BT = torch.where(torch.arange(8) < 2, z_BT, 0)
        assert torch.allclose(model(tokens_BT, z_BT).logits, plain(tokens_BT, silent_BT).logits, atol=1e-12)


def test_a_cached_step_beyond_the_window_reads_nothing_either() -> None:
    torch.manual_seed(1)
    tokens_BT, z_BT = torch.randint(7, (2, 6)), torch.randint(8, (2, 6))
    model = small(window=2, beyond="nothing").eval()
    with torch.no_grad():
        whole_BTV, cache = model(tokens_BT, z_BT).logits, model.new_cache(2, 6)
        steps = [model(tokens_BT[:, t : t + 1], z_BT[:, t : t + 1], cache=cache).logits for t in range(6)]
    assert torch.allclose(torch.cat(steps, 1), whole_BTV, atol=1e-10)


def test_nothing_beyond_needs_a_window() -> None:
    with pytest.raises((InputError, ValueError), match=r"beyond = 'nothing' needs latent.window"):
        LatentConfig(kappa=1.0, beyond="nothing")
