"""How likely a model finds held-out sequences: the records of `evaluate --task likelihood`, which `probe-latent` and `compare` use too."""

from __future__ import annotations

from dataclasses import dataclass

from freetf_cli.records import DataFacts


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % bootstrap interval, all in one unit. The interval is of the sampling of sequences (or of Zs) only."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Cost:
    """A mean cost over the held-out targets with its 95 % interval, in nats per token; the mean also in the units people quote.

    bits_per_byte: where the data is text; bits_per_sequence: where every sequence has as many targets.
    """

    nats_per_token: float
    low: float
    high: float
    bits_per_token: float
    bits_per_byte: float | None
    bits_per_sequence: float | None


@dataclass(frozen=True)
class BoundPoint:
    """An importance-weighted bound on −log P(S) with `samples` draws of Z a sequence."""

    samples: int
    nll: Cost


@dataclass(frozen=True)
class Likelihood:
    """What `evaluate --task likelihood` measures.

    nll: a baseline's CE; a Free model's tightest importance-weighted bound, whose Zs came from `proposal` (posterior or prior; none for a
    baseline). elbo: CE + KL (a baseline's CE). ce_posterior, kl, ce_prior: None for a baseline. bound, prior_bound: with Z from the
    posterior and from the prior, from 1 draw to the most, falling towards −log P(S).
    floor_bits: the data's entropy in bits per sequence where it is known. seconds: of the whole measurement.
    """

    run: str
    task: str
    kind: str
    step: int
    split: str
    sequences: int
    tokens: int
    seed: int
    facts: DataFacts
    nll: Cost
    proposal: str
    elbo: Cost
    ce_posterior: Cost | None
    kl: Cost | None
    ce_prior: Cost | None
    bound: list[BoundPoint]
    prior_bound: list[BoundPoint]
    floor_bits: float | None
    seconds: float
