"""Generation. Z is an explicit argument: drawn from the prior, from the posterior of the prompt, shared by a group, or given.

The encoder runs once, when the prompt is read; after that every position takes its own Z_t and the cache holds the rest.
Each sequence has random streams of its own, keyed by (seed, prompt, group, index), so it does not depend on the batch it is in, and
replaying its Z with the same seed gives the same text.

Shapes: B sequences, P prompt positions, T input positions (prompt and continuation, without the last token), H bits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from itertools import chain, groupby, product
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.errors import InputError
from freetf_cli.generation.decode_loop import Continuation
from freetf_cli.latent.binary import sample_codes
from freetf_cli.model.attention.registry import map_numbers
from freetf_cli.model.decoder import Cache, Decoder
from freetf_cli.model.free_transformer import FreeTransformer
from freetf_cli.records.samples import Sample

MOST_ROWS = {"cpu": 1024, "cuda": 4096}  # generated together, as far as their caches fit
_CACHE_BYTES = {"cpu": 256 << 20, "cuda": 8 << 30}
ALIGNED = 64
LEAST_TEMPERATURE = 1e-30  # but for 0: less is no number in float32


@dataclass(frozen=True)
class SampleSpec:
    """How to sample. rows per prompt = groups × count, group by group.

    z: "independent" (a Z a sequence) or "shared" (a Z a group). given_z overrides it: record i for row i, or groups × count
    records for every prompt, or one for all. prompt_z: where the prompt's Z comes from. temperature 0 takes the likeliest token.
    total: tokens of a row, prompt and continuation; new_tokens overrides it with so many after the prompt.
    """

    total: int
    new_tokens: int | None = None
    count: int = 1
    groups: int = 1
    z: Literal["independent", "shared"] = "independent"
    given_z: Sequence[Sequence[int]] | None = None
    prompt_z: Literal["posterior", "prior"] = "posterior"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


class _Stream(IntEnum):
    """What a random stream is for; part of its key."""

    PRIOR = 0
    POSTERIOR = 1
    TOKENS = 2


@dataclass(frozen=True)
class _Row:
    """One sequence to generate: its prompt's tokens, its place, and all of its randomness."""

    prompt: str
    tokens: list[int]
    total: int
    group: int
    index: int
    codes: np.ndarray  # [T] int64, from the prior or given
    posterior_noise: np.ndarray | None  # [P, H] uniform, when the prompt's codes come from the encoder
    token_noise: np.ndarray  # [T - P + 1] uniform


def generate(model: Decoder, tokenizer: Tokenizer, prompts: Iterable[str], spec: SampleSpec, *, together: bool = True) -> Iterator[Sample]:
    """Sequences for every prompt, in order, as they are made.

    together: rows of several prompts may share a batch; False answers each prompt before the next is read.
    Raises InputError for a prompt that the tokenizer cannot write, that leaves no room for a token, or a given Z that does not fit.
    """
    each = (_rows(model, tokenizer, prompt, place, spec) for place, prompt in enumerate(prompts))
    for rows in [chain.from_iterable(each)] if together else each:
        for (_, total), same_shape in groupby(rows, key=lambda row: (len(row.tokens), row.total)):
            while chunk := _take(same_shape, rows_at_once(model, total)):
                for row, (tokens, z) in zip(chunk, _generate_rows(model, chunk, spec, tokenizer.separator), strict=True):
                    yield Sample(row.prompt, tokenizer.decode(tokens), row.group, row.index, spec.seed, z)


def continue_tokens(model: Decoder, prompts: Sequence[Sequence[int]], spec: SampleSpec) -> list[tuple[list[int], list[int] | None]]:
    """One sequence for each of equally long prompts of tokens, all in one batch: its tokens, and its codes (None of a baseline)."""
    bits = model.latent.bits if isinstance(model, FreeTransformer) else 0
    total = spec.total if spec.new_tokens is None else len(prompts[0]) + spec.new_tokens
    rows = [_row("", list(tokens), total, (place, 0, 0), spec, bits, None) for place, tokens in enumerate(prompts)]
    return _generate_rows(model, rows, spec, separator=None)


def rows_at_once(model: Decoder, total: int) -> int:
    """How many rows of `total` tokens are generated together."""
    weight, config = model.embedding.weight, model.config
    numbers = 2 * config.layers * config.key_heads * config.head_width  # keys and values, and of the prompt the maps
    numbers += map_numbers(config, total)
    row_bytes = numbers * total * weight.element_size()
    kind = weight.device.type
    return max(1, min(MOST_ROWS.get(kind, 256), _CACHE_BYTES.get(kind, 1 << 30) // row_bytes))


def check_prompts(tokenizer: Tokenizer, prompts: Sequence[str], spec: SampleSpec) -> None:
    """Raise what `generate` would raise for a later prompt, or for want of given Z, after the rows of earlier ones."""
    for prompt in prompts:
        _read(tokenizer, prompt, spec)
    if prompts:
        _given(spec, spec.groups * spec.count * len(prompts) - 1)


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A prompt as the model reads it: after the separator where the tokenizer has one."""
    ids = tokenizer.encode(prompt, where=f"prompt {prompt[:40]!r}")
    start = [] if tokenizer.separator is None else [tokenizer.separator]
    if not start and not ids:
        raise InputError("the prompt is empty, and this model's data has no begin token", hint="give --prompt TEXT")
    return start + ids


def _take(rows: Iterator[_Row], count: int) -> list[_Row]:
    return [row for _, row in zip(range(count), rows, strict=False)]


def _rows(model: Decoder, tokenizer: Tokenizer, prompt: str, place: int, spec: SampleSpec) -> Iterator[_Row]:
    """Every row of a prompt, group by group."""
    bits = model.latent.bits if isinstance(model, FreeTransformer) else 0
    tokens, total = _read(tokenizer, prompt, spec)
    for group, index in product(range(spec.groups), range(spec.count)):
        given = _given(spec, (place * spec.groups + group) * spec.count + index)
        length = total if given is None else _fitting(total, len(tokens), given, tokenizer)
        yield _row(prompt, tokens, length, (place, group, index), spec, bits, given)


def _read(tokenizer: Tokenizer, prompt: str, spec: SampleSpec) -> tuple[list[int], int]:
    """A prompt's tokens, and how many there will be with its continuation."""
    tokens = prompt_tokens(tokenizer, prompt)
    total = spec.total if spec.new_tokens is None else len(tokens) + spec.new_tokens
    if len(tokens) >= total:
        what = f"the prompt has {len(tokens)} tokens, and a row of the data only {total}"
        raise InputError(what, f"prompt {prompt[:40]!r}", "say with --max-tokens how many to add")
    return tokens, total


def _given(spec: SampleSpec, number: int) -> Sequence[int] | None:
    """The codes given for row `number`, counted over all prompts."""
    if spec.given_z is None:
        return None
    records, rows = len(spec.given_z), spec.groups * spec.count
    if records == 1 or records == rows:
        return spec.given_z[number % records]
    if records < rows or number >= records:  # told at the first row where it can be known
        need = f"{rows} rows a prompt need as many records, or one for all"
        raise InputError(f"--z has {records} records, too few for row {records + 1}", hint=need)
    return spec.given_z[number]


def _fitting(total: int, prompt: int, given: Sequence[int], tokenizer: Tokenizer) -> int:
    """The length of a row that replays given codes: a text that ended early has fewer of them than a full row."""
    if len(given) >= total - 1:
        return total
    if tokenizer.separator is None or len(given) < prompt:
        raise InputError(f"--z: a record has {len(given)} codes, and {total - 1} input positions need one each", hint="lower --max-tokens")
    return len(given) + 1


def _row(
    prompt: str, tokens: list[int], total: int, place: tuple[int, int, int], spec: SampleSpec, bits: int, given: Sequence[int] | None
) -> _Row:
    _, group, index = place
    latent_key = place[:2] if spec.z == "shared" else place  # a group that shares Z shares its prompt's draw too
    if given is None:
        codes = _prior_codes(spec.seed, latent_key, bits, total - 1)
    else:
        codes = np.asarray(given[: total - 1], dtype=np.int64)
    noise = None
    if bits and given is None and spec.prompt_z == "posterior":
        noise = _stream(spec.seed, _Stream.POSTERIOR, latent_key).random((len(tokens), bits), dtype=np.float32)
    token_noise = _stream(spec.seed, _Stream.TOKENS, place).random(total - len(tokens))
    return _Row(prompt, tokens, total, group, index, codes, noise, token_noise)


@lru_cache(maxsize=8)
def _prior_codes(seed: int, key: tuple[int, ...], bits: int, count: int) -> np.ndarray:
    """Codes of the prior; a group that shares them draws them once."""
    codes = _stream(seed, _Stream.PRIOR, key).integers(0, 2**bits, count)
    codes.flags.writeable = False
    return codes


def _stream(seed: int, purpose: _Stream, place: tuple[int, ...]) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, purpose, *place])))


@torch.inference_mode()
def _generate_rows(
    model: Decoder, rows: Sequence[_Row], spec: SampleSpec, separator: int | None
) -> list[tuple[list[int], list[int] | None]]:
    """Tokens and codes of rows with equally long prompts; both end where the row's text does."""
    device = model.embedding.weight.device
    tokens_BP = torch.tensor([row.tokens for row in rows], device=device)
    z_BT = torch.from_numpy(np.stack([row.codes for row in rows])).to(device)
    noise_BN = torch.from_numpy(np.stack([row.token_noise for row in rows])).to(device)
    prompt, total = tokens_BP.shape[1], rows[0].total
    room = -(-(total - 1) // ALIGNED) * ALIGNED  # products over an odd number of keys are slow
    cache = model.new_cache(len(rows), room if device.type == "cuda" else total - 1)
    logits_BV = _read_prompt(model, tokens_BP, z_BT, rows, cache)
    out_BT = torch.cat([tokens_BP, tokens_BP.new_zeros(len(rows), total - prompt)], dim=1)

    def choose(logits_BV: Tensor, quantiles_B: Tensor) -> Tensor:
        return choose_tokens(logits_BV, quantiles_B, spec)

    Continuation(model, cache, out_BT, z_BT, noise_BN, logits_BV, choose, separator).run()
    texts = [_until(separator, row, prompt) for row in out_BT.tolist()]
    if not isinstance(model, FreeTransformer):
        return [(text, None) for text in texts]
    return [(text, z[: len(text) - 1]) for z, text in zip(z_BT.tolist(), texts, strict=True)]


def _read_prompt(model: Decoder, tokens_BP: Tensor, z_BT: Tensor, rows: Sequence[_Row], cache: Cache) -> Tensor:
    """Fill the cache with the prompt; the logits after it, [B, V]. Codes drawn by the encoder are written into z_BT."""
    if not isinstance(model, FreeTransformer):
        return model.read_out(model.hidden(tokens_BP, cache)[:, -1])
    prompt = tokens_BP.shape[1]
    x_BPD = model.lower(tokens_BP, cache)
    if rows[0].posterior_noise is not None:
        noise_BPH = torch.from_numpy(np.stack([row.posterior_noise for row in rows if row.posterior_noise is not None])).to(x_BPD.device)
        z_BT[:, :prompt] = sample_codes(model.infer_latent(x_BPD, tokens_BP), noise_BPH)
    hidden_BPD = model.upper(x_BPD, model.post_sampler(z_BT[:, :prompt]), cache)
    return model.read_out(hidden_BPD[:, -1])


def choose_tokens(logits_BV: Tensor, noise_B: Tensor, spec: SampleSpec) -> Tensor:
    """The token at quantile noise of each row's distribution after temperature, top-k and top-p (in this order), [B]."""
    if spec.temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV.to(torch.float32)
    logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / max(spec.temperature, LEAST_TEMPERATURE)
    if 0 < spec.top_k < logits_BV.shape[-1]:
        best_BK = logits_BV.topk(spec.top_k).indices
        logits_BV = torch.full_like(logits_BV, -torch.inf).scatter(-1, best_BK, logits_BV.gather(-1, best_BK))
    p_BV = torch.softmax(logits_BV, dim=-1)
    if spec.top_p < 1:
        sorted_BV, order_BV = p_BV.sort(dim=-1, descending=True)
        beyond_BV = sorted_BV.cumsum(-1) - sorted_BV >= spec.top_p  # the token that reaches top_p is kept
        beyond_BV[:, 0] = False  # and the likeliest one always
        p_BV = p_BV.masked_fill(torch.zeros_like(beyond_BV).scatter(-1, order_BV, beyond_BV), 0.0)
    cumulative_BV = p_BV.cumsum(-1)
    target_B1 = noise_B[:, None].to(cumulative_BV.dtype) * cumulative_BV[:, -1:]
    below_B = (cumulative_BV <= target_B1).sum(-1)
    last_B = p_BV.shape[-1] - 1 - (p_BV > 0).flip(-1).to(torch.uint8).argmax(-1)  # rounding must not choose an impossible token
    return torch.minimum(below_B, last_B)


def _until(separator: int | None, tokens: list[int], prompt: int) -> list[int]:
    """A row up to and including its first separator after the prompt."""
    if separator is None or separator not in tokens[prompt:]:
        return tokens
    return tokens[: tokens.index(separator, prompt) + 1]


def figure4_samples(model: Decoder, tokenizer: Tokenizer, prompt: str, spec: SampleSpec, groups: int) -> dict[str, list[Sample]]:
    """The paper's Figure 4 for one prompt: one group with independent Z, and for a Free model `groups` groups that share one each."""
    out = {"independent": list(generate(model, tokenizer, [prompt], replace(spec, z="independent", groups=1)))}
    if isinstance(model, FreeTransformer):
        # A seed of its own, or the draws of the tokens would repeat those of the independent group.
        other = replace(spec, z="shared", groups=groups, seed=spec.seed + 1)
        out["shared"] = list(generate(model, tokenizer, [prompt], other))
    return out
