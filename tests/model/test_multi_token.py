"""Multi-Token Attention against the paper's sums, written out; its sizes; its initialisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freetf_cli.config.recipe import ModelConfig, MultiTokenConfig
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.model.attention import multi_token
from freetf_cli.model.attention.multi_token import MultiToken
from freetf_cli.model.attention.softmax import Attention
from tests.model import attention_loops as loops

LENGTH = 7


def config(kv_heads: int | None = None, **options: Any) -> ModelConfig:
    sizes = {"c_q": 3, "c_k": 5, "kq_layers": [1], "norm": "none"}
    return ModelConfig(
        layers=3, width=16, heads=4, kv_heads=kv_heads, vocab=5, attention="multi-token", multi_token=MultiTokenConfig(**(sizes | options))
    )


def errors(attention: MultiToken, seed: int = 0, documents: list[int] | None = None) -> float:
    """Largest difference from the loops, each document by itself, as a share of the largest number."""
    q, kv = loops.streams(LENGTH, 16, seed=seed)
    cos, sin = loops.tables(LENGTH, 4)
    numbers = None if documents is None else torch.tensor([documents, documents])
    got, worst = attention(q, kv, loops.context((cos, sin), document_ids=numbers)).detach(), 0.0
    for b in range(2):
        for document in set(documents or [0]):
            part = [t for t in range(LENGTH) if documents is None or documents[t] == document]
            want = torch.from_numpy(loops.multi_token(attention, q[b, part], kv[b, part], (cos[part], sin[part])))
            assert want.abs().max() > 1e-3
            worst = max(worst, float((got[b, part] - want).abs().max() / want.abs().max()))
    return worst


@pytest.mark.parametrize("widest", [0, 256])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": "exact"},
        {"c_h": 2},
        {"form": "full", "c_h": 2},
        {"form": "full", "mask": "exact"},
        {"kq": "pre", "mix": "post"},
        {"kq": "post", "mix": "pre", "norm": "plain"},
        {"kq": "pre", "mix": "none", "norm": "depth"},
        {"kq": "none", "norm": "gate"},
        {"kq": "none", "c_h": 2},
        {"kq": "none", "mix": "pre"},
        {"kq": "none", "mix": "post", "c_h": 2},
        {"kq": "none", "mix": "none", "norm": "gate"},
    ],
    ids=str,
)
def test_it_equals_the_papers_sums(kv_heads: int, options: dict[str, Any], widest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing convolves, by fused wide heads and by materialised weights."""
    monkeypatch.setattr(multi_token, "WIDEST_HEAD", widest)
    assert errors(loops.randomised(MultiToken(config(kv_heads, **options), 1), seed=kv_heads)) < 1e-12  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(
    c_q=st.integers(1, 4),
    c_k=st.integers(1, 6),
    sides=st.sampled_from([("both", "both"), ("pre", "pre"), ("post", "both")]),
    mask=st.sampled_from(["double", "exact"]),
    form=st.sampled_from(["factorised", "full"]),
    documents=st.none() | st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH),
    seed=st.integers(0, 1000),
)
def test_every_kernel_with_documents_packed_in_a_row(
    c_q: int, c_k: int, sides: tuple[str, str], mask: str, form: str, documents: list[bool] | None, seed: int
) -> None:
    """Kernels of even and odd widths. A document gives what it gives alone."""
    chosen = config(kv_heads=2, c_q=c_q, c_k=c_k, kq=sides[0], mix=sides[1], mask=mask, form=form, c_h=2)
    number, numbered = 0, []
    for begins in documents or []:
        number += begins
        numbered.append(number)
    attention = loops.randomised(MultiToken(chosen, 1), seed)
    assert errors(attention, seed, numbered or None) < 1e-10  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["factorised", "full"])
@pytest.mark.parametrize("mask", ["double", "exact"])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_it_starts_as_plain_attention_and_every_parameter_has_a_gradient(form: str, mask: str, kv_heads: int) -> None:
    chosen = config(kv_heads, form=form, mask=mask, c_h=2)
    attention, plain = MultiToken(chosen, 1).double(), Attention(chosen).double()
    attention.load_state_dict(plain.state_dict(), strict=False)
    q, kv = loops.streams(LENGTH, 16)
    got = attention(q, kv, loops.context(loops.tables(LENGTH, 4)))
    assert (got - plain(q, kv, loops.context(loops.tables(LENGTH, 4)))).abs().max() < 1e-14
    got.square().sum().backward()
    extra = {name: p for name, p in attention.named_parameters() if name.startswith(("pre.", "post."))}
    assert len(extra) == (2 if form == "full" else 4)
    assert all(p.grad is not None and (p.grad != 0).all() for p in extra.values())


def test_the_factorised_form_is_a_full_kernel_of_rank_one() -> None:
    factors, full = (MultiToken(config(form=form, c_h=2), 1) for form in ("factorised", "full"))
    loops.randomised(factors, 3)
    full.double().load_state_dict(
        {name: p for name, p in factors.state_dict().items() if "pre" not in name and "post" not in name}, strict=False
    )
    for ours, theirs in ((factors.pre, full.pre), (factors.post, full.post)):
        assert ours.kernel is not None and ours.mix is not None and theirs.kernel is not None
        heads = torch.arange(4)[:, None] // 2 * 2 + torch.arange(2)  # θ[o, h] = w[o, h] θ_h
        theirs.kernel.data = ours.mix.flatten(0, 1)[:, :, None, None] * ours.kernel[heads, 0]
    q, kv = loops.streams(LENGTH, 16)
    both = [a(q, kv, loops.context(loops.tables(LENGTH, 4))) for a in (factors, full)]
    assert (both[0] - both[1]).abs().max() < 1e-12 * both[0].abs().max()


def test_only_the_named_blocks_convolve() -> None:
    model = build_model(config().model_copy(update={"attention_layers": [1, 2]}), None)
    kernels = [[name for name, _ in block.attention.named_parameters() if "kernel" in name] for block in model.blocks]
    assert [type(block.attention) for block in model.blocks] == [Attention, MultiToken, MultiToken]
    assert kernels == [[], ["pre.kernel", "post.kernel"], []]


def test_parameters_are_those_of_the_papers_880m_model() -> None:
    """2 L M (c_q c_k / 4 + c_h) + L (2 E + 1) beside a baseline of 876,553,728."""
    sizes = {"layers": 24, "width": 1536, "heads": 16, "ffn": 4096, "vocab": 128_256, "context": 2048}
    with torch.device("meta"):
        plain, ours = (build_model(ModelConfig(**sizes, attention=kind), None) for kind in ("softmax", "multi-token"))
    counts = [sum(p.numel() for p in model.parameters()) for model in (plain, ours)]
    assert counts == [876_553_728, 876_553_728 + 29_592]


@pytest.mark.parametrize("form", ["factorised", "full"])
@pytest.mark.parametrize("init", ["zero", "constant", "random"])
def test_kernels_that_do_not_start_as_the_identity(init: str, form: str) -> None:
    """They hold what `init` says, differ by seed only if drawn, and the block computes the paper's sums with them from the first step."""
    chosen = config(init=init, form=form, c_h=2)
    first, again, other = (build_model(chosen, None) for _ in range(3))
    for model, seed in ((first, 3), (again, 3), (other, 4)):
        initialise_model(model, seed)
    attention, kernels = first.blocks[1].attention, [model.blocks[1].attention.post.kernel.detach() for model in (first, again, other)]
    assert isinstance(attention, MultiToken)
    assert torch.equal(kernels[0], kernels[1]) and torch.equal(kernels[0], kernels[2]) == (init != "random")
    if init == "random":
        taps = kernels[0][0].numel()  # 15, or 30 if two heads are mixed
        assert (
            float(kernels[0].std()) == pytest.approx(taps**-0.5, rel=0.25)
            and abs(kernels[0].mean()) < 3 * taps**-0.5 / kernels[0].numel() ** 0.5
        )
    else:
        assert (kernels[0] == {"zero": 0.0, "constant": 0.3}[init]).all()
    if init != "zero":  # whose output is 0: nothing weighs the values
        assert errors(attention.double()) < 1e-12


@pytest.mark.parametrize("init", ["identity", "zero", "constant", "random"])
def test_a_later_token_does_not_change_earlier_outputs_of_a_new_model(init: str) -> None:
    for options in ({}, {"mask": "exact"}, {"form": "full", "c_h": 2}, {"kq": "pre", "mix": "none"}, {"kq": "post", "mix": "none"}):
        model = build_model(config(init=init, **options), None)
        initialise_model(model, 3)
        tokens = torch.randint(5, (2, LENGTH), generator=torch.Generator().manual_seed(0))
        later = tokens.clone()
        later[:, 4:] = (later[:, 4:] + 1) % 5
        ours, theirs = (model.double()(one).logits for one in (tokens, later))
        assert torch.equal(ours[:, :4], theirs[:, :4]) and not torch.equal(ours[:, 4:], theirs[:, 4:])
