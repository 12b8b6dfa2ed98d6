"""The base of tasks whose rows are a question and its answer in words: `SEP question answer SEP`. Only the answer is a target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from freetf_cli.streams import stream_seed
from freetf_cli.tasks.base import BLOCK_ROWS, Example, Task


class Question(Task):
    """A task whose question is the first `loss_start` − 1 words of a row. label: the one factor."""

    separator = True
    hidden_word = "$"
    label: ClassVar[str]

    def prompt(self, seed: int, index: int) -> str:
        """A whole question."""
        return self._question(self.examples(stream_seed(seed, "prompt"), index, 1)[0])

    def other_prompt(self, factors: Mapping[str, Any]) -> str:
        """The question of a row with another value of the factor."""
        others = self.stream(stream_seed(0, "prompt"), 0, BLOCK_ROWS)
        return self._question(next(one for one in others if one.factors[self.label] != factors[self.label]))

    def _question(self, example: Example) -> str:
        return " ".join(example.text.split(" ")[: self.loss_start - 1])
