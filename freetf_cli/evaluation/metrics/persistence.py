"""persistence: for how many tokens a changed Z_t still changes what comes next. With the same text, the KL of the next token's
distributions in bits, by offset; in free generation, the share of differing tokens beside that of independent continuations.

Run A is a continuation of a held-out text after a random position t. Z before t is inferred from the held-out text, Z from t on comes from
the prior. Run B shares the text so far, the noise of the tokens and all of Z, but Z_t is drawn again. Offset k is the k-th token after
position t, the first that Z_t can reach being k = 1.

    KL_k = KL( P(token k | A's text, A's Z) ‖ P(token k | A's text, B's Z) )

The text is A's own, so that the KLs add up, by the chain rule, to the divergence of B's continuations from A's: the total. Persistence is
the last offset whose mean KL is at least LEVEL, 0 if there is none. For scale, the same KL is measured with all of Z from t on drawn again.
In free generation B writes its own text from the same noise: once a token differs, later ones mostly do too, so this share does not fall.
The noise is a Gumbel number for each token of the vocabulary. Two distributions p and q then choose different tokens with a probability of
at most 2 TV / (1 + TV), TV being their total variation. A quantile of the cumulative distribution, as in sampling, would make nearly equal
distributions of many tokens choose differently.

bryanvine/free-transformer calls something else persistence: how often a bit of the posterior's Z keeps its value at the next token. That is
`agreement`: the likelier values of the bits, each bit weighted by its KL. 0.5 is chance.

Shapes: R rows, B of them at a time, T positions, N offsets, V tokens of the vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from freetf_cli.data.batches import IGNORE, DataSource
from freetf_cli.errors import InputError
from freetf_cli.evaluation.metrics import Request
from freetf_cli.evaluation.posterior import PosteriorPass, posterior_draws, prior_draws, rows_at_once
from freetf_cli.evaluation.statistics import Floats, check_enough, interval, resampled_means
from freetf_cli.generation.batch import Row, batches, generate_batch
from freetf_cli.latent.binary import BinaryDistribution, kl_per_token
from freetf_cli.latent.bits import at_least_float32
from freetf_cli.model.decoder import Decoder
from freetf_cli.records import LN2
from freetf_cli.records.likelihood import Estimate, Evaluation
from freetf_cli.report.blocks import Chart, Facts, Note, Reference, Report, Series, Table
from freetf_cli.report.units import number, share
from freetf_cli.runs.checkpoint import Checkpoint
from freetf_cli.streams import keyed

LEVEL = 0.01  # bits; below it Z_t no longer matters
MOST = 64  # offsets
SHOWN = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # of them in the table
_STEP, _MIX_1, _MIX_2 = (one - (1 << 64) for one in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))  # as signed numbers
READING = (
    "KL: of the next token's distribution before and after Z_t is drawn again, given the same text. all of Z: the same with Z of every "
    "position from t on drawn again. differing: tokens that differ in free generation with the same noise; independent: with other noise "
    "and other Z."
)

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Persistence(Evaluation):
    """The result of `evaluate --task persistence`. Lists are by offset, from 1. tokens: the persistence; total: bits over all offsets."""

    level: float
    offsets: int
    tokens: Estimate
    total: Estimate
    kl: list[Estimate]
    kl_all: list[float]
    differing: list[Estimate]
    independent: list[float]
    agreement: float | None  # None for a latent that has no bits

    def report(self) -> Report:
        beyond = f"; still there at the last of {self.offsets} offsets" if self.tokens.value == self.offsets else ""
        facts = [
            ("persistence", f"{self.tokens.text(0)} tokens until the KL stays below {self.level:g} bits{beyond}"),
            ("total", f"{self.total.text(3)} bits"),
            ("bits of Z that stay", "" if self.agreement is None else f"{share(self.agreement)} at the next token (chance: 50 %)"),
        ]
        rows = [
            [str(k), self.kl[k - 1].text(4), number(self.kl_all[k - 1], 4), self.differing[k - 1].share(), share(self.independent[k - 1])]
            for k in SHOWN
            if k <= self.offsets
        ]
        columns = ["offset", "KL, bits [95 %]", "all of Z", "differing [95 %]", "independent"]
        return Report(
            self.run, [self.about(), Facts(facts), self._chart(), Table(columns, rows, align="rrrrr"), Note(READING)], kicker="persistence"
        )

    def _chart(self) -> Chart:
        offsets = list(range(1, self.offsets + 1))
        low, high = ([getattr(one, end) for one in self.kl] for end in ("low", "high"))
        own = Series("Z_t", offsets, [one.value for one in self.kl], "kl", low, high)
        whole = Series("all of Z from t on", offsets, self.kl_all, "nelbo")
        return Chart("KL by offset", [own, whole], "offset", "bits", references=[Reference(self.level, "level")], detail=True)


@dataclass(frozen=True, eq=False)
class _Cases:
    """Rows to continue: tokens [R, T], each row's t [R], and Z of run A, with Z_t drawn again, and with all from t on drawn again."""

    tokens: Ints
    places: Ints
    a: NDArray[np.generic]
    b: NDArray[np.generic]
    c: NDArray[np.generic]
    agreement: float | None


@torch.inference_mode()
def evaluate(checkpoint: Checkpoint, model: Decoder, source: DataSource, request: Request) -> Persistence:
    """Measure the effect of one Z_t by offset. InputError for a baseline, for tokens that share a Z, and for fewer than 20 rows."""
    if model.latent is None:
        raise InputError("--task persistence: this run is a baseline, it has no Z", request.run)
    if model.latent.is_shared:
        what = "--task persistence changes the Z of one token, and here several share one"
        raise InputError(what, request.run, "`freetf probe-latent` measures what such a Z decides")
    started = time.perf_counter()
    offsets = min(MOST, (source.context + 1) // 2)
    cases = _cases(model, source, request, offsets)
    check_enough(len(cases.tokens), "sequences", "raise --sequences")
    noise, other = (
        np.stack([keyed(request.seed, name, row).random(offsets) for row in range(len(cases.tokens))])
        for name in ("tokens", "other tokens")
    )
    text_a, text_b, text_c = (
        _written(model, cases, z, quantiles) for z, quantiles in ((cases.a, noise), (cases.b, noise), (cases.c, other))
    )
    alive = _alive(text_a, source.tokenizer.separator)
    kl_b, kl_c = _divergences(model, cases, text_a, request)
    documents = source.held_out_documents(request.split, request.sequences)
    kl, resampled = _means(kl_b, alive, documents, request.seed)
    whole, independent = ((values * alive).sum(0) / np.maximum(alive.sum(0), 1) for values in (kl_c, text_a != text_c))
    described = request.described("persistence", checkpoint, source, len(cases.tokens), time.perf_counter() - started)
    return Persistence(
        **described,
        level=LEVEL,
        offsets=offsets,
        tokens=interval(float(_last(np.array([[one.value for one in kl]]))[0]), _last(resampled)),
        total=interval(sum(one.value for one in kl), resampled.sum(1)),
        kl=kl,
        kl_all=whole.tolist(),
        differing=_means(text_a != text_b, alive, documents, request.seed)[0],
        independent=independent.tolist(),
        agreement=cases.agreement,
    )


def _cases(model: Decoder, source: DataSource, request: Request, offsets: int) -> _Cases:
    """Held-out rows with their places t, which are spread evenly over what is left of each row, in a random order, and their Zs."""
    latent, parts, agreement = model.latent, list[tuple[Ints, ...]](), list[tuple[float, float]]()
    assert latent is not None
    total = min(request.sequences, source.rows.size(request.split) or request.sequences)
    order = keyed(request.seed, "places").permutation(total)
    for batch in source.held_out(request.split, request.sequences, rows_at_once(model, source.context)):
        first = sum(len(part[0]) for part in parts)
        rows, passed = range(first, first + len(batch.inputs)), PosteriorPass(model, batch)
        inferred = posterior_draws(model, passed.posterior, rows, source.context, request.seed)
        two = prior_draws(model, rows, source.context, request.seed, 2)
        drawn, again = two[::2], two[1::2]
        lengths = source.context - (batch.targets != IGNORE)[:, ::-1].argmax(1)  # up to the last counted target
        room = np.minimum(np.minimum(lengths, source.context - offsets + 1), latent.window or source.context)
        parts.append((batch.inputs, order[rows] * room // total, *(z.cpu().numpy() for z in (inferred, drawn, again))))
        if isinstance(passed.posterior, BinaryDistribution):
            agreement.append(_agreement(passed.posterior.bit_logits, passed.latent_mask))
    tokens, places, inferred_z, drawn_z, again_z = (np.concatenate(column) for column in zip(*parts, strict=True))
    position = np.arange(source.context)[None].reshape(1, -1, *[1] * (drawn_z.ndim - 2))
    at = places.reshape(-1, *[1] * (drawn_z.ndim - 1))
    a = np.where(position < at, inferred_z, drawn_z)
    same, weight = np.sum(agreement, 0) if agreement else (0.0, 0.0)
    b, c = np.where(position == at, again_z, a), np.where(position < at, a, again_z)
    return _Cases(tokens, places, a, b, c, float(same / weight) if weight else None)


def _agreement(bit_logits_BTH: Tensor, mask_BT: Tensor) -> tuple[float, float]:
    """Two sums of KL, both without the first token: over bits whose likelier value is the previous token's, and over all bits."""
    kl_BTH = kl_per_token(bit_logits_BTH[..., None]) * mask_BT[..., None]
    same_BTH = (bit_logits_BTH[:, 1:] > 0) == (bit_logits_BTH[:, :-1] > 0)
    return float((kl_BTH[:, 1:] * same_BTH).sum()), float(kl_BTH[:, 1:].sum())


def _written(model: Decoder, cases: _Cases, z: NDArray[np.generic], quantiles: Floats) -> Ints:
    """The new tokens [R, N] of each row under its Z and its noise. Rows are generated in the order of their prompts' lengths."""
    order, offsets = np.argsort(cases.places, kind="stable"), quantiles.shape[1]

    def rows() -> Iterator[Row]:
        for row in order:
            stop = int(cases.places[row]) + 1
            yield Row("", cases.tokens[row, :stop].tolist(), (int(row), 0, 0), None, z[row, : stop + offsets - 1], None, quantiles[row])

    written = np.zeros_like(quantiles, np.int64)
    for batch in batches(model, rows()):
        for row, (tokens, _) in zip(batch, generate_batch(model, batch, choose_by_gumbel, None), strict=True):
            written[row.place[0]] = tokens[-offsets:]
    return written


def choose_by_gumbel(logits_BV: Tensor, quantiles_B: Tensor) -> Tensor:
    """A token from each row's distribution [B]: the largest sum of a logit and its Gumbel number, a function of (quantile, token)."""
    state_BV = (quantiles_B.double() * 2**53).long()[:, None] + torch.arange(1, logits_BV.shape[-1] + 1, device=logits_BV.device) * _STEP
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):  # SplitMix64 (Steele et al., doi 10.1145/2660193.2660195)
        state_BV = (state_BV ^ (state_BV >> shift & (1 << 64 - shift) - 1)) * factor
    state_BV ^= state_BV >> 31 & (1 << 33) - 1
    uniform_BV = ((state_BV >> 11 & (1 << 53) - 1).double() + 0.5) / 2**53
    return (logits_BV.double() - torch.log(-torch.log(uniform_BV))).argmax(-1)


def _alive(text_RN: Ints, separator: int | None) -> NDArray[np.bool_]:
    """Which of the new tokens [R, N] come before the end of the document; the separator that ends it counts."""
    ended = np.zeros_like(text_RN, np.bool_) if separator is None else text_RN == separator
    before: NDArray[np.bool_] = np.cumsum(ended, axis=1) - ended == 0
    return before


def _divergences(model: Decoder, cases: _Cases, text_RN: Ints, request: Request) -> tuple[Floats, Floats]:
    """KL divergences of the next token's distribution from A's, bits [R, N], on A's text: with B's Z, and with all Z drawn again."""
    device, offsets = model.embedding.weight.device, text_RN.shape[1]
    found, order = np.zeros((2, *text_RN.shape)), np.argsort(cases.places, kind="stable")
    size = max(1, rows_at_once(model, cases.tokens.shape[1]) // 3)
    for rows in (order[start : start + size] for start in range(0, len(order), size)):
        places = cases.places[rows, None]
        length = int(places.max()) + offsets  # positions after a row's own part do not influence it
        whole = np.pad(cases.tokens[rows], ((0, 0), (0, offsets)))[:, :length]
        np.put_along_axis(whole, places + np.arange(1, offsets), text_RN[rows, :-1], 1)
        tokens_BT = torch.from_numpy(whole).to(device)
        ctx, at_BN = model.context(tokens_BT), torch.from_numpy(places + np.arange(offsets)).to(device)
        x_BTD = model.lower(tokens_BT, ctx)
        logs = []
        for z in (cases.a, cases.b, cases.c):
            hidden_BTD = model.upper(x_BTD, torch.from_numpy(z[rows, :length]).to(device), ctx)
            logits_BNV = model.logits(hidden_BTD.gather(1, at_BN[..., None].expand(-1, -1, hidden_BTD.shape[-1])))
            logs.append(torch.log_softmax(at_least_float32(logits_BNV), -1))
        for terms_RN, log_BNV in zip(found, logs[1:], strict=True):
            nats_BN = (logs[0].exp() * (logs[0] - log_BNV)).sum(-1).clamp(min=0)
            terms_RN[rows] = nats_BN.double().cpu().numpy() / LN2
        request.advance(len(rows))
    return found[0], found[1]


def _means(values_RN: NDArray[np.generic], alive_RN: NDArray[np.bool_], documents: Ints, seed: int) -> tuple[list[Estimate], Floats]:
    """The mean at each offset over the rows whose document has not ended, with its interval, and its bootstrap resamples."""
    values = np.where(alive_RN, values_RN.astype(np.float64), 0.0)
    resampled = resampled_means(np.concatenate([values, alive_RN.astype(np.float64)], 1), clusters=documents, seed=seed)
    top, bottom = np.split(resampled, 2, axis=1)
    ratios, means = top / np.where(bottom > 0, bottom, 1), values.sum(0) / np.maximum(alive_RN.sum(0), 1)
    return [interval(*both) for both in zip(means.tolist(), ratios.T, strict=True)], ratios


def _last(means_SN: Floats) -> Floats:
    """The last offset, from 1, whose mean is at least LEVEL, 0 if there is none [S]."""
    over = means_SN >= LEVEL
    last: Floats = np.where(over.any(1), over.shape[1] - over[:, ::-1].argmax(1), 0).astype(np.float64)
    return last
