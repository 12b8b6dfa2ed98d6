"""Algorithm 2: what depends on what, the baseline twin, and the cache."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch

from freetf_cli.config.recipe import LatentConfig, ModelConfig, NumericsConfig
from freetf_cli.latent.binary import BinaryDistribution, BinaryLatent, ResidualInjection, bit_logits, kl_per_token
from freetf_cli.latent.bits import code_bits
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.model.context import Cache, make_context
from freetf_cli.model.decoder import Decoder, Output

CONFIG = ModelConfig(layers=4, width=32, heads=4, kv_heads=2, vocab=11, context=16)
LATENT = LatentConfig(kappa=0.5, bits=5)


@pytest.fixture
def free() -> Decoder:
    model = build_model(CONFIG, LATENT).double()
    initialise_model(model, 3)
    return model.eval()


def tokens(rows: int = 2, length: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 11, (rows, length), generator=torch.Generator().manual_seed(seed))


def codes(rows: int = 2, length: int = 9, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 32, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Decoder, *args: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
    out = model(*args, cache=cache).logits
    assert out is not None
    return out


def binary(model: Decoder) -> BinaryLatent:
    assert isinstance(model.latent, BinaryLatent)
    return model.latent


def inferred(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of the bits that the encoder infers."""
    ctx = model.context(tokens)
    return bit_logits(model.infer_latent(model.lower(tokens, ctx), tokens, ctx))


def noise(rows: int = 2, length: int = 9) -> torch.Tensor:
    return torch.rand(rows, length, 5, generator=torch.Generator().manual_seed(2))


def test_zero_table_equals_the_baseline_twin(free: Decoder) -> None:
    baseline = build_model(CONFIG, None).double()
    initialise_model(baseline, 3)
    torch.nn.init.zeros_(binary(free).post_sampler.weight)
    assert torch.equal(logits(free, tokens(), codes()), logits(baseline, tokens()))
    assert torch.equal(free(tokens(), noise=noise()).logits, logits(baseline, tokens()))


def test_same_seed_gives_the_twins_the_same_shared_weights(free: Decoder) -> None:
    baseline = build_model(CONFIG, None).double()
    initialise_model(baseline, 3)
    ours = dict(free.named_parameters())
    for name, parameter in baseline.named_parameters():
        assert torch.equal(parameter, ours[name])


@pytest.mark.parametrize("position", [0, 4, 8])
def test_decoder_is_causal_in_tokens_for_given_z(free: Decoder, position: int) -> None:
    changed = tokens()
    changed[:, position] = (changed[:, position] + 1) % 11
    before, after = logits(free, tokens(), codes()), logits(free, changed, codes())
    assert torch.equal(before[:, :position], after[:, :position])
    assert not torch.allclose(before[:, position:], after[:, position:])


@pytest.mark.parametrize("position", [0, 4, 8])
def test_decoder_is_causal_in_z(free: Decoder, position: int) -> None:
    changed = codes()
    changed[:, position] = (changed[:, position] + 1) % 32
    before, after = logits(free, tokens(), codes()), logits(free, tokens(), changed)
    assert torch.equal(before[:, :position], after[:, :position])
    for later in range(position, 9):
        assert not torch.allclose(before[:, later], after[:, later])


def test_encoder_is_not_causal_and_tells_positions_apart(free: Decoder) -> None:
    changed = tokens()
    changed[:, -1] = (changed[:, -1] + 1) % 11
    before = inferred(free, tokens())
    after = inferred(free, changed)
    assert (before[:, 0] - after[:, 0]).abs().min() > 1e-9
    assert (before[:, 0] - before[:, 1]).abs().max() > 1e-3  # a constant query without positions would give equal logits


def test_a_full_encoder_is_not_causal_in_its_own_stack() -> None:
    model = build_model(CONFIG, LATENT.model_copy(update={"encoder": "full"})).double()
    initialise_model(model, 3)
    x, ctx = model.embedding(tokens()), model.context(tokens()).non_causal()
    changed = x.clone()
    changed[:, -1] += 1.0
    before, after = (bit_logits(binary(model).posterior(stream, stream, ctx)) for stream in (x, changed))
    assert (before[:, 0] - after[:, 0]).abs().min() > 1e-9


def test_only_keys_and_values_of_one_block_see_r(free: Decoder) -> None:
    """Queries and residual come from x: with the injection block's attention switched off, Z cannot matter."""
    torch.nn.init.zeros_(free.blocks[2].attention.out.weight)
    assert torch.equal(logits(free, tokens(), codes()), logits(free, tokens(), codes(seed=5)))


def test_injection_block_matches_its_equations(free: Decoder) -> None:
    x, r = torch.randn(1, 5, 32).double(), torch.randn(1, 5, 32).double()
    block, ctx = free.blocks[2], make_context(5, 8, 10_000.0, x.device)
    q_in, kv_in = block.attention_norm(x), block.attention_norm(x + r)
    y = x + block.attention(q_in, kv_in, ctx)
    want = y + block.ffn(block.ffn_norm(y))
    assert torch.allclose(block(x, ctx, x + r), want, atol=1e-12)


@pytest.mark.parametrize("encoder", ["shared", "full"])
def test_gradient_reaches_every_parameter(encoder: str) -> None:
    model = build_model(CONFIG, LATENT.model_copy(update={"encoder": encoder}))
    initialise_model(model, 0)
    model(tokens(), noise=noise().float()).logits.square().sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert missing == []


def test_posterior_pass_equals_given_z(free: Decoder) -> None:
    out = free(tokens(), noise=noise())
    assert torch.equal(out.logits, logits(free, tokens(), out.z))


@pytest.mark.parametrize("steps", [[9], [4, 5], [3, 1, 1, 1, 1, 1, 1], [1] * 9])
def test_cache_equals_full_forward(free: Decoder, steps: list[int]) -> None:
    cache, start, parts = free.new_cache(2, 9), 0, []
    for step in steps:
        part = slice(start, start + step)
        parts.append(logits(free, tokens()[:, part], codes()[:, part], cache=cache))
        start += step
    assert (torch.cat(parts, 1) - logits(free, tokens(), codes())).abs().max() < 1e-12


def test_cache_equals_full_forward_for_the_baseline() -> None:
    model = Decoder(CONFIG).double()
    initialise_model(model, 1)
    cache = model.new_cache(2, 9)
    parts = [logits(model, tokens()[:, :4], cache=cache), *(logits(model, tokens()[:, t : t + 1], cache=cache) for t in range(4, 9))]
    assert (torch.cat(parts, 1) - logits(model, tokens())).abs().max() < 1e-12


@pytest.mark.parametrize("gradient", ["paper", "heun"])
def test_compiled_gradients_equal_eager_ones(gradient: Literal["paper", "heun"]) -> None:
    model = build_model(CONFIG, LATENT.model_copy(update={"numerics": NumericsConfig(gradient=gradient)}))
    initialise_model(model, 0)

    def loss(run) -> list[torch.Tensor]:  # type: ignore[no-untyped-def]
        model.zero_grad()
        run(tokens(), noise=noise().float()).logits.square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    eager = loss(model.forward)
    compiled = loss(torch.compile(model.forward, backend="aot_eager", fullgraph=True))
    assert len(eager) == len(compiled) > 20
    for a, b in zip(eager, compiled, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_kl_trains_the_shared_lower_half_too(free: Decoder) -> None:
    kl_per_token(inferred(free, tokens())).sum().backward()
    assert free.blocks[0].ffn.up.weight.grad is not None
    assert free.blocks[0].ffn.up.weight.grad.abs().sum() > 0


def test_beyond_the_window_z_is_the_priors(free: Decoder) -> None:
    whole = free(tokens(), noise=noise())
    binary(free).window = 3
    part = free(tokens(), noise=noise())
    assert torch.equal(bit_logits(part.posterior)[:, :3], bit_logits(whole.posterior)[:, :3])
    assert bit_logits(part.posterior)[:, 3:].abs().max() == 0 < bit_logits(whole.posterior)[:, 3:].abs().min()
    assert torch.equal(part.z[:, 3:], ((noise()[:, 3:] < 0.5) * 2 ** torch.arange(5)).sum(-1))
    assert torch.equal(inferred(free, tokens()[:, :2])[:, 2:], bit_logits(whole.posterior)[:, :0])


@pytest.mark.parametrize(("every", "starts"), [(3, [0, 0, 0, 3, 3, 3, 6, 6, 6]), ("sequence", [0] * 9)])
def test_tokens_share_the_z_that_the_first_of_them_infers(free: Decoder, every: int | Literal["sequence"], starts: list[int]) -> None:
    whole = free(tokens(), noise=noise())
    binary(free).every = every
    part = free(tokens(), noise=noise())
    first = torch.tensor([t == start for t, start in enumerate(starts)])
    assert torch.equal(bit_logits(part.posterior)[:, first], bit_logits(whole.posterior)[:, first])
    assert bit_logits(part.posterior)[:, ~first].abs().max() == 0 == part.posterior.kl()[:, ~first].abs().max()
    assert torch.equal(part.z, whole.z[:, starts])
    assert torch.equal(part.logits, logits(free, tokens(), whole.z[:, starts]))
    drawn = binary(free).prior(np.random.default_rng(0), 9)
    assert np.array_equal(drawn, drawn[starts])
    assert len(set(drawn.tolist())) == len(set(starts))


@pytest.mark.parametrize("order", [None, 2])
@pytest.mark.parametrize("credit_from", [0, 3])
def test_the_token_that_infers_a_shared_z_learns_from_all_tokens_that_read_it(order: int | None, credit_from: int) -> None:
    """The gradient of Σ_t c_t · r_t against equation 8 written out, where G of a token is that of the token that infers its Z."""
    settings = {"every": 3, "table": {"order": order}, "objective": {"credit_from": credit_from}}
    latent = binary(build_model(CONFIG, LatentConfig.model_validate({"kappa": 0.5, "bits": 5, **settings})).double())
    torch.manual_seed(0)
    torch.nn.init.normal_(latent.post_sampler.weight)
    every_code = torch.arange(32)
    table_CD, bits_CH = latent.post_sampler(every_code[None])[0].detach(), code_bits(every_code, 5).double()
    starts_BT = (torch.arange(9) - torch.arange(9) % 3).expand(2, 9)
    logits_BTH, c_BTD = torch.randn(2, 9, 5).double().requires_grad_(), torch.randn(2, 9, 32).double()
    posterior = BinaryDistribution(logits_BTH, starts_BT)
    credited, _ = latent.credited(posterior, torch.zeros(2, 9, dtype=torch.long))
    injection = latent.inject(posterior.sample(noise()), credited)
    assert isinstance(injection, ResidualInjection)
    (got_BTH,) = torch.autograd.grad((injection.r_BTD * c_BTD).sum(), logits_BTH)
    p_BTH = torch.sigmoid(logits_BTH)[:, starts_BT[0]]
    g_BTC = (bits_CH * p_BTH[:, :, None] + (1 - bits_CH) * (1 - p_BTH[:, :, None])).prod(-1)
    terms_B = ((g_BTC @ table_CD) * c_BTD).sum((1, 2))
    (want_BTH,) = torch.autograd.grad(terms_B[1 if credit_from else 0 :].sum(), logits_BTH)  # half of the rows give no credit
    assert torch.allclose(got_BTH, want_BTH, atol=1e-12)
    assert got_BTH[1, 0].abs().min() > 0


def test_initial_scales() -> None:
    model = build_model(ModelConfig(layers=8, width=256, heads=4, vocab=500), LatentConfig(kappa=0.5, bits=8, table_std=0.3))
    initialise_model(model, 0)
    deviations = {
        "embedding": (model.embedding.weight, 0.02),
        "input": (model.blocks[3].attention.q.weight, 256**-0.5),
        "residual": (model.blocks[3].attention.out.weight, 256**-0.5 / 4),  # (2 L)^-1/2
        "down": (model.blocks[3].ffn.down.weight, model.config.hidden**-0.5 / 4),
        "zeta": (binary(model).encoder.zeta, 0.02),
        "table": (binary(model).post_sampler.weight, 0.3),
    }
    for name, (weight, std) in deviations.items():
        assert weight.std().item() == pytest.approx(std, rel=0.12), name
    assert model.norm.weight.eq(1).all()


def test_a_compiled_pass_is_the_same(free: Decoder) -> None:
    """Compiled, rotary tables are an operator of their own, and projections of one stream are one product: equal up to rounding."""

    def results(run: Callable[..., Output]) -> list[torch.Tensor]:
        free.zero_grad()
        out = run(tokens(), noise=noise())
        assert out.logits is not None and out.posterior is not None
        (out.logits.square().sum() + out.posterior.kl().sum()).backward()
        return [out.logits, bit_logits(out.posterior), *(p.grad.clone() for p in free.parameters() if p.grad is not None)]

    plain = results(free.forward)
    compiled = results(torch.compile(free.forward, backend="eager", fullgraph=True))
    assert len(plain) == len(compiled) == 2 + len(list(free.parameters()))
    for ours, theirs in zip(compiled, plain, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_compiled_projections_of_one_stream_are_one_product(free: Decoder) -> None:
    calls: list[str] = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        calls.extend(str(node.target) for node in module.graph.nodes)
        return module.forward

    torch.compile(free.forward, backend=backend, fullgraph=True)(tokens(), noise=noise())
    assert sum("rotary_tables" in call for call in calls) > 0
    assert not any("cos" in call for call in calls)
    products = sum("linear" in call for call in calls)
    assert (
        products == 4 * 4 + 4 + 2 + 1 + 1
    )  # a block: qkv, out, gate and up, down; q apart in the encoder and the injection; its logits; lm_head
