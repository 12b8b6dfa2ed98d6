"""Keyed random streams: every random number of the toolkit is a function of a key, never of a global generator's state.

keyed(seed, "prior", 7).integers(0, 256, 65)     # the same numbers in every process, on every machine
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def keyed(*key: int | str) -> np.random.Generator:
    """A NumPy generator (Philox) for a key of non-negative integers and words."""
    import numpy as np

    return np.random.Generator(np.random.Philox(np.random.SeedSequence(_entropy(key))))


def torch_seed(*key: int | str) -> int:
    """A seed for `torch.Generator.manual_seed`, from the same kind of key."""
    import numpy as np

    return int(np.random.SeedSequence(_entropy(key)).generate_state(1, np.uint64)[0] >> 1)


def _entropy(key: tuple[int | str, ...]) -> list[int]:
    """The key as integers; a word becomes its bytes."""
    return [number for part in key for number in (part.encode() if isinstance(part, str) else [part])]
