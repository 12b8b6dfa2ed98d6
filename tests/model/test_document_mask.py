"""Masked documents by FlexAttention, against the literal formula and against the dense mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as library

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.model import context
from freetf_cli.model.attention.softmax import Attention
from freetf_cli.model.latent import ObjectiveWeights
from tests.model import attention_loops as loops


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Compile anew, and leave nothing compiled: torch.compile makes the shapes of a function that it has compiled before dynamic."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def documents(rows: int, length: int, share: float, seed: int = 0) -> Tensor:
    """Document ids of rows in which a position begins a document with this probability."""
    return (torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) < share).cumsum(-1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [129, 256, 300, 1000])
@pytest.mark.parametrize("share", [0.0, 0.004, 0.03, 0.5])
def test_block_mask_lists_the_blocks_that_all_pairs_give(length: int, share: float, causal: bool) -> None:
    ours = context.document_block_mask(documents(3, length, share), causal)
    theirs = library.create_block_mask(ours.mask_mod, 3, None, length, length, device="cpu")
    for side in ("kv", "full_kv", "q", "full_q"):
        for part in ("num_blocks", "indices"):
            assert torch.equal(getattr(ours, f"{side}_{part}"), getattr(theirs, f"{side}_{part}")), (side, part)
            assert getattr(ours, f"{side}_{part}").is_contiguous(), "the kernels read contiguous memory"


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_attention_within_documents_is_the_literal_formula(kv_heads: int, causal: bool) -> None:
    """In float64. PyTorch's uncompiled FlexAttention applies the mask to each pair."""
    length, width = 140, 8
    attention = loops.randomised(Attention(ModelConfig(layers=2, width=32, heads=4, kv_heads=kv_heads, vocab=5), 0), 0)
    (q, kv), tables, ids = loops.streams(length, 32), loops.tables(length, width), documents(2, length, 0.03)
    ctx = loops.context(tables, causal, ids)
    got, dense = (attention(q, kv, each) for each in (replace(ctx, block_mask=context.document_block_mask(ids, causal)), ctx))
    for b in range(2):
        heads = []
        for m in range(4):
            key_head, rows = m * kv_heads // 4, []
            queries, k = loops.projected(attention.q, q[b], m, width, tables), loops.projected(attention.k, kv[b], key_head, width, tables)
            v = loops.projected(attention.v, kv[b], key_head, width)
            for i in range(length):
                seen = [j for j in range(i + 1 if causal else length) if ids[b, j] == ids[b, i]]
                rows.append(torch.softmax(torch.from_numpy(k[seen] @ queries[i]) / width**0.5, 0) @ torch.from_numpy(v[seen]))
            heads.append(torch.stack(rows))
        want = torch.cat(heads, -1) @ attention.out.weight.T
        for each in (got, dense):
            assert (each[b] - want).abs().max() < 1e-12 * want.abs().max()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("kind", ["softmax", "differential"])
def test_a_compiled_free_model_by_blocks_equals_the_dense_mask(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and all gradients in float64, traced in one graph. FlexAttention refuses gradients on a CPU, but its operator has them."""
    monkeypatch.setattr(library, "_validate_device", lambda *_: None)
    sizes: dict[str, Any] = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "vocab": 29, "context": 200}
    config = ModelConfig.model_validate(sizes | {"separator": 0, "document_mask": True, "attention": kind})
    model = build_model(config, LatentConfig(kappa=0.01, bits=5)).double()
    initialise_model(model, 0)
    generator = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(0, 29, (2, 2, 200), generator=generator)
    noise = torch.rand(2, 200, 5, generator=generator).double()
    weights = ObjectiveWeights(*(torch.tensor(value) for value in (1e-4, 0.1, 0.0)))
    calls: list[int] = []

    def count_flex(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        calls.append(sum("flex_attention" in str(node.target) for node in graph.graph.nodes))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def outcome(by_blocks: bool) -> tuple[Tensor, dict[str, Tensor]]:
        monkeypatch.setattr(context, "_uses_flex", lambda *_: by_blocks)
        model.zero_grad()
        run = torch.compile(model, fullgraph=True, dynamic=False, backend=count_flex) if by_blocks else model
        objective = run(tokens, noise=noise, targets_BT=targets, weights=weights).losses.objective
        objective.backward()
        return objective.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    (dense, dense_gradients), (flex, flex_gradients) = outcome(False), outcome(True)
    assert calls == [3]  # two blocks and the encoder
    assert (flex - dense).abs() < 1e-12 * dense
    assert dense_gradients.keys() == flex_gradients.keys()
    for name, want in dense_gradients.items():
        assert (flex_gradients[name] - want).norm() < 1e-12 * want.norm(), name
