"""The result of measuring benchmarks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from freetf_cli.records.likelihood import Estimate
from freetf_cli.records.plan import KINDS
from freetf_cli.report.blocks import Block, Facts, HeatMap, Note, Report, Section, Table
from freetf_cli.report.units import MISSING, count, duration, is_number, number, share, signed_share

METRICS = (
    "acc: the answer with the largest log-likelihood is right; acc_char, acc_token: the same after division by the number of characters "
    "or tokens; acc_completion: after subtraction of the answer's log-likelihood after “Answer:” alone. em: exact match; nll: nats of the "
    "last word; perplexity: exp of the mean nll; pass@k: at least one of k answers is right. Scores are means over items [95 % interval]; "
    "chance: the score of guessing among the choices."
)
DRAWN = (
    "An answer's log-likelihood is the logarithm of its mean probability over the draws of Z. se: its Monte Carlo standard error in nats, "
    "averaged over the answers; if it is not small compared with the differences between answers, raise --samples."
)


@dataclass(frozen=True)
class ScoreGrid:
    """A benchmark's score by two properties of its items, such as depth and length. title: what else these items share.

    scores: a row each of `rows`, None where there are no items; chance: of each row.
    """

    title: str
    row: str
    column: str
    rows: list[str]
    columns: list[str]
    scores: list[list[Estimate | None]]
    chance: list[float | None]

    def blocks(self, task: str) -> list[Block]:
        """The table, and on a page the heat map."""
        title = f"{task}: {self.title}" if self.title else task
        rows = [
            [name, *(MISSING if one is None else one.share() for one in scores), share(chance) if is_number(chance) else MISSING]
            for name, scores, chance in zip(self.rows, self.scores, self.chance, strict=True)
        ]
        table = Table(
            [f"{self.row} \\ {self.column}", *self.columns, "chance"], rows, f"{title}, score [95 %]", "l" + "r" * (len(self.columns) + 1)
        )
        shares = [[math.nan if one is None else one.value for one in scores] for scores in self.scores]
        heat = HeatMap(title, shares, self.column, self.row, "right", rows=self.rows, columns=self.columns, top=1.0, detail=True)
        return [table, heat]


@dataclass(frozen=True)
class Score:
    """A benchmark's scores, averaged over its items. metric: the name of the score that the paper reports."""

    task: str
    metric: str
    items: int
    shots: int  # examples before each question
    scores: Mapping[str, Estimate]
    chance: float | None  # the value of `metric` for guessing among the choices; None for free-text answers and lm-eval's own tasks
    truncated: int  # items whose prompt lost its beginning because it exceeded the model's context
    stderr: float | None  # Monte Carlo standard error of a log-likelihood in nats, averaged over answers; None for a baseline
    seconds: float
    grids: Sequence[ScoreGrid] = ()

    def text(self, metric: str) -> str:
        """A score and its interval: `0.312 [0.290, 0.334]`."""
        return self.scores[metric].text(3) if metric in self.scores else MISSING


@dataclass(frozen=True)
class PaperRow:
    """A row of one of the paper's tables: the scores measured here and the paper's. None where a score is missing."""

    benchmark: str
    metric: str
    measured: list[float | None]
    paper: list[float | None]


@dataclass(frozen=True)
class PaperTable:
    """Table 1, 2 or 3 of the paper, with measured columns before the paper's own. about: size and training tokens of the paper's models."""

    number: int
    about: str
    measured: list[str]
    paper: list[str]
    rows: list[PaperRow]

    def section(self) -> Section:
        columns = ["benchmark", "metric", *self.measured, *(f"paper: {name}" for name in self.paper)]
        rows = [[row.benchmark, row.metric, *self._cells(row), *(number(value, 3) for value in row.paper)] for row in self.rows]
        note = (
            f"Columns `paper: …` are the figures of Table {self.number} of the paper (arXiv 2510.17558; {self.about}), not measured here. "
            "Its prompts and numbers of few-shot examples are not known. In brackets: the relative change from the first column."
        )
        title = f"In the form of the paper's Table {self.number}"
        return Section(title, [Table(columns, rows, align="ll" + "r" * (len(columns) - 2)), Note(note)])

    def _cells(self, row: PaperRow) -> list[str]:
        """The measured scores. Each after the first has its relative change from the first, as in the paper."""
        first = row.measured[0]
        cells = [number(first, 3)]
        for value in row.measured[1:]:
            change = f" ({signed_share(value / first - 1)})" if is_number(value) and is_number(first) and first else ""
            cells.append(number(value, 3) + change)
        return cells


@dataclass(frozen=True, kw_only=True)
class Benchmarks:
    """The result of `evaluate` with benchmarks.

    kind: free or baseline; None if the settings beside rescored items are missing, and steps is then empty. steps: those of the averaged
    checkpoints. z, draws: the source of Z and the number of draws; None and 1 for a baseline. limit: the largest number of items per
    benchmark.
    """

    run: str
    kind: str | None
    steps: list[int]
    z: str | None
    draws: int
    seed: int
    limit: int | None
    tasks: list[Score]
    folder: str | None = None  # where the items are
    paper: PaperTable | None = None

    def report(self) -> Report:
        return Report(self.run, self.blocks(), kicker="benchmarks")

    def blocks(self) -> list[Block]:
        drawn = self.z is not None
        steps = f"{'mean over steps' if len(self.steps) > 1 else 'step'} {', '.join(map(count, self.steps))}"
        facts = [("model", f"{KINDS[self.kind]}, {steps}" if self.kind else ""), ("Z", f"{self.z}, {self.draws} draws" if self.z else "")]
        facts += [("seed", str(self.seed)), ("limit", f"the first {count(self.limit)} of each" if self.limit else "")]
        facts += [("took", duration(sum(one.seconds for one in self.tasks))), ("items in", self.folder or "")]
        columns = ["benchmark", "shots", "items", "metric", "score [95 %]", "chance", *["se"] * drawn, "truncated", "other scores"]
        rows = [self._row(one, drawn=drawn) for one in self.tasks]
        table = Table(columns, rows, align="lrrlrr" + "r" * drawn + "rl")
        beside = [] if self.paper is None else [self.paper.section()]
        grids = [block for one in self.tasks for grid in one.grids for block in grid.blocks(one.task)]
        return [Facts(facts), table, Note(METRICS), Note(DRAWN if drawn else ""), *grids, *beside]

    def _row(self, one: Score, *, drawn: bool) -> list[str]:
        others = ", ".join(f"{name} {number(found.value, 3)}" for name, found in one.scores.items() if name != one.metric)
        error = [number(one.stderr, 3)] if drawn else []
        chance = number(one.chance, 3) if is_number(one.chance) else MISSING
        cut = share(one.truncated / one.items, 0) if one.truncated else ""
        return [one.task, str(one.shots), count(one.items), one.metric, one.text(one.metric), chance, *error, cut, others]


@dataclass(frozen=True)
class Rescored:
    """The report of `evaluate --rescore` on several evaluations. Their JSON is a line of each."""

    evaluations: list[Benchmarks]

    def report(self) -> Report:
        sections = [Section(f"{one.run}: {one.folder}", one.blocks()) for one in self.evaluations]
        return Report(f"{len(sections)} evaluations", sections, kicker="benchmarks")
