"""reviews: short positive and negative film reviews from a small grammar, the example that opens the paper's section 2.

    {"text": "The Winter Window of the North, a much discussed drama: the last summer of a farm. Above all, the letter at the end is
     without any life. Stay at home.", "factors": {"sentiment": "negative", "genre": "drama"}}

A sentiment (positive or negative, each with probability 1/2) and one of five genres are drawn first; every phrase depends on them. The
phrases are in reviews.toml. Each review names its film, one of 6,144 titles: of 1,000 held-out texts, hardly one stands among 9,000 others
too. Texts are ASCII, at most 200 characters long and tokenized as bytes, or as words (`tokens`); a row is `SEP text SEP`. The entropy of
the texts has no closed form, since different derivations can give the same text.

Generated texts are read by a parser: the grammar has no recursion, so the texts of a sentiment and a genre are a regular language.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar

import numpy as np

from freetf_cli.tasks.base import BLOCK_ROWS, PAD, Example, Param, Rows, Task
from freetf_cli.tasks.factors import Factor, Reading

LONGEST = 200  # characters
MOST_WORDS = 48  # words of a text, punctuation counted
WORD = r" ?[\w'-]+|[^\w'-]"  # a word with the space before it, or any other character
SEPARATOR = 256  # as in the byte tokenizer
SENTIMENTS = ("negative", "positive")
GENRES = ("comedy", "drama", "thriller", "western", "mystery")

Grammar = dict[str, list[str]]
GRAMMAR: dict[str, Grammar] = tomllib.loads(files(__package__).joinpath("reviews.toml").read_text("utf-8"))


class Reviews(Task):
    """Film reviews with a known sentiment and genre."""

    label = "sentiment"
    separator = True
    pattern = WORD
    factors = (Factor("sentiment", SENTIMENTS), Factor("genre", GENRES))
    PARAMS: ClassVar[Mapping[str, Param]] = {"tokens": Param("bytes", "what a token is", choices=("bytes", "words"))}

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.longest = LONGEST
        self.alphabet = vocabulary() if params["tokens"] == "words" else None
        self._ids = {word: number for number, word in enumerate(self.alphabet or ())}
        self.row_tokens = 2 + (MOST_WORDS if self.alphabet else LONGEST)

    def draw(self, rng: np.random.Generator) -> Rows:
        examples = [review(rng) for _ in range(BLOCK_ROWS)]
        tokens = np.full((BLOCK_ROWS, self.row_tokens), PAD, np.int64)
        separator = len(self._ids) or SEPARATOR
        for row, example in zip(tokens, examples, strict=True):
            ids = [separator, *self._encode(example.text), separator]
            row[: len(ids)] = ids
        return Rows(tokens, examples.__getitem__)

    def _encode(self, text: str) -> Iterable[int]:
        return [self._ids[word] for word in re.findall(WORD, text)] if self._ids else text.encode("ascii")

    def prompt(self, seed: int, index: int) -> str:
        """Empty: a review begins after the separator."""
        return ""

    def read(self, text: str) -> Reading:
        """Valid: the grammar writes this text, for some sentiment and genre. Each is unread if the text fits several of its values."""
        found = list(parses(text)) if len(text) <= self.longest else []
        sentiments, genres = {sentiment for sentiment, _ in found}, {genre for _, genre in found}
        factors = {"sentiment": _only(sentiments), "genre": _only(genres)}
        return Reading(factors, valid=bool(found))

    def entropy(self) -> dict[str, float]:
        return {"sentiment": 1.0, "genre": float(np.log2(len(GENRES)))}


def review(rng: np.random.Generator) -> Example:
    """One review. The text is drawn again until it is short enough; the factors are not."""
    sentiment, genre = str(rng.choice(SENTIMENTS)), str(rng.choice(GENRES))
    grammar = grammar_of(sentiment, genre)
    while len(text := spell("{review}", grammar, rng)) > LONGEST or len(re.findall(WORD, text)) > MOST_WORDS:
        pass
    return Example(text, {"sentiment": sentiment, "genre": genre})


@cache
def grammar_of(sentiment: str, genre: str) -> Grammar:
    """The phrases of every name in a review of this sentiment and genre."""
    of_genre = {name: GRAMMAR[name][genre] for name in ("plot", "scene")}
    return GRAMMAR["any"] | GRAMMAR[sentiment] | of_genre | {"genre": [genre]}


def spell(phrase: str, grammar: Grammar, rng: np.random.Generator) -> str:
    """The phrase with every {name} replaced by one of its phrases, recursively."""

    def choose(match: re.Match[str]) -> str:
        options = grammar[match[1]]
        return spell(options[rng.integers(len(options))], grammar, rng)

    return re.sub(r"\{(\w+)\}", choose, phrase)


def parses(text: str) -> Iterator[tuple[str, str]]:
    """Every sentiment and genre of which the grammar can write this text."""
    return ((sentiment, genre) for sentiment in SENTIMENTS for genre in GENRES if _language(sentiment, genre).fullmatch(text))


@cache
def _language(sentiment: str, genre: str) -> re.Pattern[str]:
    """The texts of a sentiment and a genre: the grammar's phrases, each {name} an alternation of its own phrases."""
    grammar = grammar_of(sentiment, genre)

    def pattern(phrase: str) -> str:
        pieces = re.split(r"\{(\w+)\}", phrase)  # literal text and names by turns
        return "".join(named(piece) if place % 2 else re.escape(piece) for place, piece in enumerate(pieces))

    @cache
    def named(name: str) -> str:
        return f"(?:{'|'.join(map(pattern, grammar[name]))})"

    return re.compile(named("review"))


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of the grammar's texts, sorted: with the space before it, and without where a text can begin with it."""
    found = set[str]()
    for grammar in (grammar_of(sentiment, genre) for sentiment in SENTIMENTS for genre in GENRES):
        for phrase in {re.sub(r"\{\w+\}", "", phrase) for phrases in grammar.values() for phrase in phrases}:
            found |= {word if re.fullmatch(r"\W", word) else f" {word.strip()}" for word in re.findall(WORD, phrase)}
        found |= set(_first_words("{review}", grammar))
    return tuple(sorted(found - {" "}))


def _first_words(phrase: str, grammar: Grammar) -> Iterator[str]:
    """The words that a phrase can begin with."""
    if name := re.match(r"\{(\w+)\}", phrase):
        for option in grammar[name[1]]:
            yield from _first_words(option, grammar)
    else:
        yield re.findall(WORD, phrase)[0]


def _only(values: set[str]) -> str | None:
    """The one value of a set; None if it has more, or none."""
    return next(iter(values)) if len(values) == 1 else None
