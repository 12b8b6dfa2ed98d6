"""Evaluation of checkpoints: metrics, comparison, and probes of the latent."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

Advance = Callable[[int], None]  # reports that so many more items are done
Stage = Callable[[str, int | None], AbstractContextManager[Advance]]  # (name, number of items): shows the progress of one measurement
