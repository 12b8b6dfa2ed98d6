"""How likely a model finds held-out sequences (paper §3.2 and eq. 4; importance weighting: Burda et al., arXiv 1509.00519).

For a Free model −log P(S) = −log E_{Z ~ prior} P(S|Z) is not computable, but bounded from above:

    ELBO        E_Q[−log P(S|Z)] + KL(Q(Z|S) ‖ P)                   CE + KL
    posterior   −log (1/K) Σ_k P(S|Z_k) P(Z_k) / Q(Z_k|S)           Z_k ~ Q; falls with K towards −log P(S); K = 1 is the ELBO by sampling
    prior       −log (1/K) Σ_k P(S|Z_k)                             Z_k ~ P; K = 1 is the CE with Z from the prior

Which is tighter depends on the model: with much information in Z the prior seldom draws a Z that fits; with much mismatch (KL that tells
nothing) the posterior's weights are tiny for most draws. `nll` is the smaller of the two, each with its most draws.

Only the Z of *carriers* counts, positions up to a row's last counted target: later ones reach no target and sum out exactly.
The lower half and the encoder run once a sequence; only the upper half runs K times.

Shapes: N sequences, B of them at a time, K draws, T positions, H bits. Everything is in nats, and in float32 or wider.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from freetf_cli.data.batches import IGNORE, Batch, DataSource
from freetf_cli.evaluation.statistics import bootstrap, check_enough
from freetf_cli.latent.binary import LN2, code_bits, kl_per_token, sample_codes
from freetf_cli.model.attention.registry import map_numbers
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.free_transformer import FreeTransformer
from freetf_cli.records.likelihood import BoundPoint, Cost, Likelihood
from freetf_cli.runs.checkpoint import Checkpoint
from freetf_cli.training.objective import carriers

SAMPLES = (1, 8, 64, 512)
PRIOR_DRAWS = 64  # at most, of Zs from the prior: their bound is worth having where a few draws reach it
_TOKENS_AT_ONCE = {"cpu": 1 << 14, "cuda": 1 << 18}  # through the upper half
_LOGITS_AT_ONCE = {"cpu": 1 << 24, "cuda": 1 << 30}  # elements of [tokens, V]

Floats = NDArray[np.float64]
Advance = Callable[[int], None]


def _no_progress(_: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True, eq=False)
class RowCosts:
    """Costs of N held-out sequences, nats a sequence [N], and by position.

    tokens: counted targets [N]. documents: the document that a row begins in [N]. posterior_bound, prior_bound: by number of draws, empty
    for a baseline. nll: the tighter of the two with the most draws, `proposal` says which; a baseline's CE. ce_posterior, kl, ce_prior:
    None for a baseline; so is above_kappa, the share of tokens whose KL exceeds κ.
    by_position: elbo (a baseline: CE) summed over sequences, and the targets that it was summed over, [T] each.
    """

    tokens: NDArray[np.int64]
    documents: NDArray[np.int64]
    posterior_bound: Mapping[int, Floats]
    prior_bound: Mapping[int, Floats]
    elbo: Floats
    ce_posterior: Floats | None
    kl: Floats | None
    ce_prior: Floats | None
    above_kappa: float | None
    by_position: tuple[Floats, Floats]
    seconds: float

    @property
    def proposal(self) -> str:
        """Where the Zs of `nll` came from: posterior, prior, or none for a baseline."""
        if not self.posterior_bound:
            return "none"
        return "posterior" if _last(self.posterior_bound).mean() <= _last(self.prior_bound).mean() else "prior"

    @property
    def nll(self) -> Floats:
        """The tightest bound on −log P(S) that was measured; a baseline's −log P(S)."""
        if not self.posterior_bound:
            return self.elbo
        return _last(self.posterior_bound if self.proposal == "posterior" else self.prior_bound)

    def metrics(self) -> dict[str, Floats | None]:
        """By the names that `evaluate` and `compare` use."""
        return {"nll": self.nll, "elbo": self.elbo, "ce_posterior": self.ce_posterior, "ce_prior": self.ce_prior, "kl": self.kl}


def _last(bound: Mapping[int, Floats]) -> Floats:
    return bound[max(bound)]


@torch.inference_mode()
def row_costs(
    model: Decoder,
    source: DataSource,
    *,
    split: str,
    sequences: int,
    samples: Sequence[int] = SAMPLES,
    seed: int = 0,
    advance: Advance = _no_progress,
) -> RowCosts:
    """Measure `sequences` held-out rows (or all there are): always the same rows, each with random streams of its own.

    samples: numbers of draws K of the importance bound. advance is told of sequences done. InputError below 20 sequences.
    """
    started = time.perf_counter()
    draws = max(samples)
    at_once = max(1, rows_at_once(model, source.context) // (draws if isinstance(model, FreeTransformer) else 1))
    parts: list[dict[str, NDArray[np.float64]]] = []
    for batch in source.held_out(split, sequences, min(at_once, 256)):
        row = sum(len(part["tokens"]) for part in parts)
        parts.append(_free(model, batch, row, samples, seed) if isinstance(model, FreeTransformer) else _baseline(model, batch))
        advance(len(batch.inputs))
    check_enough(sum(len(part["tokens"]) for part in parts), "sequences", f"--sequences, or more data in split '{split}'")
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    free = isinstance(model, FreeTransformer)
    return RowCosts(
        tokens=found["tokens"].astype(np.int64),
        documents=source.held_out_documents(split, sequences),
        posterior_bound={count: found[f"posterior {count}"] for count in sorted(set(samples))} if free else {},
        prior_bound={count: found[f"prior {count}"] for count in _prior_samples(samples)} if free else {},
        elbo=found["ce"] + found["kl"] if free else found["ce"],
        ce_posterior=found["ce"] if free else None,
        kl=found["kl"] if free else None,
        ce_prior=found["ce_prior"] if free else None,
        above_kappa=float(found["above"].sum() / found["carriers"].sum()) if free else None,
        by_position=(found["positions"].sum(0), found["counted"].sum(0)),
        seconds=time.perf_counter() - started,
    )


def _prior_samples(samples: Sequence[int]) -> list[int]:
    """The same numbers of draws, up to PRIOR_DRAWS."""
    return sorted({min(count, PRIOR_DRAWS) for count in samples})


def importance_bounds(log_weights_NK: Floats, samples: Sequence[int]) -> dict[int, Floats]:
    """−log mean of K weights for each K, averaged over as many disjoint groups of K draws as there are: [N] each, nats."""
    found = {}
    for count in sorted(set(samples)):
        groups = log_weights_NK.shape[1] // count
        part = log_weights_NK[:, : groups * count].reshape(len(log_weights_NK), groups, count)
        top = part.max(-1, keepdims=True)
        found[count] = -(np.log(np.exp(part - top).mean(-1)) + top[..., 0]).mean(1)
    return found


def target_nats(model: Decoder, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
    """−log P of each target, [B, T] nats, 0 where none counts."""
    logits_BTV = at_least_float32(model.read_out(hidden_BTD))
    return F.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, ignore_index=IGNORE, reduction="none")


def given_z_nats(model: FreeTransformer, x_BTD: Tensor, z_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
    """−log P(target | Z) [B, T] from the stream below the injection, in pieces that bound the memory. documents_BT: `model.documents`."""
    rows = rows_at_once(model, x_BTD.shape[1])
    parts = []
    for start in range(0, len(x_BTD), rows):
        part = slice(start, start + rows)
        documents = None if documents_BT is None else documents_BT[part]
        hidden_BTD = model.upper(x_BTD[part], model.post_sampler(z_BT[part]), documents_BS=documents)
        parts.append(target_nats(model, hidden_BTD, targets_BT[part]))
    return torch.cat(parts)


def log_posterior(bit_logits: Tensor, codes: Tensor) -> Tensor:
    """log Q(Z_t | S) of codes [...] from bit logits [..., H], nats."""
    bits = code_bits(codes, bit_logits.shape[-1])
    return (bits * bit_logits - F.softplus(bit_logits)).sum(-1)


def at_least_float32(values: Tensor) -> Tensor:
    """bfloat16 would round away what a sum over positions tells."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def tensors(model: Decoder, batch: Batch) -> tuple[Tensor, Tensor]:
    """inputs and targets on the model's device."""
    device = model.embedding.weight.device
    return torch.from_numpy(batch.inputs).to(device), torch.from_numpy(batch.targets).to(device)


def row_stream(seed: int, purpose: str, row: int) -> np.random.Generator:
    """The random stream of one held-out row: the same for every model and batch size."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *purpose.encode(), row])))


def prior_codes(model: FreeTransformer, rows: range, shape: tuple[int, ...], seed: int) -> Tensor:
    """Codes from the prior for held-out rows by their numbers, [rows, *shape], each from its own stream."""
    drawn = [row_stream(seed, "prior", row).integers(0, 2**model.latent.bits, shape) for row in rows]
    return torch.from_numpy(np.stack(drawn)).to(model.embedding.weight.device)


def rows_at_once(model: Decoder, context: int) -> int:
    """Rows of T positions that go through the upper half together."""
    device = model.embedding.weight.device.type
    numbers = _LOGITS_AT_ONCE.get(device, 1 << 26)
    tokens = min(_TOKENS_AT_ONCE.get(device, 1 << 16), numbers // max(model.readout_weight.shape[0], map_numbers(model.config, context)))
    return max(1, tokens // context)


def _baseline(model: Decoder, batch: Batch) -> dict[str, Floats]:
    inputs_BT, targets_BT = tensors(model, batch)
    nats_BT = _array(target_nats(model, model.hidden(inputs_BT), targets_BT))
    counted_BT = (batch.targets != IGNORE).astype(np.float64)
    return {"tokens": counted_BT.sum(1), "ce": nats_BT.sum(1), "positions": nats_BT, "counted": counted_BT}


def _free(model: FreeTransformer, batch: Batch, row: int, samples: Sequence[int], seed: int) -> dict[str, Floats]:
    """row: the number of the batch's first row."""
    draws = max(samples)
    inputs_BT, targets_BT = tensors(model, batch)
    rows, context = batch.inputs.shape
    x_BTD = model.lower(inputs_BT)
    bit_logits_BTH = at_least_float32(model.infer_latent(x_BTD, inputs_BT))
    carriers_BT = carriers(targets_BT)
    kl_BT = kl_per_token(bit_logits_BTH) * carriers_BT
    streams = [row_stream(seed, "posterior", row + i) for i in range(rows)]
    log_weights, nats_BT = [], torch.zeros_like(carriers_BT, dtype=torch.float64)
    at_once = max(1, rows_at_once(model, context) // rows)
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        noise = np.stack([stream.random((count, *bit_logits_BTH.shape[1:]), dtype=np.float32) for stream in streams])
        logits_BKTH = bit_logits_BTH[:, None].expand(-1, count, -1, -1)
        z_BKT = sample_codes(logits_BKTH, torch.from_numpy(noise).to(x_BTD.device))
        ce_BKT = _repeated(model, inputs_BT, x_BTD, z_BKT, targets_BT)
        log_ratio_BKT = (-model.latent.bits * LN2 - log_posterior(logits_BKTH, z_BKT)) * carriers_BT[:, None]
        log_weights.append(log_ratio_BKT.double().sum(-1) - ce_BKT.double().sum(-1))
        nats_BT += ce_BKT.double().sum(1)
    nats_BT /= draws
    prior = prior_codes(model, range(row, row + rows), (min(draws, PRIOR_DRAWS), context), seed)
    prior_BKT = _repeated(model, inputs_BT, x_BTD, prior, targets_BT)
    counted_BT = (batch.targets != IGNORE).astype(np.float64)
    return {
        "tokens": counted_BT.sum(1),
        "ce": _array(nats_BT.sum(1)),
        "kl": _array(kl_BT.double().sum(1)),
        "above": _array((kl_BT > model.latent.kappa * LN2).sum(1)),
        "carriers": _array(carriers_BT.sum(1)),
        "ce_prior": _array(prior_BKT.double().sum(-1).mean(1)),
        **{f"posterior {count}": nats for count, nats in importance_bounds(_array(torch.cat(log_weights, dim=1)), samples).items()},
        **{f"prior {k}": nats for k, nats in importance_bounds(_array(-prior_BKT.double().sum(-1)), _prior_samples(samples)).items()},
        "positions": _array(nats_BT + kl_BT),
        "counted": counted_BT,
    }


def _repeated(model: FreeTransformer, inputs_BT: Tensor, x_BTD: Tensor, z_BKT: Tensor, targets_BT: Tensor) -> Tensor:
    """−log P(target | Z) [B, K, T] of several Zs a row."""
    rows, count, context = z_BKT.shape
    x, inputs, targets = (of_row.repeat_interleave(count, dim=0) for of_row in (x_BTD, inputs_BT, targets_BT))
    nats = given_z_nats(model, x, z_BKT.reshape(rows * count, context), targets, model.documents(inputs))
    return nats.view(rows, count, context)


def _array(tensor: Tensor) -> Floats:
    return tensor.double().cpu().numpy()


def cost(nats: Floats, targets: ArrayLike, bytes_per_token: float | None, seed: int = 0, documents: ArrayLike | None = None) -> Cost:
    """The mean of per-sequence nats [N] over counted targets [N] as a Cost."""
    counted = np.asarray(targets, np.float64)
    estimate = bootstrap(nats, counted, clusters=documents, seed=seed)
    bits = estimate.value / LN2
    return Cost(
        nats_per_token=estimate.value,
        low=estimate.low,
        high=estimate.high,
        bits_per_token=bits,
        bits_per_byte=bits / bytes_per_token if bytes_per_token else None,
        bits_per_sequence=bits * float(counted[0]) if bool((counted == counted[0]).all()) else None,
    )


def evaluate_likelihood(
    checkpoint: Checkpoint,
    model: Decoder,
    source: DataSource,
    *,
    run: str,
    split: str,
    sequences: int = 256,
    samples: Sequence[int] = SAMPLES,
    seed: int = 0,
    advance: Advance = _no_progress,
) -> Likelihood:
    """Everything that `evaluate --task likelihood` tells of one checkpoint."""
    costs = row_costs(model, source, split=split, sequences=sequences, samples=samples, seed=seed, advance=advance)
    ratio = source.bytes_per_token.get(split)

    def told(nats: Floats | None) -> Cost | None:
        return None if nats is None else cost(nats, costs.tokens, ratio, seed, costs.documents)

    return Likelihood(
        run=run,
        task="likelihood",
        kind=checkpoint.recipe.kind,
        step=checkpoint.step,
        split=split,
        sequences=len(costs.tokens),
        tokens=int(costs.tokens.sum()),
        seed=seed,
        facts=source.facts,
        nll=cost(costs.nll, costs.tokens, ratio, seed, costs.documents),
        proposal=costs.proposal,
        elbo=cost(costs.elbo, costs.tokens, ratio, seed, costs.documents),
        ce_posterior=told(costs.ce_posterior),
        kl=told(costs.kl),
        ce_prior=told(costs.ce_prior),
        bound=[BoundPoint(count, cost(nats, costs.tokens, ratio, seed, costs.documents)) for count, nats in costs.posterior_bound.items()],
        prior_bound=[
            BoundPoint(count, cost(nats, costs.tokens, ratio, seed, costs.documents)) for count, nats in costs.prior_bound.items()
        ],
        floor_bits=source.facts.floor_bits,
        seconds=costs.seconds,
    )
