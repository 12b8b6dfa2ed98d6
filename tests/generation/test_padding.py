"""Prompts of different lengths in one batch, by left padding: every row is what it is alone."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from freetf_cli.config.recipe import LatentConfig
from freetf_cli.data.tokenizer import characters
from freetf_cli.generation import batch, sampling
from freetf_cli.generation.sampling import SampleSpec, generate
from freetf_cli.latent.binary import bit_logits
from freetf_cli.model.decoder import Decoder
from tests.model.test_attention_kinds import KINDS, LATENT, SEPARATOR, make

PADDING = torch.tensor([0, 2, 5])
LENGTH, PROMPT = 12, 7


def rows(separator: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and codes [3, LENGTH]; what is in the padding must not matter."""
    generator = torch.Generator().manual_seed(4)
    tokens, codes = torch.randint(1, 11, (3, LENGTH), generator=generator), torch.randint(0, 32, (3, LENGTH), generator=generator)
    if separator is not None:
        tokens[0, 3] = tokens[1, 8] = separator
    return tokens, codes


def padded_logits(model: Decoder, tokens: torch.Tensor, codes: torch.Tensor, static: bool) -> torch.Tensor:
    """Prompt at once, then position by position, [3, LENGTH, V]."""
    cache = model.new_cache(3, LENGTH + 2, padding=PADDING)
    parts = [model(tokens[:, :PROMPT], codes[:, :PROMPT], cache=cache).logits]
    if static:
        cache.make_static(model.config.head_width, model.config.rope_theta)
    parts += [model(tokens[:, t : t + 1], codes[:, t : t + 1], cache=cache).logits for t in range(PROMPT, LENGTH)]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("separator", [None, SEPARATOR])
@pytest.mark.parametrize("static", [False, True])
@torch.no_grad()
def test_a_padded_row_is_the_row_alone(kind: str, separator: int | None, static: bool) -> None:
    model = make(kind, LATENT, separator=separator)
    tokens, codes = rows(separator)
    got = padded_logits(model, tokens, codes, static)
    for row, pad in enumerate(PADDING.tolist()):
        alone = model(tokens[row : row + 1, pad:], codes[row : row + 1, pad:]).logits
        assert (got[row, pad:] - alone[0]).abs().max() < 1e-12


@pytest.mark.parametrize("of_latent", [{}, {"window": 3}, {"every": 2}, {"every": "sequence"}])
@torch.no_grad()
def test_the_posterior_of_a_padded_prompt_is_that_of_the_prompt_alone(of_latent: dict[str, Any]) -> None:
    """The encoder is not causal: it must not see the padding; a window, and tokens that share a Z, count from the first token."""
    model = make("softmax", LatentConfig(kappa=0.5, bits=5, **of_latent))
    tokens, _ = rows(None)
    noise = torch.rand(*tokens.shape, 5, generator=torch.Generator().manual_seed(0)).double()
    ctx = model.context(tokens, model.new_cache(3, LENGTH, padding=PADDING))
    got = model.infer_latent(model.lower(tokens, ctx), tokens, ctx)
    for row, pad in enumerate(PADDING.tolist()):
        alone, one = model.context(tokens[row : row + 1, pad:]), tokens[row : row + 1, pad:]
        want = model.infer_latent(model.lower(one, alone), one, alone)
        assert (bit_logits(got)[row, pad:] - bit_logits(want)[0]).abs().max() < 1e-12
        assert bit_logits(want).abs().max() > 0.1
        assert torch.equal(got.sample(noise)[row, pad:], want.sample(noise[row : row + 1, pad:])[0])


@pytest.mark.parametrize("prompt_z", ["prior", "posterior"])
@pytest.mark.parametrize(("separator", "every"), [(False, 1), (True, 1), (False, 3), (True, "sequence")])
def test_sampled_rows_do_not_depend_on_their_neighbours(
    prompt_z: str, separator: bool, every: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = characters("abcdefghij", separator=separator)
    model = make(
        "softmax",
        LATENT.model_copy(update={"every": every}),
        **({"separator": tokenizer.separator} if separator else {}),
        vocab=tokenizer.vocab_size,
    )
    spec = SampleSpec(total=16, count=2, groups=2, prompt_z=prompt_z, seed=3)  # type: ignore[arg-type]
    prompts = ["a", "abcab", "cd", "bcdefghi"]
    batches: list[int] = []
    plain = sampling.generate_batch
    monkeypatch.setattr(sampling, "generate_batch", lambda model, rows, *rest: batches.append(len(rows)) or plain(model, rows, *rest))
    together = list(generate(model, tokenizer, prompts, spec))
    assert batches == [16]
    for sample in together:
        codes = sample.z or []
        assert codes == [codes[0 if every == "sequence" else t - t % every] for t in range(len(codes))]
    monkeypatch.setattr(batch, "MOST_ROWS", {"cpu": 1})
    assert list(generate(model, tokenizer, prompts, spec)) == together
    assert batches[1:] == [1] * 16


def test_the_prompts_of_a_batch_have_similar_lengths() -> None:
    """Similar to all others of the batch: 60 and 140 are both similar to 100, but not to each other."""
    model = make("softmax", None)
    rows = [
        sampling._row(None, "", [1] * length, length + 4, (place, 0, 0), SampleSpec(1), None) for place, length in enumerate([100, 60, 140])
    ]
    assert [[len(row.tokens) for row in one] for one in batch.batches(model, iter(rows))] == [[100, 60], [140]]


def test_the_memory_of_a_batch_includes_its_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short prompt with a long continuation beside a long prompt with a short one: rows of 40 + 30 tokens."""
    model = make("softmax", None)
    asked: list[int] = []
    monkeypatch.setattr(batch, "rows_at_once", lambda model, total: asked.append(total) or 8)
    rows = [
        sampling._row(None, "", [1] * 10, 40, (0, 0, 0), SampleSpec(1), None),
        sampling._row(None, "", [1] * 40, 44, (1, 0, 0), SampleSpec(1), None),
    ]
    assert [len(one) for one in batch.batches(model, iter(rows))] == [2]
    assert asked == [70]


def test_generation_does_not_keep_the_model_alive() -> None:
    model = make("softmax", LATENT)
    tokenizer = characters("abcdefghi", separator=True)
    assert len(list(generate(model, tokenizer, ["a"], SampleSpec(total=6, count=2, z="shared")))) == 2
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
