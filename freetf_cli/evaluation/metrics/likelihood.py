"""likelihood: a baseline's cross-entropy (CE). Of a Free model, CE with Z from the posterior and from the prior, KL, their sum (the
negative ELBO), and the importance-weighted bound nll, which falls with more draws; compare nll with a baseline's CE.
"""

from __future__ import annotations

from functools import partial

from freetf_cli.data.batches import DataSource
from freetf_cli.evaluation.likelihood import row_costs
from freetf_cli.evaluation.metrics import Request
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.likelihood import BoundPoint, Likelihood
from freetf_cli.runs.checkpoint import Checkpoint

SAMPLES = (1, 8, 64, 512)  # numbers of draws K at which the bound is measured, up to the requested number


def evaluate(checkpoint: Checkpoint, model: Decoder, source: DataSource, request: Request) -> Likelihood:
    """Measure a model's likelihood bounds, with intervals."""
    samples = [*(count for count in SAMPLES if count < request.samples), request.samples]
    costs = row_costs(
        model,
        source,
        split=request.split,
        sequences=request.sequences,
        samples=samples,
        seed=request.seed,
        advance=request.advance,
    )
    estimate = partial(costs.cost, bytes_per_token=source.bytes_per_token.get(request.split), seed=request.seed)
    return Likelihood(
        **request.described("likelihood", checkpoint, source, len(costs.tokens), costs.seconds),
        tokens=int(costs.tokens.sum()),
        nll=estimate(costs.nll),
        proposal=costs.proposal,
        elbo=estimate(costs.elbo),
        ce_posterior=None if costs.ce_posterior is None else estimate(costs.ce_posterior),
        kl=None if costs.kl is None else estimate(costs.kl),
        ce_prior=None if costs.ce_prior is None else estimate(costs.ce_prior),
        bound=[BoundPoint(count, estimate(nats)) for count, nats in costs.posterior_bound.items()],
        prior_bound=[BoundPoint(count, estimate(nats)) for count, nats in costs.prior_bound.items()],
        floor_bits=source.facts.floor_bits,
    )
