"""needles: facts hidden in a long text, and a question about one of them; rows to train on for the benchmark of this name.

    {"text": "The baker walked by the river. … The magic number of Lisbon is 7412. … The miller slept at home.\\n"
             "Question: What is the magic number of Lisbon?\\nAnswer: The magic number of Lisbon is 7412",
     "factors": {"needles": 2, "depth": 50, "city": "Lisbon", "answer": 7412}}

`needles` sentences name the magic numbers of as many cities. The one that is asked for stands after `depth` per cent of the other
sentences; the places of the others are random. Other sentences are consecutive ones of a list in random order, as many as fit: separator
and text take at most `length` tokens. Texts are ASCII, tokenized as bytes; a row is `SEP text SEP`. The entropy of the texts is not
computed.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import cycle, product
from typing import Any, ClassVar

import numpy as np

from freetf_cli.errors import InputError
from freetf_cli.streams import keyed
from freetf_cli.tasks.base import BLOCK_ROWS, PAD, Example, Param, Rows, Task
from freetf_cli.tasks.factors import Reading

SEPARATOR = 256  # as in the byte tokenizer
NEEDLES = (2, 4, 6)
DEPTHS = (0, 25, 50, 75, 100)  # per cent
ANSWER = "\nAnswer:"
FACT = re.compile(r"The magic number of (\w+) is ([0-9]{4})\.")
ASKED = re.compile(r"\nQuestion: What is the magic number of (\w+)\?\nAnswer: The magic number of \1 is ([0-9]{4})$")
_WORDS = tomllib.loads(files(__package__).joinpath("needles.toml").read_text("utf-8"))

Tokens = Callable[[str], int]  # the number of tokens of a text


def count_bytes(text: str) -> int:
    return len(text.encode())


class Haystack:
    """Sentences among which facts are hidden, in the order of their text. name: where they come from."""

    def __init__(self, name: str, sentences: Sequence[str], tokens: Tokens) -> None:
        self.name, self.sentences, self._tokens = name, sentences, tokens
        self._cost = cache(lambda sentence: tokens(f" {sentence}"))

    def fill(self, rng: np.random.Generator, hide: Callable[[Sequence[str]], str], ending: str, length: int) -> str | None:
        """Make a prompt of at most `length` tokens from as many consecutive sentences as fit. Returns None if it is too long without any.

        The first sentence follows the last. hide: makes the prompt from the sentences, and hides the facts among them. ending: what may
        follow the prompt.
        """

        def fits(sentences: Sequence[str]) -> bool:
            return self._tokens(hide(sentences) + ending) + 1 <= length  # 1: the separator

        if not fits([]):
            return None
        left, taken = length - 1 - self._tokens(hide([]) + ending), list[str]()
        start = int(rng.integers(max(len(self.sentences), 1)))
        for sentence in cycle([*self.sentences[start:], *self.sentences[:start]]):
            left -= max(self._cost(sentence), 1)
            if left < 0:
                break
            taken.append(sentence)
        while not fits(taken):  # tokens of the whole need not be the sum of those of its sentences
            taken.pop()
        return hide(taken)


def generated_haystack(tokens: Tokens) -> Haystack:
    """Sentences such as `The baker walked by the river.`, in random order."""
    sentences = [f"The {person} {deed} {place}." for person, deed, place in product(_WORDS["people"], _WORDS["deeds"], _WORDS["places"])]
    order = keyed("haystack").permutation(len(sentences))
    return Haystack("generated", [sentences[number] for number in order], tokens)


def hidden(sentences: Sequence[str], facts: Sequence[str], places: Sequence[int]) -> str:
    """The text with each fact before the sentence with the number in `places`; facts with the same place keep their order."""
    before = dict[int, list[str]]()
    for fact, place in zip(facts, places, strict=True):
        before.setdefault(place, []).append(fact)
    parts = [part for number in range(len(sentences) + 1) for part in (*before.get(number, ()), *sentences[number : number + 1])]
    return " ".join(parts)


@dataclass(frozen=True)
class Item:
    """A prompt that ends where the city's number must follow. numbers: those of all cities in the prompt, this city's first."""

    prompt: str
    city: str
    numbers: Sequence[str]


def draw_needles(rng: np.random.Generator, haystack: Haystack, count: int, depth: int, length: int) -> Item | None:
    """Hide facts in a haystack and ask for the first of them. Returns None if they do not fit into `length` tokens."""
    cities = [_WORDS["cities"][place] for place in rng.permutation(len(_WORDS["cities"]))[:count]]
    numbers = [str(1000 + value) for value in rng.permutation(9000)[:count]]
    facts = [f"The magic number of {city} is {value}." for city, value in zip(cities, numbers, strict=True)]
    shares = [depth / 100, *rng.random(count - 1).tolist()]
    asked = f"\nQuestion: What is the magic number of {cities[0]}?{ANSWER} The magic number of {cities[0]} is"

    def hide(sentences: Sequence[str]) -> str:
        return hidden(sentences, facts, [round(share * len(sentences)) for share in shares]) + asked

    prompt = haystack.fill(rng, hide, f" {numbers[0]}", length)
    return None if prompt is None else Item(prompt, cities[0], numbers)


class Needles(Task):
    """Needles in generated sentences. `read` checks the answer that a generated row gives to its own question."""

    label = "depth"
    separator = True
    alphabet = None
    PARAMS: ClassVar[Mapping[str, Param]] = {
        "length": Param(1024, "tokens of separator and text, at most", 1, 1 << 16),
        "needles": Param(0, "facts in a text; 0: 2, 4 or 6", 0, len(_WORDS["cities"])),
        "depth": Param(-1, "per cent of the other sentences that stand before the fact; -1: 0, 25, 50, 75 or 100", -1, 100),
    }

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.length, self.row_tokens = params["length"], params["length"] + 1
        self.counts = [params["needles"]] if params["needles"] else NEEDLES
        self.depths = DEPTHS if params["depth"] < 0 else [params["depth"]]
        self.haystack = generated_haystack(count_bytes)
        names = sorted(map(len, _WORDS["cities"]))[-max(self.counts) :]
        facts = sum(len("The magic number of  is 0000. ") + name for name in names)
        least = facts + len("\nQuestion: What is the magic number of ?\nAnswer: The magic number of  is 0000") + 2 * names[-1]
        if self.length < least:
            facts_in_words = "1 fact" if max(self.counts) == 1 else f"{max(self.counts)} facts"
            raise InputError(f"needles: length = {self.length} has no room for {facts_in_words}", hint=f"choose {least} or more")

    def draw(self, rng: np.random.Generator) -> Rows:
        examples = [self._example(rng) for _ in range(BLOCK_ROWS)]
        tokens = np.full((BLOCK_ROWS, self.row_tokens), PAD, np.int64)
        for row, example in zip(tokens, examples, strict=True):
            row[: len(example.text) + 2] = [SEPARATOR, *example.text.encode("ascii"), SEPARATOR]
        return Rows(tokens, examples.__getitem__)

    def _example(self, rng: np.random.Generator) -> Example:
        count, depth = int(rng.choice(self.counts)), int(rng.choice(self.depths))
        found = draw_needles(rng, self.haystack, count, depth, self.length)
        assert found is not None  # as the parameters were checked
        factors = {"needles": count, "depth": depth, "city": found.city, "answer": int(found.numbers[0])}
        return Example(f"{found.prompt} {found.numbers[0]}", factors)

    def prompt(self, seed: int, index: int) -> str:
        """The text and the question of row number `index`, up to the answer's number."""
        return self.examples(seed, index, 1)[0].text.rpartition(" ")[0]

    def check_prompt(self, prompt: str) -> None:
        if not prompt.startswith("The "[: len(prompt)]):
            raise InputError("a row of needles begins with 'The '", f"prompt {prompt[:40]!r}")

    def entropy(self) -> dict[str, float]:
        return {}

    def read(self, text: str) -> Reading:
        """Valid: the text tells the number of the city that is asked for once, and the answer is that number."""
        asked = ASKED.search(text)
        if asked is None:
            return Reading(valid=False)
        facts = FACT.findall(text[: asked.start()])
        factors = {"needles": len(facts), "city": asked[1], "answer": int(asked[2])}
        return Reading(factors, valid=[number for city, number in facts if city == asked[1]] == [asked[2]])
