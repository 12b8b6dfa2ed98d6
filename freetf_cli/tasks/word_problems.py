"""word_problems: arithmetic word problems of one or two steps, with a worked solution, in the form of GSM8K's.

    {"text": "Question: Rosa has 14 stamps and buys 9 more. How many stamps does Rosa have now?\\n"
             "Answer: Rosa has 14+9 = <<14+9=23>>23 stamps now.\\n#### 23",
     "factors": {"kind": "more", "answer": 23}}

The kinds of problem are in word_problems.toml: + − × ÷ with whole numbers, every result positive. `part` says which problems are drawn, so
that none of those that a model is measured on can occur in its training:

    train      eleven kinds, with four fifths of the numbers
    numbers    the same kinds, with the other numbers
    kinds      three kinds that no other part has

A number part is fixed by kind and numbers alone (`is_held_out`), whatever the names and things are. Texts are ASCII, at most 320
characters long and tokenized as bytes; a row is `SEP text SEP`. The entropy of the texts is not computed.
"""

from __future__ import annotations

import hashlib
import operator
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any, ClassVar

import numpy as np

from freetf_cli.errors import InputError
from freetf_cli.tasks.base import BLOCK_ROWS, PAD, Example, Param, Rows, Task
from freetf_cli.tasks.factors import Reading

LONGEST = 320  # characters
SEPARATOR = 256  # as in the byte tokenizer
HELD_OUT = 5  # one set of numbers in so many is held out
ANSWER = "\nAnswer:"
PARTS = ("train", "numbers", "kinds")
OPERATORS: Mapping[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
WORDS = r"[A-Za-z]+"

Numbers = dict[str, int]


@dataclass(frozen=True)
class Problem:
    """A kind of problem. numbers: the range of each; steps: calculations such as `x = a + b`, the last one gives the answer."""

    kind: str
    question: str
    numbers: Mapping[str, tuple[int, int]]
    steps: tuple[str, ...]
    solution: tuple[str, ...]
    held_out: bool = False

    def work_out(self, drawn: Numbers) -> tuple[Numbers, dict[str, str]] | None:
        """All numbers, and the calculation of each result in GSM8K's form; None if a result is not a positive whole number."""
        known, shown = dict(drawn), {}
        for step in self.steps:
            result, _, left, sign, right = step.split()
            one, other = (known.get(word) or int(word) for word in (left, right))
            value = OPERATORS[sign](one, other)
            if value < 1 or (sign == "/" and one % other):
                return None
            known[result], shown[result] = value, f"{one}{sign}{other} = <<{one}{sign}{other}={value}>>{value}"
        return known, shown

    def is_held_out(self, drawn: Numbers) -> bool:
        """Whether problems with these numbers are held out: the part `numbers` has them, and the part `train` does not."""
        text = f"{self.kind} {' '.join(str(drawn[name]) for name in sorted(drawn))}"
        return hashlib.blake2b(text.encode(), digest_size=4).digest()[0] % HELD_OUT == 0

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches a question of this kind, whatever its names and numbers."""
        seen: set[str] = set()

        def group(match: re.Match[str]) -> str:
            name = match[1]
            again = name in seen
            seen.add(name)
            return f"(?P={name})" if again else f"(?P<{name}>{r'[0-9]{1,9}' if name in self.numbers else WORDS})"

        return re.compile(re.sub(r"\\\{(\w+)\\\}", group, re.escape(self.question)))


_FILE = tomllib.loads(files(__package__).joinpath("word_problems.toml").read_text("utf-8"))
NAMES, THINGS = _FILE["names"], _FILE["things"]
PROBLEMS = tuple(Problem(**{**one, "steps": tuple(one["steps"]), "solution": tuple(one["solution"])}) for one in _FILE["problems"])


class WordProblems(Task):
    """Word problems with their answers. `read` checks the answer that a generated row gives to its own question."""

    label = "kind"
    separator = True
    alphabet = None
    row_tokens = LONGEST + 2
    PARAMS: ClassVar[Mapping[str, Param]] = {"part": Param("train", "which problems", choices=PARTS)}

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.part = params["part"]
        self.problems = [one for one in PROBLEMS if one.held_out == (self.part == "kinds")]

    def draw(self, rng: np.random.Generator) -> Rows:
        examples = [self._problem(rng) for _ in range(BLOCK_ROWS)]
        tokens = np.full((BLOCK_ROWS, self.row_tokens), PAD, np.int64)
        for row, example in zip(tokens, examples, strict=True):
            ids = [SEPARATOR, *example.text.encode("ascii"), SEPARATOR]
            row[: len(ids)] = ids
        return Rows(tokens, examples.__getitem__)

    def _problem(self, rng: np.random.Generator) -> Example:
        """One problem. Numbers are drawn again until they fit the problem and the part; its kind is not."""
        problem = self.problems[rng.integers(len(self.problems))]
        words = {"name": str(rng.choice(NAMES)), "things": str(rng.choice(THINGS))}
        while True:
            drawn = {name: int(rng.integers(low, high + 1)) for name, (low, high) in problem.numbers.items()}
            worked = problem.work_out(drawn)
            if worked is not None and (self.part == "kinds" or problem.is_held_out(drawn) == (self.part == "numbers")):
                break
        known, shown = worked
        answer = known[problem.steps[-1].partition(" ")[0]]
        lines = [line.format(**words, **known | shown) for line in problem.solution]
        text = f"Question: {problem.question.format(**words, **drawn)}{ANSWER} " + "\n".join([*lines, f"#### {answer}"])
        return Example(text, {"kind": problem.kind, "answer": answer})

    def prompt(self, seed: int, index: int) -> str:
        """The question of problem number `index`."""
        return self.examples(seed, index, 1)[0].text.partition(ANSWER)[0] + ANSWER

    def check_prompt(self, prompt: str) -> None:
        if not prompt.startswith("Question: "):
            raise InputError("a row of word_problems begins with 'Question: '", f"prompt {prompt[:40]!r}")

    def entropy(self) -> dict[str, float]:
        return {}

    def read(self, text: str) -> Reading:
        """Valid: the question is one of this part's kinds, and the number after `####` is its answer."""
        question, _, answer = text.removeprefix("Question: ").partition(ANSWER)
        given = re.search(r"#### (-?[0-9]{1,9})$", answer)
        for problem in self.problems:
            if found := problem.pattern.fullmatch(question):
                worked = problem.work_out({name: int(found[name]) for name in problem.numbers})
                right = None if worked is None else worked[0][problem.steps[-1].partition(" ")[0]]
                return Reading({"kind": problem.kind, "answer": right}, valid=given is not None and int(given[1]) == right)
        return Reading(valid=False)
