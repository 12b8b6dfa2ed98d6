"""Keyed random streams: every random number of the toolkit is a function of a key, never of a global generator's state.

keyed(seed, "prior", 7).integers(0, 256, 65)     # the same numbers in every process, on every machine

Data and everything else have different functions, because a key's numbers may never change: runs would no longer be reproducible.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def keyed(*key: int | str) -> np.random.Generator:
    """A NumPy generator (Philox) for a key of non-negative integers and words.

    A word enters as its bytes, without its length. So two keys can give the same numbers if a word of one begins with a word of the
    other, or if one has integers where the other has a word.
    """
    import numpy as np

    return np.random.Generator(np.random.Philox(np.random.SeedSequence(_entropy(key))))


def torch_seed(*key: int | str) -> int:
    """A seed for `torch.Generator.manual_seed`, from the same kind of key."""
    import numpy as np

    return int(np.random.SeedSequence(_entropy(key)).generate_state(1, np.uint64)[0] >> 1)


def _entropy(key: tuple[int | str, ...]) -> list[int]:
    """The key as integers; a word becomes its bytes."""
    return [number for part in key for number in (part.encode() if isinstance(part, str) else [part])]


def data_generator(*key: object) -> np.random.Generator:
    """A NumPy generator (Philox) for a key of JSON values: the rows of tasks, the order of rows, and splits."""
    import numpy as np

    digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def stream_seed(seed: int, name: str) -> int:
    """The seed of a named stream of rows, so that splits generated in memory share none."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
