"""creativity: of generated rows of an open-ended task, the share that is coherent, not in the training set and distinct (arXiv 2504.15266),
beside that of a perfect sampler. A Free model draws Z from the prior. --sequences: rows to generate, 1,000, three times over.

The measures of N generated rows, as shares of N (coverage: of all objects):

    coherence   rows that are valid
    memorised   valid rows whose object the training set has
    distinct    different objects of the valid rows
    creativity  different objects of the valid rows that the training set does not have (algorithmic creativity)
    coverage    different objects of the valid rows, as a share of all objects that there are

An object is what `Task.identity` returns: the same parts in another order are one object. A perfect sampler draws one of all M objects,
all equally likely, K of them in the training set. With D = M (1 − (1 − 1/M)^N), the expected number of different ones, its expectations are
1, K/M, D/N, (1 − K/M) D/N and D/M. No top-k or top-p truncates the distribution of the tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass, fields

from freetf_cli.data.batches import DataSource
from freetf_cli.data.rows import TRAIN
from freetf_cli.errors import InputError
from freetf_cli.evaluation.metrics import Request
from freetf_cli.evaluation.probe.factors import row_texts
from freetf_cli.evaluation.statistics import repeated
from freetf_cli.generation.sampling import SampleSpec, generate
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.likelihood import Estimate, Evaluation
from freetf_cli.report.blocks import Note, Report, Section, Table
from freetf_cli.report.units import count, number, share
from freetf_cli.runs.checkpoint import Checkpoint
from freetf_cli.tasks.base import Task

SEQUENCES = 1000  # rows of a repetition
OPTIONS = ("--temperature",)
REPETITIONS = 3
READING = (
    "coherence: valid rows; memorised: valid rows whose object is in the training set; distinct: different objects of valid rows; "
    "creativity: different objects of valid rows that are not in the training set; all as shares of the generated rows. coverage: "
    "different objects, as a share of all. perfect sampler: the expectation of a model that draws every object equally often. "
    "[95 % interval] over repetitions of the sampling, not over training runs."
)


@dataclass(frozen=True)
class Shares:
    """The measures of one sample of rows, or of a perfect sampler."""

    creativity: float
    coherence: float
    memorised: float
    distinct: float
    coverage: float


@dataclass(frozen=True)
class Compared:
    """A measure with its interval over repetitions, and its expectation for a perfect sampler."""

    measured: Estimate
    perfect: float


@dataclass(frozen=True, kw_only=True)
class Creativity(Evaluation):
    """The measures of the module's head. sequences: rows of each repetition; objects: M; training_objects: K."""

    temperature: float
    repetitions: int
    objects: int
    training_objects: int
    creativity: Compared
    coherence: Compared
    memorised: Compared
    distinct: Compared
    coverage: Compared

    def report(self) -> Report:
        measures: dict[str, Compared] = {one.name: getattr(self, one.name) for one in fields(Shares)}
        rows = [[name, one.measured.share(), share(one.perfect)] for name, one in measures.items()]
        table = Table(["", "measured [95 %]", "perfect sampler"], rows, align="lrr")
        known = f"{count(self.objects)} objects, {count(self.training_objects)} of them in the training set"
        title = f"{self.repetitions} × {count(self.sequences)} generated rows, temperature {number(self.temperature)}; {known}"
        return Report(self.run, [self.about(), Section(title, [table]), Note(READING)], kicker="creativity")


def evaluate(checkpoint: Checkpoint, model: Decoder, source: DataSource, request: Request) -> Creativity:
    """Generate rows and measure them. InputError unless the data is an open-ended task with a finite training set."""
    started, task = time.perf_counter(), source.task
    if task is None or task.objects is None:
        raise InputError("creativity is defined for open-ended tasks, such as siblings", hint="freetf evaluate RUN --task likelihood")
    known = training_objects(source, task)
    rows, temperature = request.sequences, 1.0 if request.temperature is None else request.temperature
    spec = SampleSpec(total=source.context + 1, prompt_z="prior", temperature=temperature, seed=request.seed)
    texts = []
    for sample in generate(model, source.tokenizer, (task.prompt(request.seed, i) for i in range(REPETITIONS * rows)), spec):
        texts.append(sample.text)
        request.advance(int(len(texts) % REPETITIONS == 0))
    found = [measure(task, texts[start : start + rows], known) for start in range(0, len(texts), rows)]
    best = perfect(task.objects, len(known), rows)

    def compared(name: str) -> Compared:
        return Compared(_within_one(repeated([getattr(one, name) for one in found])), getattr(best, name))

    return Creativity(
        **request.described("creativity", checkpoint, source, rows, time.perf_counter() - started),
        temperature=temperature,
        repetitions=REPETITIONS,
        objects=task.objects,
        training_objects=len(known),
        creativity=compared("creativity"),
        coherence=compared("coherence"),
        memorised=compared("memorised"),
        distinct=compared("distinct"),
        coverage=compared("coverage"),
    )


def _within_one(found: Estimate) -> Estimate:
    """The estimate of a share with its interval clipped to [0, 1]: Student's interval can extend beyond."""
    return Estimate(found.value, max(0.0, found.low), min(1.0, found.high))


def training_objects(source: DataSource, task: Task) -> Set[Hashable]:
    """The objects that the training rows show. InputError if the training set is not finite."""
    size = source.rows.size(TRAIN)
    if size is None:
        raise InputError("creativity needs a finite training set to compare with", hint="train with data.train_rows=10000")
    return {task.identity(text) for text in row_texts(source, TRAIN, size)}


def measure(task: Task, texts: Sequence[str], known: Set[Hashable]) -> Shares:
    """The measures of generated rows. known: the objects of the training set."""
    coherent = [found for text in texts if (found := task.identity(text)) is not None]
    different, rows = set(coherent), len(texts)
    return Shares(
        creativity=len(different - known) / rows,
        coherence=len(coherent) / rows,
        memorised=sum(found in known for found in coherent) / rows,
        distinct=len(different) / rows,
        coverage=len(different) / (task.objects or math.inf),
    )


def perfect(objects: int, training: int, rows: int) -> Shares:
    """The expected measures of a sampler that draws uniformly from `objects` objects, of which the training set has `training`."""
    unseen, covered = 1 - training / objects, 1.0 if objects == 1 else -math.expm1(rows * math.log1p(-1 / objects))
    different = covered * objects / rows
    return Shares(creativity=unseen * different, coherence=1.0, memorised=1 - unseen, distinct=different, coverage=covered)
