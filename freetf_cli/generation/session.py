"""A session with one model: a prompt, a Z and a seed for the tokens. One of them changes at a time, and the others stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.errors import InputError
from freetf_cli.generation.example import infer_z
from freetf_cli.generation.sampling import SampleSpec, Warn, check_prompts, generate
from freetf_cli.latent.binary import BinaryLatent
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import shared
from freetf_cli.records.samples import Sample
from freetf_cli.streams import keyed


class Session:
    """The state, and `spec.count` sequences generated from it. A change of prompt or Z leaves the random numbers of the tokens the same."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, prompt: str, spec: SampleSpec, warn: Warn = lambda message: None) -> None:
        """InputError for a baseline, and for a prompt that the tokenizer cannot encode or that leaves no room for a token."""
        if model.latent is None:
            raise InputError("--interactive holds and changes Z, and a baseline has none")
        check_prompts(tokenizer, [prompt], spec)
        self._model, self._latent, self._tokenizer, self._warn = model, model.latent, tokenizer, warn
        self.prompt, self.spec = prompt, replace(spec, groups=1, z="independent", prompt_z=None)
        self._length = spec.total - 1 + (spec.new_tokens or 0)  # positions of Z
        self._used = 0  # of them, those of the longest sequence generated last
        self._draws = 0  # draws of Z and of bits so far; part of the next one's random stream key
        self.z: list[Any] = []
        self.draw_z()

    def sequences(self) -> list[Sample]:
        spec = replace(self.spec, given_z=[self.z])
        found = list(generate(self._model, self._tokenizer, [self.prompt], spec, warn=self._warn))
        self._used = max(len(sample.z or ()) for sample in found)
        return found

    def change_prompt(self, prompt: str) -> None:
        check_prompts(self._tokenizer, [prompt], self.spec)
        self.prompt = prompt

    def draw_z(self) -> None:
        """Draw another Z from the prior, at the prompt's positions too."""
        self.z = self._latent.prior(self._stream("z"), self._length).tolist()

    def infer_z(self, example: str) -> None:
        """Draw Z from the posterior given an example, and from the prior after its end."""
        self._draws += 1
        (self.z,) = infer_z(self._model, self._tokenizer, example, self._length, self.spec.seed, [(self._draws,)])

    def draw_tokens(self) -> None:
        self.spec = replace(self.spec, seed=(self.spec.seed + 1) % 2**32)

    def flip(self, places: Sequence[tuple[int, int]] = (), count: int = 1) -> list[tuple[int, int]]:
        """Flip bits (position, bit), or `count` random bits at positions that the last sequences used. Returns the flipped bits.

        Where tokens share a Z, the bit is flipped for all of them, and a random one is told by the position of the first.
        """
        if not isinstance(self._latent, BinaryLatent):
            raise InputError("only a latent of bits has bits to flip")
        bits, read = self._latent.bits, min(self._length, self._latent.reach or self._length)  # no position beyond reads its Z
        for position, bit in places:
            if not (0 <= position < read and 0 <= bit < bits):
                what = f"there is no bit {position}.{bit}"
                raise InputError(what, hint=f"positions are 0 … {read - 1}, bits 0 … {bits - 1}")
        begins = shared(np.arange(self._length), self._latent.every)  # the position that infers each position's Z
        if not places:
            own = np.unique(begins[: min(self._used or read, read)])
            if not 1 <= count <= len(own) * bits:
                raise InputError(f"there are {len(own) * bits} bits, not {count}")
            drawn = np.sort(self._stream("bits").choice(len(own) * bits, count, replace=False))
            places = [(int(own[int(one) // bits]), int(one) % bits) for one in drawn]
        self.z = list(self.z)
        for position, bit in places:
            for same in self._latent.sharing(position, bit, self._length).tolist():
                self.z[same] ^= 1 << bit
        return list(places)

    def _stream(self, purpose: str) -> np.random.Generator:
        self._draws += 1
        return keyed(self.spec.seed, purpose, self._draws)
