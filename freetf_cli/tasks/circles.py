"""circles: the edges of a circle of nodes in random order, an open-ended task of Nagarajan et al. (arXiv 2504.15266).

    {"text": "12 4 4 3 9 7 0 12 3 9 5 0 7 2 2 6 6 5", "factors": {"first": 12, "nodes": [0, 2, 3, 4, 5, 6, 7, 9, 12]}}

How a row is made: `nodes` distinct nodes (9) of `among` (15) in random order make a circle; its directed edges, each a pair of nodes, are
written in random order. A row is valid if walking from its first node visits all nodes once and returns. The planning: the last edges
must close what the first ones began. Two rows that list the same edges show the same object; there are 15! / 6! / 9 = 201,801,600.

The published code compares rows by the order of their edges alone, whatever the nodes, which gives only 8! = 40,320 objects.
`seed_length`: random letters before each row (see `open_ended.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from freetf_cli.tasks.base import Param
from freetf_cli.tasks.open_ended import SEED_LENGTH, EdgeLists


class Circles(EdgeLists):
    """Circles of nodes as edge lists."""

    closed = True
    PARAMS: ClassVar[Mapping[str, Param]] = {
        "nodes": Param(9, "nodes of the circle", 3, 100),
        "among": Param(15, "nodes to choose from", 3, 10_000),
        "seed_length": SEED_LENGTH,
    }
