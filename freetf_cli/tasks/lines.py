"""lines: the edges of a line of nodes in random order, an open-ended task of Nagarajan et al. (arXiv 2504.15266).

    {"text": "3 10 9 4 10 11 6 14 14 13 8 9 13 3 4 6", "factors": {"first": 3, "nodes": [3, 4, 6, 8, 9, 10, 11, 13, 14]}}

As `circles`, without the edge from the last node to the first: `nodes` distinct nodes (9) of `among` (15) have 8 edges. A row is valid
if following its edges from the one node that none leads to visits all nodes. There are 15! / 6! = 1,816,214,400 objects.
`seed_length`: random letters before each row (see `open_ended.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from freetf_cli.tasks.base import Param
from freetf_cli.tasks.open_ended import SEED_LENGTH, EdgeLists


class Lines(EdgeLists):
    """Lines of nodes as edge lists."""

    closed = False
    PARAMS: ClassVar[Mapping[str, Param]] = {
        "nodes": Param(9, "nodes of the line", 2, 100),
        "among": Param(15, "nodes to choose from", 2, 10_000),
        "seed_length": SEED_LENGTH,
    }
