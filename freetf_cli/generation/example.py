"""Infer Z from an example text, to generate sequences like it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.errors import InputError
from freetf_cli.generation.batch import rows_at_once
from freetf_cli.generation.sampling import prompt_tokens
from freetf_cli.model.decoder import Decoder
from freetf_cli.streams import keyed


def infer_z(model: Decoder, tokenizer: Tokenizer, example: str, length: int, seed: int, keys: Sequence[tuple[int, ...]]) -> list[list[Any]]:
    """Draw a Z of `length` positions for each key: from the posterior given the example, and beyond the example's end from the prior.

    Each Z has its own random streams, keyed by (seed, key). InputError for an example that the tokenizer cannot encode, or a baseline.
    """
    if model.latent is None:
        raise InputError("a baseline has no Z to infer")
    tokens = prompt_tokens(tokenizer, example)[:length]
    size = rows_at_once(model, len(tokens))
    parts = (_infer(model, tokens, length, seed, keys[start : start + size]) for start in range(0, len(keys), size))
    return [z for part in parts for z in part]


@torch.inference_mode()
def _infer(model: Decoder, tokens: list[int], length: int, seed: int, keys: Sequence[tuple[int, ...]]) -> Iterator[list[Any]]:
    latent, device = model.latent, model.embedding.weight.device
    assert latent is not None
    shape = latent.noise_shape(len(tokens))
    noise = np.stack([keyed(seed, "example", *key).random(shape, dtype=np.float32) for key in keys])
    tokens_BT = torch.tensor([tokens], device=device).expand(len(keys), -1)
    inferred = model(tokens_BT, noise=torch.from_numpy(noise).to(device), last_only=True).z
    drawn = torch.from_numpy(np.stack([latent.prior(keyed(seed, "after the example", *key), length) for key in keys]))
    return iter(latent.with_prefix(drawn.to(inferred.device), inferred).tolist())
