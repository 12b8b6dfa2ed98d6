"""Tests that need a CUDA device: compiled kernels, captured graphs, autocast. Run them with `pytest -m gpu`."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F

from freetf_cli.config.files import check_recipe
from freetf_cli.config.recipe import LatentConfig, ModelConfig, Recipe, TrainConfig
from freetf_cli.data.batches import IGNORE
from freetf_cli.data.tokenizer import characters
from freetf_cli.errors import FreetfError
from freetf_cli.generation import batch, decode_loop
from freetf_cli.generation.choose import choose_tokens
from freetf_cli.generation.decode_loop import DecodeLoop
from freetf_cli.generation.sampling import SampleSpec, generate
from freetf_cli.kernels import Embedding, linear_cross_entropy, logit_gradient, mapper, rotary_tables, short_attention
from freetf_cli.kernels.attention import reference_short_attention
from freetf_cli.kernels.convolution import reference_convolution
from freetf_cli.kernels.head_mix import reference_mix
from freetf_cli.latent.binary import PostSampler, sample_codes
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.model.attention.softmax import Attention
from freetf_cli.model.block import Block
from freetf_cli.model.context import Cache, LayerCache, document_block_mask, make_context
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders
from freetf_cli.runs.folder import RunFolder
from freetf_cli.training.loop import Hooks, Loop
from freetf_cli.training.optimizer import make_optimizers
from freetf_cli.training.parallel import Engine
from freetf_cli.training.prefetch import HostBatch
from freetf_cli.training.run import train
from freetf_cli.training.schedule import objective_weights
from freetf_cli.training.signals import StopRequest
from freetf_cli.training.start import resolve
from freetf_cli.training.step import TrainStep
from tests.model.test_attention_kinds import KINDS, LATENT, SEPARATOR, make

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """Compile anew in each test: torch.compile gives up after a few shapes of one function."""
    torch.compiler.reset()


def captured(step: Callable[[], object]) -> Callable[[], None]:
    """The step as a CUDA graph, which runs when it is called, not here."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double().cpu() - theirs.double().cpu()).norm() / theirs.double().cpu().norm())


@pytest.mark.parametrize("bits", [3, 8, 16])
def test_mapper_gradient_on_the_gpu(bits: int) -> None:
    """Equal to the CPU in float64 up to rounding; within 1 % in bfloat16."""
    generator = torch.Generator().manual_seed(bits)
    dr, logits, table = (torch.randn(*shape, generator=generator).double() for shape in ((200, 32), (200, bits), (2**bits, 32)))
    want = logit_gradient(dr, logits, table)
    assert relative(logit_gradient(dr.cuda(), logits.cuda(), table.cuda()), want) < 1e-12
    rough = logit_gradient(dr.cuda().float(), logits.cuda().bfloat16(), table.cuda().float())
    want_rough = logit_gradient(dr, logits.bfloat16().double(), table)
    assert relative(rough, want_rough) < 1e-2


@pytest.mark.parametrize(("tokens", "width", "bits"), [(16_640, 256, 16), (1000, 768, 16), (9000, 1536, 16), (333, 200, 10)])
def test_fused_mapper_gradient(tokens: int, width: int, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 within 1 % of float64, also from a captured graph; a token with a NaN or an infinity gets no finite gradient."""
    generator = torch.Generator().manual_seed(width)
    dr, logits, table = (torch.randn(*shape, generator=generator).cuda() for shape in ((tokens, width), (tokens, bits), (2**bits, width)))
    logits, table = logits.bfloat16(), table + 3  # the common part of all rows would drown the differences in bfloat16
    want = logit_gradient(dr.double(), logits.double(), table.double())
    with monkeypatch.context() as patch:
        if torch.cuda.get_device_capability()[0] == 9:  # fail where the kernel is not used
            patch.setattr(mapper, "_covariance", None)
        got = logit_gradient(dr, logits, table)
        assert relative(got, want) < 1e-2
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            again = logit_gradient(dr, logits, table)
        graph.replay()
        assert torch.equal(again, got)
        dr[-1, 0], dr[0, 1] = float("nan"), float("inf")
        broken = logit_gradient(dr, logits, table)
        assert not broken[-1].isfinite().any() and not broken[0].isfinite().any()
        assert torch.equal(broken[1:-1], got[1:-1])


@pytest.mark.parametrize(("tokens", "width", "bits"), [(1000, 256, 16), (700, 1536, 16), (333, 208, 10)])
def test_mapper_gradient_in_8_bits(tokens: int, width: int, bits: int) -> None:
    """Within 5 % of float64 in norm, also where rows differ by orders of magnitude; a NaN stays with its token."""
    from freetf_cli.kernels.mapper_triton import in_8_bits

    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("the kernels need compute capability 9")
    torch.manual_seed(width)
    dr, logits, table = (torch.randn(*shape, device=CUDA) for shape in ((tokens, width), (tokens, bits), (2**bits, width)))
    dr, table, logits = dr * torch.logspace(-6, 3, tokens, device=CUDA)[:, None], table + 3, logits.bfloat16()
    want = logit_gradient(dr.double(), logits.double(), table.double())
    got = logit_gradient(dr, logits, table, True)
    each = (got.double() - want).norm(dim=1) / want.norm(dim=1)
    assert 0.005 < each.median() < 0.05 and each.quantile(0.99) < 0.2
    assert torch.equal(logit_gradient(dr, logits, table, True), got)
    rows, scale = in_8_bits(table, table.mean(0))
    centred = table - table.mean(0)
    assert ((rows.float() * scale[:, None] - centred).abs() / centred.abs().amax(1, keepdim=True)).max() <= 16.5 / 448
    dr[-1, 0], dr[0, 1] = float("nan"), float("inf")
    broken = logit_gradient(dr, logits, table, True)
    assert not broken[-1].isfinite().any() and not broken[0].isfinite().any()
    assert torch.equal(broken[1:-1], got[1:-1])


@pytest.mark.parametrize(
    ("tokens", "vocabulary"), [(4000, 50_304), (700, 131_072), (5000, 5056)]
)  # multiples of 64: else torch.compile pads and copies
def test_cross_entropy_in_place(tokens: int, vocabulary: int) -> None:
    """Compiled, in bfloat16 and in two chunks: cost and gradients are close to float64, and the logits are not copied."""
    # Vocabularies are multiples of 64: torch.compile pads the rows of other logits, and then copies them.
    torch.manual_seed(0)
    hidden = torch.randn(tokens, 64, device=CUDA, requires_grad=True)
    weight = (torch.randn(vocabulary, 64, device=CUDA) / 8).requires_grad_()  # logits of deviation 1, which bfloat16 holds to 0.3 %
    targets = torch.randint(vocabulary, (tokens,), device=CUDA)
    targets[:3] = IGNORE

    def ours() -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return linear_cross_entropy(hidden, weight, targets, IGNORE)

    exact = F.cross_entropy(hidden.double() @ weight.double().T, targets, ignore_index=IGNORE, reduction="sum")
    want = torch.autograd.grad(exact, (hidden, weight))
    cost = torch.compile(ours, fullgraph=True)()
    assert relative(cost.detach(), exact.detach()) < 1e-3
    for got, exactly in zip(torch.autograd.grad(cost, (hidden, weight)), want, strict=True):
        assert relative(got, exactly) < 0.01
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.compile(ours, fullgraph=True)()
    if torch.cuda.get_device_capability()[0] == 9:
        assert torch.cuda.max_memory_allocated() - before < 1.5 * 2 * tokens * vocabulary + 4 * 64 * (8 * vocabulary + 4 * tokens)


@pytest.mark.parametrize("kind", ["free", "baseline"])
def test_long_attention_compiled_follows_float32(kind: str) -> None:
    """With grouped heads. A kernel packs the gradients of queries, keys and values; in a Free model one block has separate queries."""
    config = ModelConfig(layers=2, width=256, heads=4, kv_heads=2, vocab=29, context=300)
    model = build_model(config, LatentConfig(kappa=1.0, bits=8) if kind == "free" else None).cuda()
    initialise_model(model, 0)
    torch.manual_seed(0)
    tokens, z = torch.randint(0, 29, (4, 300), device=CUDA), torch.randint(0, 256, (4, 300), device=CUDA)
    given = (tokens, z) if kind == "free" else (tokens,)

    def gradients(bf16: bool) -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=bf16):
            y = (torch.compile(model, fullgraph=True) if bf16 else model)(*given).logits
        y.float().cos().sum().backward()
        return [p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and "attention." in name]

    for rough, exactly in zip(gradients(True), gradients(False), strict=True):
        assert relative(rough, exactly) < 0.05


@pytest.mark.parametrize(("place", "length", "apart"), [(0, 8, False), (130, 200, True), (4000, 4095, False), (300, 4096, True)])
def test_decode_block(place: int, length: int, apart: bool) -> None:
    """In bfloat16, its error is at most 1.2 times that of the block of library products; the same from a captured graph."""
    torch.manual_seed(place)
    block = Block(ModelConfig(layers=2, width=1536, heads=12, kv_heads=2, ffn=8960, vocab=5), 0).cuda()
    shape = (1, 2, length, 128)
    k, v, x, other = (torch.randn(shape, device=CUDA) for shape in (shape, shape, (1, 1, 1536), (1, 1, 1536)))
    rotary = rotary_tables(torch.arange(place, place + 1, device=CUDA), 128, 10_000.0)
    position = torch.tensor(place, device=CUDA)

    def outcome(dtype: torch.dtype, where: int | torch.Tensor) -> list[torch.Tensor]:
        cache, kv = LayerCache(k.bfloat16().to(dtype), v.bfloat16().to(dtype)), other.bfloat16().to(dtype) if apart else None
        context = Cache([cache])
        context.length = where
        if isinstance(where, torch.Tensor):
            context.rotary = rotary_tables(torch.arange(length, device=CUDA), 128, 10_000.0)
        ctx = make_context(1, 128, 10_000.0, x.device, cache=context)
        cos, sin = (t.double() if dtype == torch.float64 else t for t in rotary)
        y = block.to(dtype)(x.bfloat16().to(dtype), replace(ctx, rotary=(cos, sin)), kv)
        return [y, cache.k, cache.v]

    with torch.no_grad():
        block.bfloat16()
        plain, ours = outcome(torch.bfloat16, place), outcome(torch.bfloat16, position)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            again = outcome(torch.bfloat16, position)
        graph.replay()
        want = outcome(torch.float64, place)
    for got, replayed, theirs, exactly in zip(ours, again, plain, want, strict=True):
        assert torch.equal(got, replayed)
        assert relative(got, exactly) < 1.2 * relative(theirs, exactly) < 0.02


def test_choosing_a_token_of_one_row_is_repeatable() -> None:
    """CUDA's cumsum of a single row adds in an order that varies."""
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(1, 131_072, generator=generator, device="cuda")
    quantiles = torch.rand(4000, 1, dtype=torch.float64, generator=generator, device="cuda")
    first, second = (torch.cat([choose_tokens(logits, each) for each in quantiles]) for _ in range(2))
    assert torch.equal(first, second)


def test_replayed_steps_of_generation_equal_launched_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(layers=4, width=64, heads=4, kv_heads=2, vocab=29, context=64)
    model = build_model(config, LatentConfig(kappa=1.0, bits=16, table_std=3.0)).cuda().double().eval()
    initialise_model(model, 0)
    tokenizer, spec = characters("abcdefghijklmnopqrstuvwxyz", separator=True), SampleSpec(total=60, count=50, prompt_z="prior")
    replayed = list(generate(model, tokenizer, ["ab"], spec))
    monkeypatch.setattr(decode_loop, "LEAST_STEPS", 10**6)
    launched = list(generate(model, tokenizer, ["ab"], spec))
    assert [row.text for row in replayed] == [row.text for row in launched]
    assert len({len(row.text) for row in launched}) > 1
    assert [row.z for row in replayed] == [row.z for row in launched]


@pytest.mark.parametrize("prompt_z", ["prior", "posterior"])
@pytest.mark.parametrize("separator", [False, True])
def test_padded_prompts_through_the_graph_equal_each_alone(prompt_z: str, separator: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of several lengths in one captured batch give the texts and Z that each row gives in a batch of its own."""
    tokenizer = characters("abcdefghij", separator=separator)
    model = make("softmax", LATENT, vocab=tokenizer.vocab_size, **({"separator": tokenizer.separator} if separator else {})).cuda()
    spec = SampleSpec(total=16, count=2, groups=2, prompt_z=prompt_z, seed=3)  # type: ignore[arg-type]
    prompts = ["a", "abcab", "cd", "bcdefg"]
    batches: list[int] = []
    run_graph = DecodeLoop._run_graph

    def counted(loop: DecodeLoop, steps: int) -> None:
        batches.append(len(loop.tokens_BT))
        run_graph(loop, steps)

    monkeypatch.setattr(DecodeLoop, "_run_graph", counted)
    together = list(generate(model, tokenizer, prompts, spec))
    assert batches == [16]
    monkeypatch.setattr(batch, "MOST_ROWS", {CUDA.type: 1})
    assert list(generate(model, tokenizer, prompts, spec)) == together
    assert batches[1:] == [1] * 16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_static_cache_with_documents(kind: str, padded: bool) -> None:
    """Steps replayed from a graph, across separators, give the logits of one forward over the whole row."""
    model, prompt, length, padding = make(kind, LATENT, separator=SEPARATOR).cuda(), 7, 14, [0, 2, 5]
    torch.manual_seed(0)
    tokens, z = torch.randint(1, 11, (3, length), device=CUDA), torch.randint(0, 32, (3, length), device=CUDA)
    tokens[0, 3] = tokens[1, 8] = tokens[2, 11] = SEPARATOR
    cache = model.new_cache(3, length + 2, padding=torch.tensor(padding, device=CUDA) if padded else None)
    parts = [model(tokens[:, :prompt], z[:, :prompt], cache=cache).logits]
    cache.make_static(model.config.head_width, model.config.rope_theta)
    token, z_token, logits = tokens[:, :1].clone(), z[:, :1].clone(), torch.empty_like(parts[0][:, :1])
    replay = captured(lambda: logits.copy_(model(token, z_token, cache=cache).logits))
    for t in range(prompt, length):
        token.copy_(tokens[:, t : t + 1])
        z_token.copy_(z[:, t : t + 1])
        replay()
        parts.append(logits.clone())
    got = torch.cat(parts, 1)
    for row, pad in enumerate(padding if padded else [0, 0, 0]):
        want = model(tokens[row : row + 1, pad:], z[row : row + 1, pad:]).logits[0]
        assert (got[row, pad:] - want).abs().max() < 1e-10


@pytest.mark.parametrize("kind", ["free", "baseline"])
def test_forward_with_targets_compiled_follows_float32(kind: str) -> None:
    """The loss inside the forward, in one graph under autocast: every term, and the gradients, are close to float32 without either."""
    model = build_model(
        ModelConfig(layers=4, width=128, heads=4, kv_heads=2, vocab=29, context=65),
        LatentConfig(kappa=0.01, bits=16) if kind == "free" else None,
    ).cuda()
    initialise_model(model, 0)
    torch.manual_seed(0)
    tokens, targets = torch.randint(0, 29, (2, 8, 65), device=CUDA)
    targets[:, 60:] = IGNORE
    noise = torch.randint(0, 2, (8, 65, 16), device=CUDA).float()  # 0 sets a bit and 1 clears it, whatever the rounding of its logit
    weights = ObjectiveWeights(*(torch.tensor(value, device=CUDA) for value in (1e-4, 0.1, 0.0, 1.0)))

    def outcome(compiled: bool) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        model.zero_grad()
        run: Callable[..., Any] = torch.compile(model, fullgraph=True) if compiled else model
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=compiled):
            losses = run(tokens, noise=noise, targets_BT=targets, weights=weights).losses
        losses.objective.backward()
        return [each.detach() for each in losses], {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    (terms, gradients), (exact_terms, exact_gradients) = outcome(True), outcome(False)
    for ours, theirs in zip(terms, exact_terms, strict=True):
        assert float(ours) == pytest.approx(float(theirs), rel=0.02)
    assert gradients.keys() == exact_gradients.keys()
    trained_by_bits = ("latent.encoder.", "latent.post_sampler.")
    compared = [name for name, p in gradients.items() if p.dim() == 2 and not name.startswith(trained_by_bits)]
    assert max(relative(gradients[name], exact_gradients[name]) for name in compared) < 0.1


@pytest.mark.parametrize(("length", "heads", "shape"), [(320, 2, (2, 9)), (700, 16, (6, 11)), (65, 3, (1, 33))])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_convolution_of_attention_weights(kind: torch.dtype, length: int, heads: int, shape: tuple[int, int]) -> None:
    """Compiled: output and both gradients are close to float64. bfloat16 rounds a number by at most 2⁻⁹ of itself."""
    from freetf_cli.kernels.convolution_triton import causal_convolution

    torch.manual_seed(length)
    x, dy = (torch.randn(2 * heads, length, length, device=CUDA).to(kind) for _ in range(2))
    kernel = torch.randn(heads, *shape, device=CUDA)
    given = x.clone().requires_grad_(), kernel.clone().requires_grad_()
    y = torch.compile(causal_convolution, fullgraph=True)(*given)
    got = y.detach(), *torch.autograd.grad(y, given, dy)
    wide = x.double().requires_grad_(), kernel.to(kind).double().requires_grad_()
    maps = wide[0].tril().view(2, heads, length, length)
    want = reference_convolution(maps, wide[1][:, None], shape[0] - 1).flatten(0, 1).tril()
    for ours, theirs in zip(got, (want.detach(), *torch.autograd.grad(want, wide, dy.double())), strict=True):
        assert relative(ours, theirs) < (2**-9 if kind == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("length", [130, 512])
@pytest.mark.parametrize("heads", [2, 16])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_mix_of_heads(kind: torch.dtype, heads: int, length: int) -> None:
    """Compiled: output and both gradients are close to float64. bfloat16 rounds a number by at most 2⁻⁹ of itself."""
    from freetf_cli.kernels.head_mix_triton import causal_mix

    torch.manual_seed(length)
    x, dy = (torch.randn(2, 16, length, length, device=CUDA).to(kind) for _ in range(2))
    mix = torch.randn(16 // heads, heads, heads, device=CUDA).to(kind).float()
    given = x.clone().requires_grad_(), mix.clone().requires_grad_()
    y = torch.compile(causal_mix, fullgraph=True)(*given)
    got = y.detach(), *torch.autograd.grad(y, given, dy)
    wide = x.double().requires_grad_(), mix.double().requires_grad_()
    want = reference_mix(wide[0].tril(), wide[1]).tril()
    for ours, theirs in zip(got, (want.detach(), *torch.autograd.grad(want, wide, dy.double())), strict=True):
        assert relative(ours, theirs) < (2**-9 if kind == torch.bfloat16 else 1e-5)
    assert not got[0].triu(1).any() and not got[1].triu(1).any()


@pytest.mark.parametrize("kind", ["multi-token", "differential", "talking-heads"])
def test_kinds_of_attention_train_in_bfloat16(kind: str, tmp_path: Path) -> None:
    """Compiled and as a CUDA graph, their steps follow float32 on the CPU."""
    model = {"layers": 4, "width": 128, "heads": 4, "vocab": 29, "context": 65, "attention": kind}
    losses = {}
    for where in ("cuda", "cpu"):
        recipe = check_recipe(
            {"data": {"task": "letters"}, "model": model, "train": {"steps": 20, "batch": 16, "lr": 1e-3, "log_every": 20}}, where="test"
        )
        train(recipe, tmp_path / where, device=torch.device(where))
        losses[where] = json.loads((tmp_path / where / "metrics.jsonl").read_text().splitlines()[-1])["ce"]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.02)


# dtype, query heads, key heads, head width, positions, causal
MASKED_DOCUMENTS = [
    (torch.bfloat16, 4, 4, 64, 512, True),
    (torch.bfloat16, 12, 2, 128, 1000, True),
    (torch.bfloat16, 4, 2, 32, 300, False),
    (torch.bfloat16, 2, 2, 256, 384, True),
    (torch.bfloat16, 3, 1, 48, 260, True),
    (torch.bfloat16, 4, 4, 16, 130, False),
    (torch.float32, 4, 2, 64, 640, True),
    (torch.float32, 2, 2, 128, 300, False),
]


def document_ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Five documents a row on average."""
    torch.manual_seed(seed)
    return (torch.rand(rows, length, device=CUDA) < 4 / length).cumsum(-1)


@pytest.mark.parametrize(("dtype", "heads", "key_heads", "width", "length", "causal"), MASKED_DOCUMENTS)
def test_flex_attention_within_documents(dtype: torch.dtype, heads: int, key_heads: int, width: int, length: int, causal: bool) -> None:
    """Errors of output and gradients are at most 1.2 times those of the dense mask. A captured graph makes its block mask anew each time.

    Where it is not causal, all rows share their queries, as in an encoder.
    """
    ids, other_ids = document_ids(3, length), document_ids(3, length, seed=1)
    rows = 3 if causal else 1
    q, dy = (torch.randn(count, heads, length, width, device=CUDA, dtype=dtype) for count in (rows, 3))
    k, v = torch.randn(2, 3, key_heads, length, width, device=CUDA, dtype=dtype)

    attention = Attention(ModelConfig(layers=2, width=heads * width, heads=heads, kv_heads=key_heads, vocab=5))

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ids: torch.Tensor, by_blocks: bool) -> torch.Tensor:
        ctx = make_context(length, width, 10_000.0, CUDA, ids)
        ctx = ctx if causal else ctx.non_causal()
        block_mask = document_block_mask(ids, causal) if by_blocks else None
        return attention.attend(q.expand(3, -1, -1, -1), k, v, replace(ctx, block_mask=block_mask), None)

    compiled = torch.compile(attend, fullgraph=True, dynamic=False)

    def outcome(ids: torch.Tensor, dtype: torch.dtype, by_blocks: bool) -> list[torch.Tensor]:
        given = [x.to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
        y = (compiled if by_blocks else attend)(*given, ids, by_blocks)
        return [y.detach(), *torch.autograd.grad(y, given, dy.to(y.dtype))]

    flex = outcome(ids, dtype, True)
    place = ids.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = outcome(place, dtype, True)
    for chosen in (ids, other_ids):
        place.copy_(chosen)
        graph.replay()
        dense, exact = outcome(chosen, dtype, False), outcome(chosen, torch.float64, False)
        for ours, theirs, want in zip(replayed, dense, exact, strict=True):
            assert relative(ours, want) < 1.2 * relative(theirs, want) + 1e-6
            assert relative(ours, want) < (0.02 if dtype == torch.bfloat16 else 1e-4)
        if chosen is ids:
            assert torch.equal(replayed[0], flex[0])


@pytest.mark.parametrize("kind", ["softmax", "differential", "talking-heads", "multi-token"])
def test_training_with_masked_documents_by_blocks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured steps in bfloat16, each with other documents: FlexAttention is as close to float32 as the dense mask is."""
    sizes = {"layers": 2, "width": 128, "heads": 4, "kv_heads": 2, "vocab": 32, "context": 400, "separator": 0, "document_mask": True}
    options = {"multi_token": {"kq": "none", "c_h": 2}} if kind == "multi-token" else {}  # fused
    config = ModelConfig.model_validate(sizes | {"attention": kind} | options)
    rows = [torch.randint(1, 32, (4, 401), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    for number, each in enumerate(rows):
        each[:, [0, 90 + 60 * number]] = 0
    bits = torch.randint(0, 2, (4, 400, 8), generator=torch.Generator().manual_seed(0))  # 0 sets a bit and 1 clears it: see above

    def outcome(precision: Literal["fp32", "bf16"], captured: Literal["on", "off"]) -> tuple[list[float], torch.Tensor]:
        """CE of each step, and the change of all weights."""
        torch.compiler.reset()
        train_config = TrainConfig(steps=3, batch=4, lr=1e-3, compile=captured, cuda_graph=captured, precision=precision)
        model = build_model(config, LatentConfig(kappa=0.01, bits=8)).cuda()
        initialise_model(model, 0)
        optimizers = make_optimizers(model, train_config, CUDA)
        update = TrainStep(Engine(model, train_config, CUDA), optimizers, train_config, CUDA, (4, 400))
        update.noise.copy_(bits)
        before, ce = torch.cat([p.detach().flatten() for p in model.parameters()]), []
        for number, each in enumerate(rows):
            update(number, HostBatch(each[:, :-1], each[:, 1:], each[:, 1:].numel()), each[:, 1:].numel(), 1e-3, (1e-4, 0.1, 0.0, 1.0))
            ce.append(float(update.sums[0]))
        return ce, torch.cat([p.detach().flatten() for p in model.parameters()]) - before

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the dense mask is used")

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", refused)
        ce, moved = outcome("bf16", "on")
    with monkeypatch.context() as patch:
        patch.setattr("freetf_cli.model.context._uses_flex", lambda *_: False)
        _, moved_by_dense = outcome("bf16", "on")
    exact_ce, exactly = outcome("fp32", "off")
    assert ce == pytest.approx(exact_ce, rel=0.01)
    assert len({round(each, 1) for each in ce}) == 3
    assert relative(moved, exactly) < 1.2 * relative(moved_by_dense, exactly)


SHORT = [
    (65, 8, 32, True, False),
    (65, 8, 32, False, True),
    (65, 4, 64, True, False),
    (17, 2, 32, True, False),
    (33, 4, 64, False, True),
    (128, 2, 32, True, False),
    (128, 2, 64, False, True),
]


@pytest.mark.parametrize(("length", "heads", "width", "causal", "apart"), SHORT)
def test_attention_of_short_sequences(length: int, heads: int, width: int, causal: bool, apart: bool) -> None:
    """In bfloat16, errors of output and gradients are at most 1.2 times those of PyTorch's attention.

    apart: one query for all positions.
    """
    torch.manual_seed(length)
    full = heads * width
    packed = torch.randn(16, length, (2 if apart else 3) * full, device=CUDA, dtype=torch.bfloat16)
    query = torch.randn(1, 1, full, device=CUDA, dtype=torch.bfloat16) if apart else None
    dy = torch.randn(16, length, full, device=CUDA, dtype=torch.bfloat16)
    cos, sin = rotary_tables(torch.arange(length, device=CUDA), width, 10_000.0)

    def outcome(function: Callable[..., torch.Tensor], wide: bool) -> list[torch.Tensor]:
        given = [x if x is None else (x.double() if wide else x.clone()).requires_grad_() for x in (packed, query)]
        y = function(given[0], None if given[1] is None else given[1].expand(16, length, full), (cos, sin), heads, causal)
        y.backward(dy.to(y.dtype))
        return [y.detach(), *(x.grad for x in given if x is not None)]  # type: ignore[misc]

    fused, plain, exact = (
        outcome(short_attention, False),
        outcome(reference_short_attention, False),
        outcome(reference_short_attention, True),
    )
    for ours, theirs, want in zip(fused, plain, exact, strict=True):
        assert relative(ours, want) < 1.2 * relative(theirs, want) < 0.05


def test_centred_table_equals_pytorchs() -> None:
    from freetf_cli.kernels.mapper_triton import centred

    torch.manual_seed(0)
    table, common = torch.randn(1000, 200, device=CUDA), torch.randn(200, device=CUDA)
    assert torch.equal(centred(table, common), (table - common).bfloat16())


def test_gradient_of_a_small_embedding_table() -> None:
    torch.manual_seed(0)
    embedding, tokens = Embedding(29, 64, device=CUDA), torch.randint(0, 29, (64, 65), device=CUDA)
    dx = torch.randn(64, 65, 64, device=CUDA)
    embedding(tokens).backward(dx)
    want = torch.zeros(29, 64, dtype=torch.float64, device=CUDA).index_add_(0, tokens.flatten(), dx.flatten(0, 1).double())
    assert relative(embedding.weight.grad, want) < 1e-5


def test_compiled_bf16_gradients_follow_float32() -> None:
    model = build_model(ModelConfig(layers=4, width=128, heads=4, vocab=29, context=65), LatentConfig(kappa=1.0, bits=16))
    initialise_model(model, 0)
    torch.manual_seed(0)
    tokens = torch.randint(0, 29, (8, 65))
    noise = torch.randint(0, 2, (8, 65, 16)).float()  # 0 sets a bit and 1 clears it, whatever the rounding of its logit

    def gradients(device: torch.device, compiled: bool) -> dict[str, torch.Tensor]:
        model.to(device).zero_grad()
        run: Callable[..., Any] = torch.compile(model, fullgraph=True) if compiled else model
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=compiled):
            logits = run(tokens.to(device), noise=noise.to(device)).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.to(device).flatten())
        loss.backward()
        return {name: p.grad.detach().cpu().clone() for name, p in model.named_parameters() if p.grad is not None}

    plain, fast = gradients(torch.device("cpu"), False), gradients(CUDA, True)
    assert plain.keys() == fast.keys()
    large = [
        name
        for name in plain
        if name not in ("latent.post_sampler.weight", "latent.encoder.to_bit_logits.weight") and plain[name].dim() == 2
    ]
    assert max(relative(fast[name], plain[name]) for name in large) < 0.1


def test_cached_generation_equals_the_full_forward() -> None:
    model = build_model(ModelConfig(layers=4, width=64, heads=4, kv_heads=2, vocab=6, context=32), LatentConfig(kappa=1.0, bits=4))
    initialise_model(model, 0)
    model.to(CUDA).eval()
    for row in generate(model, characters("abcdef", separator=False), ["ab"], SampleSpec(total=33, count=4, temperature=0)):
        tokens = torch.tensor([["abcdef".index(c) for c in row.text]], device=CUDA)
        with torch.no_grad():
            logits = model(tokens[:, :-1], torch.tensor([row.z], device=CUDA)).logits
        taken = logits.gather(-1, tokens[:, 1:, None])[0, 1:, 0]
        assert (logits[0, 1:].max(-1).values - taken).max() < 1e-4  # up to ties


def test_codes_do_not_depend_on_the_device() -> None:
    logits, noise = torch.randn(4, 9, 16), torch.rand(4, 9, 16)
    same = sample_codes(logits, noise) == sample_codes(logits.cuda(), noise.cuda()).cpu()
    assert same.float().mean() > 0.99


def test_memory_stays_in_chunks() -> None:
    """No tensor of [tokens, 65536] is made: of 32,768 tokens it would be 8.6 GB."""
    sampler = PostSampler(16, 64).cuda()
    torch.nn.init.normal_(sampler.weight)
    logits = torch.randn(1, 32_768, 16, device=CUDA, requires_grad=True)
    codes = sample_codes(logits.detach(), torch.rand_like(logits))
    torch.cuda.reset_peak_memory_stats()
    sampler(codes, logits).square().sum().backward()
    assert torch.cuda.max_memory_allocated() < 4 << 30


def small(**settings: Any) -> Recipe:
    """A recipe for the kernel of short attention. κ is so small that the KL exceeds it at every step."""
    tree = {
        "data": {"task": "letters"},
        "model": {"layers": 2, "width": 64, "heads": 2},  # heads of 32
        "latent": {
            "kappa": 0.01,
            "bits": 8,
            "objective": {"schedule": {"kappa": [[0, 0.1], [1]]}, "mismatch": 0.5},
            "numerics": {"gradient": "heun"},
        },
        "train": {"steps": 6, "batch": 16, "lr": 1e-3, "deterministic": True, "log_every": 1, **settings},
        "eval": {"samples": 0},
    }
    return check_recipe(tree, where="test")


def loop(path: Path, recipe: Recipe) -> Loop:
    recipe, source = resolve(recipe)
    model = build_model(recipe.model, recipe.latent)
    initialise_model(model, recipe.train.seed)
    engine = Engine(model.to(CUDA).train(), recipe.train, CUDA)
    return Loop(recipe, source, engine, RunFolder.create(path, recipe), CUDA, Hooks(), StopRequest())


def state(running: Loop) -> list[torch.Tensor]:
    """Weights, moments and step counters."""
    moments = [value for entry in running.optimizers[0].state.values() for value in entry.values()]
    return [value.detach().clone() for value in (*running.model.parameters(), *moments)]


def moved(running: Loop, steps: int) -> tuple[torch.Tensor, list[list[float]]]:
    """The change of all weights over some steps, and the sums and gradient norm of each step."""
    before, records = [value.detach().clone() for value in running.model.parameters()], []
    for _ in range(steps):
        sums, grad_norm, count, _ = running.train_step()
        records.append([*sums.tolist(), float(grad_norm), count])
        running.step += 1
    return torch.cat([(now - then).flatten() for now, then in zip(running.model.parameters(), before, strict=True)]).detach(), records


TURNS = {"encoder": {"turns": "alternating", "lr_scale": 2.0}}


@pytest.mark.parametrize("settings", [{}, {"grad_accum_steps": 4}, {"compile": "off"}, {"deterministic": False}, TURNS])
def test_a_replayed_step_equals_a_launched_one(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Learning rate, κ, batch and noise change at every step: the graph must not freeze any of them."""
    found = [moved(loop(tmp_path / name, small(cuda_graph=name, warmup=3, **settings)), 5) for name in ("on", "off")]
    torch.use_deterministic_algorithms(False)
    (graph, ours), (eager, theirs) = found
    assert relative(graph, eager) < 5e-2  # Adam turns rounding of a gradient near zero into a full step
    assert torch.tensor(ours).allclose(torch.tensor(theirs), rtol=1e-2)
    assert len({row[0] for row in ours}) == 5
    assert len({row[2] / row[1] for row in ours}) == 5


def test_a_graph_updates_only_those_whose_turn_it_is(tmp_path: Path) -> None:
    """Weights, moments and step counters of the others stay, bit for bit, from the first step on, which captures the graph."""
    running = loop(tmp_path / "run", small(cuda_graph="on", **TURNS))
    for step in range(4):
        before = [[*_owned(optimizer)] for optimizer in running.optimizers]
        running.train_step()
        running.step += 1
        same = [
            all(torch.equal(a, b) for a, b in zip(old, _owned(one), strict=True))
            for old, one in zip(before, running.optimizers, strict=True)
        ]
        assert same == [step % 2 == 0, step % 2 == 1]  # the decoder's, the encoder's
    torch.use_deterministic_algorithms(False)
    assert [{float(entry["step"]) for entry in one.state.values()} for one in running.optimizers] == [{2.0}, {2.0}]


def _owned(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Weights, moments and step counters of an optimizer, as they are now."""
    weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [value.detach().clone() for value in (*weights, *(value for entry in optimizer.state.values() for value in entry.values()))]


def test_capturing_changes_no_state(tmp_path: Path) -> None:
    running = loop(tmp_path / "run", small(cuda_graph="on"))
    weights = [value.detach().clone() for value in running.model.parameters()]
    running.update._capture()
    torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(running.model.parameters(), weights, strict=True))
    assert all(not value.any() for entry in running.optimizers[0].state.values() for value in entry.values())
    assert running.update.faults() == []
    running.train_step()
    assert {float(entry["step"]) for entry in running.optimizers[0].state.values()} == {1.0}


@pytest.mark.parametrize("graph", ["on", "off"])
def test_a_loss_that_is_not_finite_stops_updates_at_once_and_the_run_at_the_next_log_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: str
) -> None:
    def poisoned(step: int, *args: Any) -> ObjectiveWeights:
        weights = objective_weights(step, *args)
        return weights._replace(kappa=math.nan) if step == 3 else weights

    recipe = small(cuda_graph=graph, steps=20, log_every=8, skip_limit=0)
    good = loop(tmp_path / "good", recipe)
    moved(good, 3)
    monkeypatch.setattr("freetf_cli.training.loop.objective_weights", poisoned)
    running = loop(tmp_path / "run", recipe)
    with pytest.raises(FreetfError, match="not finite at step 4"):
        running.run()
    torch.use_deterministic_algorithms(False)
    assert running.step == 8
    assert all(torch.equal(a, b) for a, b in zip(state(running), state(good), strict=True))
    assert checkpoint_folders(tmp_path / "run") == []


@pytest.mark.parametrize("graph", ["on", "off"])
def test_deterministic_runs_and_exact_resume(tmp_path: Path, graph: str) -> None:
    recipe = small(save_every=3, keep_last=2, cuda_graph=graph)
    for name in ("a", "b"):
        train(recipe, tmp_path / name, device=CUDA)

    def weights(run: str) -> bytes:
        return (tmp_path / run / "checkpoints" / "step-000006" / "model.safetensors").read_bytes()

    assert weights("a") == weights("b")
    whole = weights("b")
    train(recipe, tmp_path / "b", device=CUDA, resume=Checkpoint.open(checkpoint_folders(tmp_path / "b")[0]))
    assert weights("b") == whole
    rows = [json.loads(line)["loss"] for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0] != rows[-2]


def test_likelihood_and_rate_agree_with_the_cpu() -> None:
    """The same rows and noise give the same costs in float32, up to bits that rounding flips."""
    from freetf_cli.config.recipe import DataConfig
    from freetf_cli.data.batches import open_data
    from freetf_cli.evaluation.likelihood import row_costs
    from freetf_cli.evaluation.probe.rate import read_posterior

    source = open_data(DataConfig(task="letters"), context=None, seed=0)
    model = build_model(ModelConfig(layers=4, width=64, heads=4, vocab=29, context=65), LatentConfig(kappa=1.0, bits=16)).eval()
    initialise_model(model, 0)
    found = []
    for device in (torch.device("cpu"), CUDA):
        model.to(device)
        costs = row_costs(model, source, split="val", sequences=64, draws=(1, 8))
        posterior = read_posterior(model, source, "val", 64, 0, lambda x: x[:, 0], lambda n: None)
        rows = [*(costs.nats[name] for name in ("kl", "ce_posterior", "ce_prior", "nll")), posterior.ce_other]
        found.append(torch.stack([torch.from_numpy(row) for row in rows]))
    assert relative(found[1], found[0]) < 1e-3
