"""attempts: pass@k, the probability that one of k generated answers to a held-out question is right, for tasks that check an answer, such
as countdown. A Free model draws a new Z from the prior for each; with --temperature 0 its answers differ by Z alone.

Of n answers to a question, c are right. 1 − C(n − c, k) / C(n, k) is the share of its subsets of k answers with a right one, an unbiased
estimate of the probability (Chen et al., arXiv 2107.03374); pass@k is its mean over questions.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from freetf_cli.data.batches import IGNORE, DataSource
from freetf_cli.errors import InputError
from freetf_cli.evaluation.metrics import Request
from freetf_cli.evaluation.statistics import check_enough, share
from freetf_cli.generation.sampling import SampleSpec, generate
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.likelihood import Estimate, Evaluation
from freetf_cli.report.blocks import Note, Report, Section, Table
from freetf_cli.report.units import count, number
from freetf_cli.runs.checkpoint import Checkpoint

OPTIONS = ("--temperature", "--attempts")
ATTEMPTS = 64
READING = (
    "pass@k: the probability that at least one of k answers to a question is right, [95 % interval] over questions. different answers: how "
    "many of all answers to a question differ, as a share."
)


@dataclass(frozen=True)
class Passed:
    """pass@k for one k."""

    k: int
    share: Estimate


@dataclass(frozen=True, kw_only=True)
class Attempts(Evaluation):
    """The result of `evaluate --task attempts`. sequences: questions; attempts: answers to each; different: share of distinct answers."""

    temperature: float
    attempts: int
    passed: list[Passed]
    different: Estimate

    def report(self) -> Report:
        rows = [[f"pass@{one.k}", one.share.share()] for one in self.passed] + [["different answers", self.different.share()]]
        title = f"{count(self.attempts)} answers to each of {count(self.sequences)} questions, temperature {number(self.temperature)}"
        table = Section(title, [Table(["", "share [95 %]"], rows, align="lr")])
        return Report(self.run, [self.about(), table, Note(READING)], kicker="attempts")


def evaluate(checkpoint: Checkpoint, model: Decoder, source: DataSource, request: Request) -> Attempts:
    """Generate answers and check them. InputError for data that asks no question, or whose task cannot check an answer."""
    started, task = time.perf_counter(), source.task
    prompts = questions(source, request)
    check_enough(len(prompts), "questions", "raise --sequences")
    if task is None or task.read(prompts[0]).valid is None:
        raise InputError("answers to this data cannot be checked", hint="attempts is for tasks such as countdown and pathstar")
    attempts, temperature = request.attempts or ATTEMPTS, 1.0 if request.temperature is None else request.temperature
    spec = SampleSpec(total=source.context + 1, count=attempts, prompt_z="prior", temperature=temperature, seed=request.seed)
    texts: list[list[str]] = [[] for _ in prompts]
    for number_, sample in enumerate(generate(model, source.tokenizer, prompts, spec)):
        texts[number_ // attempts].append(sample.text)
        request.advance(int((number_ + 1) % attempts == 0))
    right = [sum(bool(task.read(text).valid) for text in answers) for answers in texts]
    return Attempts(
        **request.described("attempts", checkpoint, source, len(prompts), time.perf_counter() - started),
        temperature=temperature,
        attempts=attempts,
        passed=[Passed(k, share([pass_at(k, attempts, c) for c in right], seed=request.seed)) for k in sizes(attempts)],
        different=share([len(set(answers)) / attempts for answers in texts], seed=request.seed),
    )


def questions(source: DataSource, request: Request) -> list[str]:
    """The held-out rows up to their first target. InputError if rows begin with a target: they ask no question."""
    found = []
    for batch in source.held_out(request.split, request.sequences, 256):
        if (batch.targets[:, 0] != IGNORE).any():
            raise InputError(
                "every token of a row counts in this data, so there are no answers to score", hint="--task creativity or likelihood"
            )
        first_B = (batch.targets != IGNORE).argmax(1)
        found += [source.tokenizer.decode(row[: first + 1]) for row, first in zip(batch.inputs, first_B.tolist(), strict=True)]
    return found


def sizes(attempts: int) -> list[int]:
    """The k of pass@k: powers of two up to the number of attempts, and that number."""
    return sorted({*(2 ** np.arange(attempts.bit_length())).tolist(), attempts})


def pass_at(k: int, attempts: int, right: int) -> float:
    """1 − C(n − c, k) / C(n, k)."""
    return 1 - math.comb(attempts - right, k) / math.comb(attempts, k)
