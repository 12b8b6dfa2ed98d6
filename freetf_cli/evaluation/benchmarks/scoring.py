"""Log-likelihood of an answer after a prompt, log P(A | prompt). For a Free model the probability is averaged over draws of Z.

A baseline needs one forward pass. For a Free model the probabilities are averaged over n draws of Z (averaging log-probabilities instead
would give a lower bound):

    log (1/n) Σ_k P(A | prompt, Z_k)          Z_k at the answer's positions from the prior

    posterior-prompt    Z_k at the prompt's positions from Q(Z | prompt): the encoder reads the prompt alone, never the answer
    prior               Z_k at the prompt's positions from the prior too

`posterior-prompt` is the default, because in training the decoder sees a Z that was inferred from its text, and the paper runs the encoder
when it fills the cache with a prompt (§4.2). A Z from the prior is unrelated to the prompt. Neither option infers Z from prompt and answer
together, since that Z would encode the answer.

All answers to a prompt are compared under the same draws. The standard error of the logarithm of the mean comes from the delta method:
s / (√n w̄), where w̄ and s are the mean and the deviation of the n probabilities.

A long prompt with several answers is read once for each draw, and the answers are scored from its cached keys and values. Shorter prompts
are read again for each answer, in batches of many rows.

Shapes: B rows, K draws of Z for each, T positions, N answer positions of all rows and draws, A answer tokens, V vocabulary. Nats.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from freetf_cli.errors import InputError
from freetf_cli.evaluation.posterior import latent_of, rows_at_once
from freetf_cli.generation.batch import rows_at_once as caches_at_once
from freetf_cli.model.context import Cache
from freetf_cli.model.decoder import Decoder
from freetf_cli.streams import keyed

ZSource = Literal["posterior-prompt", "prior"]
DRAWS = 16  # default number of draws of Z for each answer
LONG = {"cpu": 256}  # tokens from which on a prompt is read once; below, batches of many rows cost less than a pass for each answer
LONG_ELSEWHERE = 1024  # on a GPU, where such a pass costs little but its start


@dataclass(frozen=True)
class Scored:
    """An answer's log-likelihood in nats, and whether greedy decoding would give the answer.

    tokens: the answer's length. stderr: the Monte Carlo standard error of loglikelihood; None for a baseline and for a single draw.
    """

    loglikelihood: float
    greedy: bool
    tokens: int
    stderr: float | None
    truncated: bool  # the beginning of the prompt was cut off: prompt and answer exceed the model's context


@dataclass(frozen=True)
class Row:
    """Answers that differ in their last token at most. The model reads the same tokens for all of them, so one forward pass scores them.

    prompt: the number of prompt tokens. targets: the answer's tokens except the last. lasts, members: the last token of each answer and
    the answer's index among all answers.
    """

    tokens: tuple[int, ...]
    prompt: int
    targets: tuple[int, ...]
    truncated: bool
    lasts: list[int] = field(default_factory=list)
    members: list[int] = field(default_factory=list)

    @property
    def answer(self) -> int:
        """The number of tokens in an answer."""
        return len(self.targets) + 1


class Scorer:
    """Scores pairs of prompt tokens and answer tokens. draws: the number of draws of Z; a baseline ignores it."""

    def __init__(self, model: Decoder, *, z: ZSource = "posterior-prompt", draws: int = DRAWS, seed: int = 0) -> None:
        self.model, self.z, self.seed = model, z, seed
        self.draws = 1 if model.latent is None else draws
        self._device = model.embedding.weight.device

    def batches(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[list[Row]]:
        """Put the rows of all answers into batches, longest rows first. A long prompt with several answers has a batch of its own.

        The batches depend on the pairs alone, so a resumed evaluation has the same. InputError for an empty prompt or an empty answer.
        """
        rows: dict[tuple[tuple[int, ...], int], Row] = {}
        for member, (prompt, answer) in enumerate(pairs):
            row = self._row(prompt, answer)
            row = rows.setdefault((row.tokens, row.prompt), row)
            row.lasts.append(answer[-1])
            row.members.append(member)
        ordered = sorted(rows.values(), key=lambda row: (-len(row.tokens), row.tokens[: row.prompt]))
        by_prompt: dict[tuple[int, ...], list[Row]] = defaultdict(list)
        for row in ordered:
            by_prompt[row.tokens[: row.prompt]].append(row)
        yield from filter(self._is_read_once, by_prompt.values())
        ordered = [row for row in ordered if not self._is_read_once(by_prompt[row.tokens[: row.prompt]])]
        start = 0
        while start < len(ordered):
            count = max(1, rows_at_once(self.model, len(ordered[start].tokens)) // self.draws)
            yield ordered[start : start + count]
            start += count

    def _row(self, prompt: Sequence[int], answer: Sequence[int]) -> Row:
        if not prompt or not answer:
            raise InputError(f"an item of the benchmark has no {'answer' if prompt else 'prompt'} that the tokenizer can encode")
        whole = [*prompt, *answer]
        tokens = whole[
            -(self.model.config.context or len(whole)) - 1 :
        ]  # one more than the context: the model does not read the last token
        answer_tokens = min(len(answer), len(tokens) - 1)
        targets = tokens[-answer_tokens:-1]
        return Row(tuple(tokens[:-1]), len(tokens) - answer_tokens, tuple(targets), len(tokens) < len(whole))

    @torch.inference_mode()
    def score(self, rows: Sequence[Row]) -> Iterator[tuple[int, Scored]]:
        """Yield the index and the scores of each answer in a batch."""
        found = [_Mixture(row, self.draws) for row in rows]
        (self._read_once if self._is_read_once(rows) else self._read_rows)(rows, found)
        for row, mixture in zip(rows, found, strict=True):
            yield from zip(row.members, mixture.scores(), strict=True)

    def _is_read_once(self, rows: Sequence[Row]) -> bool:
        """Whether all rows are answers to the same long prompt, which then is read once."""
        long = rows[0].prompt >= LONG.get(self._device.type, LONG_ELSEWHERE)
        return long and len(rows) > 1 and len({row.tokens[: row.prompt] for row in rows}) == 1

    def _read_rows(self, rows: Sequence[Row], found: Sequence[_Mixture]) -> None:
        """Score each row in a forward pass of its own for each draw of Z, several rows at a time."""
        tokens_BT = self._padded(rows)
        model, ctx = self.model, self.model.context(tokens_BT)
        x_BTD = model.lower(tokens_BT, ctx)
        z = None if model.latent is None else self._draw(rows, tokens_BT, x_BTD)
        owners = torch.arange(len(rows), device=self._device).repeat_interleave(self.draws)
        for part in torch.split(torch.arange(len(owners), device=self._device), rows_at_once(model, tokens_BT.shape[1])):
            own = owners[part]
            hidden_BTD = model.upper(x_BTD[own], None if z is None else z[part], model.context(tokens_BT[own]))
            places = [range(rows[b].prompt - 1, len(rows[b].tokens)) for b in own.tolist()]
            at = [(i, t) for i, place in enumerate(places) for t in place]
            index = torch.tensor(at, device=self._device)
            logp_NV = self._logp(hidden_BTD[index[:, 0], index[:, 1]])
            for b, logp_AV in zip(own.tolist(), torch.split(logp_NV, [len(place) for place in places]), strict=True):
                found[b].add(logp_AV)

    def _read_once(self, rows: Sequence[Row], found: Sequence[_Mixture]) -> None:
        """Read the common prompt once, and score each row's answer from a branch of its cache. The lower half is the same for all draws."""
        model, prompt, tokens_RT = self.model, rows[0].prompt, self._padded(rows)
        tokens_1P, room = tokens_RT[:1, :prompt], tokens_RT.shape[1]
        answers = [tokens_RT[r : r + 1, prompt : len(row.tokens)] for r, row in enumerate(rows)]  # A tokens: all but the last
        lower = model.new_cache(1, room, part="lower")
        x_1PD = self._lower(tokens_1P, lower)
        xs_1AD = [self._lower(tokens_1A, lower.branch()) if tokens_1A.numel() else None for tokens_1A in answers]
        z = None if model.latent is None else self._draw(rows[:1], tokens_RT[:1], x_1PD)
        for part in torch.split(torch.arange(self.draws, device=self._device), min(rows_at_once(model, room), caches_at_once(model, room))):
            own, upper = None if z is None else z[part], model.new_cache(len(part), room, part="upper")
            last_K1V = self._logp(self._upper(x_1PD, tokens_1P, own, upper)[:, -1:])
            for tokens_1A, x_1AD, mixture in zip(answers, xs_1AD, found, strict=True):
                after_KAV = [] if x_1AD is None else [self._logp(self._upper(x_1AD, tokens_1A, own, upper.branch()))]
                for logp_AV in torch.cat((last_K1V, *after_KAV), 1):
                    mixture.add(logp_AV)

    def _lower(self, tokens_1T: Tensor, cache: Cache) -> Tensor:
        """Run the lower half on new tokens, and append their keys and values to the cache. Returns [1, T, D]."""
        x_1TD = self.model.lower(tokens_1T, self.model.context(tokens_1T, cache))
        cache.length += tokens_1T.shape[1]
        return x_1TD

    def _upper(self, x_1TD: Tensor, tokens_1T: Tensor, z: Tensor | None, cache: Cache) -> Tensor:
        """Run the upper half on new tokens for each of the cache's K Zs, and append their keys and values. Returns [K, T, D]."""
        model, start, (count, length) = self.model, cache.length, (len(cache.layers[-1].k), tokens_1T.shape[1])
        own = None if z is None else latent_of(model).span(z, start, length)
        hidden_KTD = model.upper(x_1TD.repeat(count, 1, 1), own, model.context(tokens_1T.expand(count, -1), cache))
        cache.length += length
        return hidden_KTD

    def _logp(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of the next token, [..., V], in float32 at least."""
        logits = self.model.logits(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def _padded(self, rows: Sequence[Row]) -> Tensor:
        """Tokens [B, T], padded on the right, where the causal mask hides the padding from all earlier positions."""
        tokens = np.zeros((len(rows), max(len(row.tokens) for row in rows)), np.int64)
        for whole, row in zip(tokens, rows, strict=True):
            whole[: len(row.tokens)] = row.tokens
        return torch.from_numpy(tokens).to(self._device)

    def _draw(self, rows: Sequence[Row], tokens_BT: Tensor, x_BTD: Tensor) -> Tensor:
        """K draws of Z for each row, [B · K, …], with those of a row next to each other. Rows with the same prompt share their draws."""
        latent, length = latent_of(self.model), tokens_BT.shape[1]
        room = max(self.model.config.context or 0, length)
        drawn = {}
        for prompt in {row.tokens[: row.prompt] for row in rows}:
            streams = (keyed(self.seed, "benchmark", stream_key(prompt), "prior", k) for k in range(self.draws))
            drawn[prompt] = torch.from_numpy(np.stack([latent.prior(stream, room) for stream in streams])).to(self._device)
        if self.z == "posterior-prompt":
            self._infer(rows, tokens_BT, x_BTD, drawn)
        return torch.cat([latent.span(drawn[row.tokens[: row.prompt]], 0, length) for row in rows])

    def _infer(self, rows: Sequence[Row], tokens_BT: Tensor, x_BTD: Tensor, drawn: dict[tuple[int, ...], Tensor]) -> None:
        """Replace Z at the prompts' positions by draws from Q(Z | prompt). Prompts of equal length share an encoder pass."""
        latent = latent_of(self.model)
        alike: dict[int, dict[tuple[int, ...], int]] = defaultdict(dict)
        for b, row in enumerate(rows):
            alike[row.prompt].setdefault(row.tokens[: row.prompt], b)
        for length, first in alike.items():
            own = torch.tensor(list(first.values()), device=self._device)
            tokens_BP = tokens_BT[own, :length]
            posterior = self.model.infer_latent(x_BTD[own, :length], tokens_BP, self.model.context(tokens_BP))
            for i, prompt in enumerate(first):
                streams = (keyed(self.seed, "benchmark", stream_key(prompt), "posterior", k) for k in range(self.draws))
                noise = np.stack([stream.random(latent.noise_shape(length), dtype=np.float32) for stream in streams])
                repeated = posterior.rows(torch.full((self.draws,), i, device=self._device))
                drawn[prompt] = latent.with_prefix(drawn[prompt], repeated.sample(torch.from_numpy(noise).to(self._device)))


class _Mixture:
    """Accumulates over draws of Z the log-likelihoods of a row's answers, and the next-token distributions averaged over the draws."""

    def __init__(self, row: Row, draws: int) -> None:
        self._row, self._draws = row, draws
        self._totals_KM: list[Tensor] = []  # log-likelihood of each answer under each draw
        self._mixed_AV: Tensor | None = None  # log Σ_k P(answer so far | Z_k) P(token | answer so far, Z_k)

    def add(self, logp_AV: Tensor) -> None:
        """Add the log-probabilities at the answer's positions under one draw."""
        targets = torch.tensor(self._row.targets, dtype=torch.long, device=logp_AV.device)
        before_A = torch.zeros(self._row.answer, dtype=logp_AV.dtype, device=logp_AV.device)
        before_A[1:] = logp_AV[:-1].gather(1, targets[:, None])[:, 0].cumsum(0)
        self._totals_KM.append(before_A[-1] + logp_AV[-1, torch.tensor(self._row.lasts, device=logp_AV.device)])
        weighted_AV = before_A[:, None] + logp_AV
        self._mixed_AV = weighted_AV if self._mixed_AV is None else torch.logaddexp(self._mixed_AV, weighted_AV)

    def scores(self) -> list[Scored]:
        assert self._mixed_AV is not None
        totals_KM = torch.stack(self._totals_KM).double().cpu()
        best_A = self._mixed_AV.argmax(-1).tolist()
        begins = tuple(best_A[:-1]) == self._row.targets
        found = []
        for m, last in enumerate(self._row.lasts):
            mean, error = log_mean(totals_KM[:, m].tolist())
            found.append(Scored(mean, begins and best_A[-1] == last, self._row.answer, error, self._row.truncated))
        return found


def log_mean(logs: Sequence[float]) -> tuple[float, float | None]:
    """The log of the mean of numbers given as logs, with its standard error by the delta method (None for a single number)."""
    top = max(logs)
    if not math.isfinite(top):
        return top, None
    weights = np.exp(np.asarray(logs) - top)
    mean = float(weights.mean())
    error = None if len(logs) == 1 else float(weights.std(ddof=1)) / math.sqrt(len(logs)) / mean
    return top + math.log(mean), error


def stream_key(tokens: Sequence[int]) -> int:
    """A hash of a prompt for the key of its random streams, so that its draws do not depend on what else is evaluated."""
    return int.from_bytes(hashlib.sha256(np.asarray(tokens, np.int64).tobytes()).digest()[:8], "little")
