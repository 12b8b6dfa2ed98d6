"""What holds for a whole model with any kind of attention: causality, caches, masked documents, initialisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from freetf_cli.config.recipe import LatentConfig, ModelConfig, TrainConfig
from freetf_cli.latent.binary import bit_logits
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.model.attention import materialised
from freetf_cli.model.attention.head_norm import HeadNorm
from freetf_cli.model.attention.multi_token import QueryCache, RowCache
from freetf_cli.model.context import Cache
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.weights import Draws
from freetf_cli.training.optimizer import make_optimizer

LATENT = LatentConfig(kappa=0.5, bits=5, table_std=5.0)
CONVOLVED = {"c_q": 3, "c_k": 4, "kq_layers": [1, 2]}
KINDS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "talking-heads": {"attention": "talking-heads"},
    "differential": {"attention": "differential"},
    "multi-token": {"attention": "multi-token", "multi_token": CONVOLVED},
    "multi-token, exact": {"attention": "multi-token", "multi_token": CONVOLVED | {"mask": "exact", "norm": "depth"}},
    "multi-token, full": {"attention": "multi-token", "multi_token": CONVOLVED | {"form": "full", "c_h": 2, "norm": "plain"}},
    "multi-token, rows": {"attention": "multi-token", "multi_token": CONVOLVED | {"cache": "rows", "norm": "none"}},
    "multi-token, before": {"attention": "multi-token", "multi_token": CONVOLVED | {"kq": "pre", "mix": "none"}},
    "multi-token, after": {"attention": "multi-token", "multi_token": CONVOLVED | {"kq": "post", "mix": "pre", "cache": "rows"}},
    "multi-token, keys only": {"attention": "multi-token", "multi_token": CONVOLVED | {"c_q": 1}},
    "in two blocks": {"attention": "multi-token", "attention_layers": [1, 2], "multi_token": CONVOLVED},
}
SEPARATOR = 0


def config(kind: str, **settings: Any) -> ModelConfig:
    sizes: dict[str, Any] = {"layers": 4, "width": 32, "heads": 4, "kv_heads": 2, "vocab": 11, "context": 16}
    apart = {"document_mask": True} if settings.get("separator") is not None else {}
    return ModelConfig.model_validate(sizes | KINDS[kind] | apart | settings)


def randomised(model: Decoder) -> Decoder:
    """Kernels and mixes moved away from the identity."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 2 or name.endswith(("norm.b", "norm.u")):
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.4
    return model.double().eval()


def make(kind: str, latent: LatentConfig | None = None, **settings: Any) -> Any:
    model = build_model(config(kind, **settings), latent)
    initialise_model(model, 3)
    return randomised(model)


def logits(model: Decoder, *args: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
    out = model(*args, cache=cache).logits
    assert out is not None
    return out


def inferred(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of the bits that the encoder infers."""
    ctx = model.context(tokens)
    return bit_logits(model.infer_latent(model.lower(tokens, ctx), tokens, ctx))


def tokens(rows: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(1, 11, (rows, length), generator=torch.Generator().manual_seed(0))


def codes(rows: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(0, 32, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [1, 4, 8])
def test_a_later_token_does_not_change_earlier_outputs(kind: str, position: int) -> None:
    model, changed = make(kind), tokens()
    changed[:, position] = changed[:, position] % 10 + 1
    before, after = logits(model, tokens()), logits(model, changed)
    assert torch.equal(before[:, :position], after[:, :position])
    assert (before[:, position:] - after[:, position:]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_code_does_not_change_earlier_outputs(kind: str) -> None:
    model, changed = make(kind, LATENT), codes()
    changed[:, 4] = (changed[:, 4] + 1) % 32
    before, after = logits(model, tokens(), codes()), logits(model, tokens(), changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("separator", [None, SEPARATOR])
@pytest.mark.parametrize("steps", [[9], [4, 5], [2, 3, 1, 1, 1, 1], [1] * 9], ids=str)
def test_cache_equals_full_forward(kind: str, separator: int | None, steps: list[int]) -> None:
    """Also where documents end in the middle of a row."""
    model, row = make(kind, LATENT, separator=separator), tokens()
    row[0, 5] = row[1, 2] = row[1, 3] = SEPARATOR
    cache, start, parts = model.new_cache(2, 12), 0, []
    for step in steps:
        part = slice(start, start + step)
        parts.append(logits(model, row[:, part], codes()[:, part], cache=cache))
        start += step
    assert (torch.cat(parts, 1) - logits(model, row, codes())).abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("separator", [None, SEPARATOR])
@pytest.mark.parametrize("prompt", [1, 2, 6])
def test_static_cache_equals_full_forward(kind: str, separator: int | None, prompt: int) -> None:
    """The position is a tensor, as in a step replayed from a graph; the cache has more room than needed."""
    model, row = make(kind, LATENT, separator=separator), tokens()
    row[0, 5] = row[1, 2] = row[1, 7] = SEPARATOR
    cache = model.new_cache(2, 12)
    parts = [logits(model, row[:, :prompt], codes()[:, :prompt], cache=cache)]
    cache.make_static(model.config.head_width, model.config.rope_theta)
    parts += [logits(model, row[:, t : t + 1], codes()[:, t : t + 1], cache=cache) for t in range(prompt, 9)]
    assert (torch.cat(parts, 1) - logits(model, row, codes())).abs().max() < 1e-12


def test_each_option_has_its_cache() -> None:
    kept = {kind: [type(layer) for layer in make(kind).new_cache(1, 4).layers] for kind in ("multi-token", "multi-token, rows")}
    assert [QueryCache in kept["multi-token"], RowCache in kept["multi-token, rows"]] == [True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_document_gives_what_it_gives_alone(kind: str) -> None:
    """Up to rounding: rotary tables are float32, so distances between positions further on in a row are exact to 1e-6."""
    model, row = make(kind, LATENT, separator=SEPARATOR), tokens()
    row[:, 5] = SEPARATOR
    packed, alone = logits(model, row, codes()), [logits(model, row[:, part], codes()[:, part]) for part in (slice(0, 5), slice(5, 9))]
    assert (packed - torch.cat(alone, 1)).abs().max() < 1e-4 * packed.abs().max()
    whole, apart = (inferred(model, part) for part in (row, row[:, 5:]))
    assert (whole[:, 5:] - apart).abs().max() < 1e-4 * whole.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_an_earlier_document_does_not_change_a_later_one(kind: str) -> None:
    model, row = make(kind, LATENT, separator=SEPARATOR), tokens()
    row[:, 5] = SEPARATOR
    changed = row.clone()
    changed[:, :5] = changed[:, :5] % 10 + 1
    outputs = [(logits(model, one, codes()), inferred(model, one)) for one in (row, changed)]
    for before, after in zip(*outputs, strict=True):
        assert torch.equal(before[:, 5:], after[:, 5:])
        assert (before[:, :5] - after[:, :5]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("kind", ["talking-heads", "multi-token, rows", "multi-token, exact"])
def test_the_model_starts_as_the_plain_one_with_the_same_weights(kind: str) -> None:
    options = {"multi_token": KINDS[kind]["multi_token"] | {"norm": "none"}} if "multi" in kind else {}
    ours, plain = (build_model(config(name, **more), LATENT) for name, more in ((kind, options), ("softmax", {})))
    for model in (ours, plain):
        initialise_model(model, 5)
    other = dict(ours.named_parameters())
    assert all(torch.equal(parameter, other[name]) for name, parameter in plain.named_parameters())
    ours.double(), plain.double()
    assert (logits(ours, tokens(), codes()) - logits(plain, tokens(), codes())).abs().max() < 1e-12  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_free_model_and_its_baseline_start_with_the_same_weights(kind: str) -> None:
    free, base = build_model(config(kind), LATENT), build_model(config(kind), None)
    for model in (free, base):
        initialise_model(model, 5)
    ours = dict(free.named_parameters())
    assert all(torch.equal(parameter, ours[name]) for name, parameter in base.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_every_parameter(kind: str) -> None:
    model = build_model(config(kind), LATENT)
    initialise_model(model, 0)
    noise = torch.rand(2, 9, 5, generator=torch.Generator().manual_seed(2))
    model(tokens(), noise=noise).logits.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error")
def test_in_bfloat16_it_is_equal_up_to_rounding(kind: str) -> None:
    model = make(kind).float()
    with torch.no_grad():
        want = logits(model, tokens())
        with torch.autocast("cpu", torch.bfloat16):
            rounded = logits(model, tokens())
    assert (rounded - want).norm() < 0.1 * want.norm()


def test_weight_decay_does_not_pull_kernels_and_mixes_from_the_identity() -> None:
    model = build_model(config("multi-token"), LATENT)
    decayed, _ = make_optimizer(model, TrainConfig(steps=1, batch=1, lr=1e-3), torch.device("cpu")).param_groups
    names = {name for name, parameter in model.named_parameters() if any(parameter is one for one in decayed["params"])}
    assert "blocks.1.attention.q.weight" in names
    assert not [name for name in names if ".pre." in name or ".post." in name or ".attention.norm." in name]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("differential")])
def test_recomputed_attention_weights_equal_kept_ones(kind: str) -> None:
    found = []
    for setting in ("on", "off"):
        model = make(kind, LATENT)
        materialised.set_attention_checkpointing(model, setting)
        y = logits(model, tokens(), codes())
        y.cos().sum().backward()
        found.append([y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) > 10
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_attention_weights_are_kept_while_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` counts the weights of all sequences, heads and blocks."""
    model = make("talking-heads", None)
    materialised.set_attention_checkpointing(model, "auto")
    made = sum(isinstance(block.attention, materialised.MaterialisedAttention) for block in model.blocks)
    numbers = made * model.config.heads * tokens().numel() * tokens().shape[1]
    kept = []
    for limit in (numbers, numbers + 1):
        monkeypatch.setattr(materialised, "CHECKPOINT_FROM", limit)
        seen: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, seen=seen: seen.append(x.numel()) or x, lambda x: x):
            logits(model, tokens())
        kept.append(sum(seen))
    assert kept[0] < kept[1] - numbers


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["talking-heads", "differential", "multi-token"])
def test_a_model_compiles_in_one_graph(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(materialised, "CHECKPOINT_FROM", 0)
    torch.compiler.reset()  # torch.compile gives up after a few models of one class
    model = make(kind, LATENT)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert (compiled(tokens(), codes()).logits - logits(model, tokens(), codes())).abs().max() < 1e-12
    compiled(tokens(), codes()).logits.cos().sum().backward()


def test_initial_gates() -> None:
    """u of deviation E^-1/2, so that u·n of normed heads has deviation 1."""
    norm = HeadNorm(96, 1e-5, "gate", 0)
    seen = []
    for seed in range(50):
        norm.initialise(Draws(seed))
        assert norm.u is not None
        seen.append(norm.u.detach().clone())
    assert torch.stack(seen).std() * 96**0.5 == pytest.approx(1, abs=0.05)
