"""reviews: short positive and negative film reviews from a small grammar, the example that opens the paper's section 2.

    {"text": "I saw The Borrowed Journey on the Hill, a western, alone. I left the cinema angry.",
     "factors": {"sentiment": "negative", "genre": "western"}}

A sentiment (positive or negative, each with probability 1/2) and one of five genres are drawn first; every phrase depends on them. The
phrases are in reviews.toml. Each review names its film, one of 6,144 titles: of 1,000 held-out texts, hardly one stands among 9,000 others
too. Texts are ASCII, at most 200 characters long and tokenized as bytes; a row is `SEP text SEP`. The task has no parameters. The entropy
of the texts has no closed form, since different derivations can give the same text.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from typing import ClassVar

import numpy as np

from freetf_cli.tasks.base import BLOCK_ROWS, PAD, Example, Param, Rows, Task

LONGEST = 200  # characters
SEPARATOR = 256  # as in the byte tokenizer
SENTIMENTS = ("negative", "positive")
GENRES = ("comedy", "drama", "thriller", "western", "mystery")

Grammar = dict[str, list[str]]
GRAMMAR: dict[str, Grammar] = tomllib.loads(files(__package__).joinpath("reviews.toml").read_text("utf-8"))


class Reviews(Task):
    """Film reviews with a known sentiment and genre. Both must be read from the words, by a classifier, so there are no exact factors."""

    label = "sentiment"
    separator = True
    alphabet = None
    row_tokens = LONGEST + 2
    PARAMS: ClassVar[Mapping[str, Param]] = {}

    def draw(self, rng: np.random.Generator) -> Rows:
        examples = [review(rng) for _ in range(BLOCK_ROWS)]
        tokens = np.full((BLOCK_ROWS, self.row_tokens), PAD, np.int64)
        for row, example in zip(tokens, examples, strict=True):
            ids = [SEPARATOR, *example.text.encode("ascii"), SEPARATOR]
            row[: len(ids)] = ids
        return Rows(tokens, examples.__getitem__)

    def prompt(self, seed: int, index: int) -> str:
        """Empty: a review begins after the separator."""
        return ""

    def entropy(self) -> dict[str, float]:
        return {"sentiment": 1.0, "genre": float(np.log2(len(GENRES)))}


def review(rng: np.random.Generator) -> Example:
    """One review. The text is drawn again until it is short enough; the factors are not."""
    sentiment, genre = str(rng.choice(SENTIMENTS)), str(rng.choice(GENRES))
    of_genre = {name: GRAMMAR[name][genre] for name in ("plot", "scene")}
    grammar = GRAMMAR["any"] | GRAMMAR[sentiment] | of_genre | {"genre": [genre]}
    while len(text := spell("{review}", grammar, rng)) > LONGEST:
        pass
    return Example(text, {"sentiment": sentiment, "genre": genre})


def spell(phrase: str, grammar: Grammar, rng: np.random.Generator) -> str:
    """The phrase with every {name} replaced by one of its phrases, recursively."""

    def choose(match: re.Match[str]) -> str:
        options = grammar[match[1]]
        return spell(options[rng.integers(len(options))], grammar, rng)

    return re.sub(r"\{(\w+)\}", choose, phrase)
