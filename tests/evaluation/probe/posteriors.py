"""Posteriors with codes that a test chooses, and a progress display that shows nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch

from freetf_cli.data.batches import DataSource
from freetf_cli.evaluation.probe.rate import Posterior
from freetf_cli.latent.binary import BinaryDistribution


@contextlib.contextmanager
def silent(name: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda n: None


def posterior_of(codes_of: Callable[[dict[str, object]], int], source: DataSource, count: int) -> Posterior:
    """A certain posterior: the first code of each row is `codes_of(factors)`, the others are from the prior."""
    rows = source.held_out_factors("val", count)
    z = torch.from_numpy(np.random.default_rng(0).integers(0, 65536, (count, 65)))
    z[:, 0] = torch.tensor([codes_of(row) for row in rows])
    zeros = np.zeros(count)
    hidden = torch.randn(count, 40, generator=torch.Generator().manual_seed(0))
    own = np.arange(count)
    costs, sizes = (zeros, zeros, zeros), (zeros + 65, zeros)
    q, places = BinaryDistribution(torch.zeros(count, 65, 16)), np.arange(65)
    return Posterior(q, torch.ones(count, 65), z, places, np.roll(own, 1), *costs, *sizes, own, hidden)


def starting(row: dict[str, object]) -> int:
    """A code that PlantedLetters reads as the row's own position."""
    return -(-(int(str(row["position"])) << 16) // 57)
