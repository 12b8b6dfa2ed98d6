"""How often a model is wrong about what a row asks: the record of `evaluate --task answers`."""

from __future__ import annotations

from dataclasses import dataclass

from freetf_cli.records import DataFacts
from freetf_cli.records.likelihood import Estimate


@dataclass(frozen=True)
class Errors:
    """Rows with any wrong token among those that count, and their share with its 95 % interval (Wilson's)."""

    wrong: int
    share: Estimate


@dataclass(frozen=True)
class Answers:
    """What `evaluate --task answers` measures: the likeliest token at every position that counts, the true ones before it.

    That is what greedy generation answers: it is wrong where its first wrong token is. errors: of a baseline; of a Free model with Z from
    the prior, as in generation. errors_posterior: with Z from the encoder, which has read the answer; None for a baseline.
    """

    run: str
    task: str
    kind: str
    step: int
    split: str
    sequences: int
    seed: int
    facts: DataFacts
    errors: Errors
    errors_posterior: Errors | None
    seconds: float
