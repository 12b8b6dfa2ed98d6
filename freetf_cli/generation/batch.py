"""Generation of batches of rows, whose random numbers are drawn before. Left padding lets prompts of different lengths share a batch.

Shapes: B sequences, P prompt positions, T positions of a row, V vocabulary, N new tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from freetf_cli.generation.decode_loop import Choose, DecodeLoop, Ended
from freetf_cli.generation.replay import Record
from freetf_cli.model.attention.registry import attention_weights_per_token
from freetf_cli.model.context import Cache
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import Latent

MOST_ROWS = {"cpu": 1024, "mps": 256, "cuda": 4096}  # sequences in a batch, as far as their caches fit
_CACHE_BYTES = {"cpu": 256 << 20, "mps": 1 << 30, "cuda": 8 << 30}
ALIGNED = 64  # positions; matrix products over an odd number of keys are slow on a GPU
MOST_PADDING = 64  # prompts of a batch differ by at most this many tokens, or by a factor of 2

Generated = tuple[list[int], list[Any] | None]  # a sequence's tokens, and its Z (None of a baseline)


@dataclass(frozen=True)
class Row:
    """One sequence to generate: its prompt's tokens, its place, and all of its randomness.

    place: the prompt's number, the group, and the index in it. given: the record that its Z is from. z [T, …]: from the prior, or given;
    None of a baseline. noise: for the posterior of the prompt; None where its Z is not inferred. quantiles: a uniform number for each
    token to generate.
    """

    prompt: str
    tokens: list[int]
    place: tuple[int, int, int]
    given: Record | None
    z: np.ndarray | None
    noise: np.ndarray | None
    quantiles: np.ndarray


def row_bytes(model: Decoder, total: int) -> int:
    """Memory of a row of `total` tokens: its keys and values, and the prompt's attention weights where they are materialised."""
    config = model.config
    numbers = 2 * config.layers * config.key_heads * config.head_width + attention_weights_per_token(config, total)
    return numbers * total * model.embedding.weight.element_size()


def rows_at_once(model: Decoder, total: int) -> int:
    """How many rows of `total` tokens are generated together."""
    kind = model.embedding.weight.device.type
    return max(1, min(MOST_ROWS[kind], _CACHE_BYTES[kind] // row_bytes(model, total)))


def batches(model: Decoder, rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Batches of the rows, in order. The cache of a batch fits into memory, and its prompts have similar lengths."""
    batch: list[Row] = []
    low = high = new = 0  # tokens of the batch's shortest and longest prompt, and of its longest continuation
    for row in rows:
        prompt, continuation = len(row.tokens), len(row.quantiles)
        if batch:
            low, high, new = min(low, prompt), max(high, prompt), max(new, continuation)
            if high > max(2 * low, low + MOST_PADDING) or len(batch) >= rows_at_once(model, high + new):
                yield batch
                batch = []
        if not batch:
            low, high, new = prompt, prompt, continuation
        batch.append(row)
    if batch:
        yield batch


@torch.inference_mode()
def generate_batch(
    model: Decoder, rows: Sequence[Row], choose: Choose, separator: int | None, ended: Ended | None = None
) -> list[Generated]:
    """Tokens and Z of rows, each up to the end of its text. separator: the token that ends a text.

    ended: which texts need no more tokens; what follows in them is not defined.
    """
    device = model.embedding.weight.device
    tokens_BP = _padded([np.array(row.tokens) for row in rows], left=True).to(device)
    quantiles_BN = _padded([row.quantiles for row in rows]).to(device)
    tokens_BT = F.pad(tokens_BP, (0, quantiles_BN.shape[1]))
    inputs = tokens_BT.shape[1] - 1  # the last token is not read
    padding = [tokens_BP.shape[1] - len(row.tokens) for row in rows]
    zs = [row.z for row in rows if row.z is not None]
    z = None if model.latent is None else model.latent.batch(zs, padding, inputs).to(device)
    room = -(-inputs // ALIGNED) * ALIGNED if device.type == "cuda" else inputs
    cache = model.new_cache(len(rows), room, padding=torch.tensor(padding, device=device) if any(padding) else None)
    logits_BV, z = _read_prompt(model, tokens_BP, z, [row.noise for row in rows if row.noise is not None], cache)
    DecodeLoop(model, cache, tokens_BT, z, quantiles_BN, logits_BV, choose, separator, ended).run()
    texts: list[list[int]] = []
    for row, pad, tokens in zip(rows, padding, tokens_BT.tolist(), strict=True):
        text = tokens[pad : pad + len(row.tokens) + len(row.quantiles)]
        if separator in text[len(row.tokens) :]:
            del text[text.index(separator, len(row.tokens)) + 1 :]
        texts.append(text)
    if model.latent is None or z is None:
        return [(text, None) for text in texts]
    return list(zip(texts, _spans(model.latent, z.cpu(), padding, [len(text) - 1 for text in texts]), strict=True))


def _padded(rows: Sequence[np.ndarray], *, left: bool = False) -> Tensor:
    """Rows of different lengths as one tensor, with zeros after them, or before them. A tenth of the time of `pad_sequence`."""
    longest = max(len(row) for row in rows)
    padded = np.zeros((len(rows), longest, *rows[0].shape[1:]), rows[0].dtype)
    for whole, row in zip(padded, rows, strict=True):
        whole[longest - len(row) if left else 0 :][: len(row)] = row
    return torch.from_numpy(padded)


def _spans(latent: Latent, z: Tensor, starts: Sequence[int], counts: Sequence[int]) -> list[list[Any]]:
    """Z of each sequence at its own positions. Sequences with the same positions are cut at once."""
    spans: list[list[Any]] = [[] for _ in starts]
    alike = defaultdict(list)
    for b, place in enumerate(zip(starts, counts, strict=True)):
        alike[place].append(b)
    for (start, count), numbers in alike.items():
        for b, values in zip(numbers, latent.span(z[numbers], start, count).tolist(), strict=True):
            spans[b] = values
    return spans


def _read_prompt(
    model: Decoder, tokens_BP: Tensor, z: Tensor | None, noise: list[np.ndarray], cache: Cache
) -> tuple[Tensor, Tensor | None]:
    """Fill the cache with the prompt. Returns the logits after it, [B, V], and Z; with noise, the encoder infers Z of the prompt."""
    latent = model.latent
    if latent is None or z is None:
        out = model(tokens_BP, cache=cache, last_only=True)
    elif noise:
        out = model(tokens_BP, noise=_padded(noise, left=True).to(tokens_BP.device), cache=cache, last_only=True)
        z = latent.with_prefix(z, out.z, cache.padding_B)
    else:
        out = model(tokens_BP, latent.span(z, 0, tokens_BP.shape[1]), cache=cache, last_only=True)
    return out.logits[:, -1], z
