"""likelihood: a baseline's cross-entropy (CE). Of a Free model, CE with Z from the posterior and from the prior, KL, their sum (the
negative ELBO), and the importance-weighted bound nll, which falls with more draws; compare nll with a baseline's CE.
"""

from __future__ import annotations

from freetf_cli.data.batches import DataSource
from freetf_cli.evaluation.likelihood import DRAWS, row_costs
from freetf_cli.evaluation.metrics import Request
from freetf_cli.evaluation.statistics import check_enough
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.likelihood import BoundPoint, Likelihood
from freetf_cli.runs.checkpoint import Checkpoint

OPTIONS = ("--samples",)


def evaluate(checkpoint: Checkpoint, model: Decoder, source: DataSource, request: Request) -> Likelihood:
    """Measure a model's likelihood bounds, with intervals."""
    draws = [*(count for count in DRAWS if count < request.draws), request.draws]
    costs = row_costs(
        model, source, split=request.split, sequences=request.sequences, draws=draws, seed=request.seed, advance=request.advance
    )
    check_enough(len(costs.targets), "sequences", f"--sequences, or more data in split '{request.split}'")
    found = {name: costs.cost(nats) for name, nats in costs.nats.items()}
    return Likelihood(
        **request.described("likelihood", checkpoint, source, len(costs.targets), costs.seconds),
        tokens=int(costs.targets.sum()),
        nll=found["nll"],
        proposal=costs.proposal,
        elbo=found["elbo"],
        ce_posterior=found.get("ce_posterior"),
        kl=found.get("kl"),
        ce_prior=found.get("ce_prior"),
        bound=[BoundPoint(count, costs.cost(nats)) for count, nats in costs.posterior_bound.items()],
        prior_bound=[BoundPoint(count, costs.cost(nats)) for count, nats in costs.prior_bound.items()],
        frequencies=costs.frequencies,
        floor_bits=source.facts.floor_bits,
    )
