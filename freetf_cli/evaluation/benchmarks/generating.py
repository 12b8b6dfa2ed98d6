"""Generated answers. Z is drawn once for each.

At the prompt's positions Z comes from the same source as for log-likelihoods (`Scorer.z`), after the prompt from the prior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.evaluation.benchmarks.scoring import Scorer, stream_key
from freetf_cli.generation.sampling import SampleSpec, continue_places

TOGETHER = 64  # texts in a batch, which is generated and saved as a whole
NEW_TOKENS = 256  # the longest answer in tokens, if the task sets no limit


@dataclass(frozen=True)
class Continuation:
    """A text to generate. number: counts equal requests, so that each has its own draws. temperature: 0 means greedy decoding."""

    prompt: tuple[int, ...]
    new_tokens: int
    stops: tuple[str, ...]
    temperature: float
    number: int
    truncated: bool

    @classmethod
    def of(cls, tokens: Sequence[int], settings: Mapping[str, Any], context: int | None, number: int) -> Continuation:
        """A request from lm-eval's generation settings.

        The new text takes at most half of the model's context. A prompt that does not fit into the rest loses its beginning.
        """
        new = int(settings.get("max_gen_toks") or NEW_TOKENS)
        if context is not None:
            new = min(new, max(1, (context + 1) // 2))
        room = len(tokens) if context is None else context + 1 - new
        stops = settings.get("until") or ()
        sampled = settings.get("do_sample", "temperature" in settings)
        temperature = float(settings.get("temperature", 1.0)) if sampled else 0.0
        kept = tuple(tokens[-room:])
        return cls(kept, new, (stops,) if isinstance(stops, str) else tuple(stops), temperature, number, len(kept) < len(tokens))


def continuations(scorer: Scorer, tokenizer: Tokenizer, batch: Sequence[Continuation], temperature: float | None = None) -> list[str]:
    """The texts of a batch of requests with equal settings, each up to its first stop string. temperature: overrides the requests'."""
    spec = SampleSpec(
        total=0,
        new_tokens=batch[0].new_tokens,
        temperature=batch[0].temperature if temperature is None else temperature,
        prompt_z="prior" if scorer.z == "prior" else "posterior",
        seed=scorer.seed,
    )
    stops = batch[0].stops

    def ended(tokens_BN: Tensor) -> Tensor:
        return torch.tensor([_until(text, stops) != text for text in map(tokenizer.decode, tokens_BN.tolist())], device=tokens_BN.device)

    places = [(stream_key(one.prompt), 0, one.number) for one in batch]
    made = continue_places(scorer.model, [one.prompt for one in batch], places, spec, tokenizer.separator, ended if stops else None)
    return [_until(tokenizer.decode(tokens), one.stops) for one, tokens in zip(batch, made, strict=True)]


def _until(text: str, stops: Sequence[str]) -> str:
    ends = [text.index(stop) for stop in stops if stop and stop in text]
    return text[: min(ends)] if ends else text
