"""The blocks that a report consists of: plain data, without a trace of how a terminal or a page shows them.

A result record builds a `Report` of them; `terminal.show` and `page.html` render it. Numbers arrive as text (see `units`), except in
charts. A role names what a piece of text or a curve is, and so its colour: `target`, `noise`, `ce`, `kl`, `good`, …
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

Span = tuple[str, str]  # text, role
Line = Sequence[Span]
Cell = str | Span
Mood = Literal["good", "warn", "bad", ""]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A part of a report. detail: only the page shows it, the terminal leaves it out."""

    detail: bool = False
    CONTENT: ClassVar[str] = ""

    def __bool__(self) -> bool:
        """False where there is nothing to show: all parts of the field named CONTENT are empty."""
        return any(getattr(self, self.CONTENT)) if self.CONTENT else True


@dataclass(frozen=True)
class Note(Block):
    """A sentence or a paragraph. style: `plain`, `strong`, or `command` for a command line to copy."""

    CONTENT = "text"
    text: str
    style: Literal["plain", "strong", "command"] = "plain"


@dataclass(frozen=True)
class Verdict(Block):
    """The conclusion in one sentence, its label, and the evidence."""

    sentence: str
    mood: Mood = ""
    label: str = ""
    evidence: Sequence[str] = ()


@dataclass(frozen=True)
class Facts(Block):
    """Labels and values, one pair a line. Pairs without a value are left out."""

    CONTENT = "shown"
    pairs: Sequence[tuple[str, str]]

    @property
    def shown(self) -> list[tuple[str, str]]:
        return [(label, value) for label, value in self.pairs if value]


@dataclass(frozen=True)
class Card:
    """One key figure: its name, its value and unit, and the same value in another unit."""

    label: str
    value: str
    unit: str
    other: str = ""
    role: str = ""


@dataclass(frozen=True)
class Cards(Block):
    """The key figures of a report, large on a page."""

    CONTENT = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Table(Block):
    """Rows under column names."""

    CONTENT = "rows"
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""  # the table's name
    align: str = ""  # `l` or `r` for each column, the rest left
    total: bool = False  # the last row sums up the others
    fold: bool = False  # a page shows the caption alone until the reader opens it

    def is_right(self, column: int) -> bool:
        return self.align[column : column + 1] == "r"


@dataclass(frozen=True)
class Series:
    """One curve. NaN in y is a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    role: str = "plain"
    low: Sequence[float] = ()  # low and high: its band, or whiskers at each point
    high: Sequence[float] = ()
    limit: float | None = None  # the most that y can be
    faint: bool = False  # drawn behind the others, and left out on a terminal


@dataclass(frozen=True)
class Reference:
    """A dashed line across a chart at a height, such as the floor."""

    value: float
    label: str
    role: str = "floor"


@dataclass(frozen=True)
class Chart(Block):
    """Curves or bars over a common x axis; y begins at zero. log: the x axis is logarithmic."""

    title: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    kind: Literal["lines", "bars"] = "lines"
    references: Sequence[Reference] = ()
    log: bool = False
    small: bool = False


@dataclass(frozen=True)
class Interval:
    """A named estimate with its interval. control: value and interval of a control. limit: the most that the value can be."""

    name: str
    value: float
    low: float
    high: float
    role: str = "plain"
    control: tuple[float, float, float] | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Intervals(Block):
    """Estimates with their intervals, one per line, on a common axis through zero. key: the meaning of the marks."""

    CONTENT = "rows"
    title: str
    rows: Sequence[Interval]
    key: str = ""


@dataclass(frozen=True)
class HeatMap(Block):
    """Shares of one by row and column. top: the share with the strongest colour, by default the largest.

    rows, columns: their names, written beside the picture with each share in its cell; by default rows and columns are numbered.
    """

    title: str
    shares: Sequence[Sequence[float]]
    x_label: str
    y_label: str
    unit: str
    role: str = "target"
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    top: float | None = None


@dataclass(frozen=True)
class Box:
    """A frame of generated sequences."""

    title: str
    kind: Literal["independent", "shared"]  # its Z: blue or green in the paper's Figure 4
    lines: Sequence[Line]
    fixed: bool = False  # lines are rows of equal length that must stay whole; other text may be wrapped


@dataclass(frozen=True)
class Samples(Block):
    """Boxes of samples under a title and the numbers that were measured on them: one panel of Figure 4."""

    CONTENT = "boxes"
    boxes: Sequence[Box]
    title: str = ""
    measured: Sequence[str] = ()
    beside: bool = False  # on a wide terminal, boxes stand side by side also where their text must be folded


@dataclass(frozen=True)
class Grid(Block):
    """Blocks side by side where there is room. columns: as many columns as fit of a list of short tables."""

    CONTENT = "blocks"
    blocks: Sequence[Block]
    columns: bool = False


@dataclass(frozen=True)
class Section(Block):
    """Blocks under a heading. about: how to read them, on a page."""

    CONTENT = "blocks"
    title: str
    blocks: Sequence[Block]
    about: str = ""


@dataclass(frozen=True)
class Report:
    """A result as a reader sees it."""

    title: str
    blocks: Sequence[Block]
    kicker: str = ""  # what kind of report, above the title
    status: tuple[str, Mood] | None = None
    about: Sequence[str] = ()  # lines below the title
    glossary: Sequence[tuple[str, str]] = ()  # symbols and their meanings
    parts: Sequence[Report] = ()  # reports of their own, one after the other on the page; a terminal leaves them out
    hints: Sequence[str] = ()  # commands to try next, which a terminal shows on stderr


@dataclass(frozen=True)
class Piece:
    """A number of the status line: its text, a short form for narrow terminals, its style. The highest rank is dropped first."""

    text: str
    short: str
    style: str
    rank: int


@dataclass(frozen=True)
class Status:
    """Where a training run stands. rate in steps/s, remaining in seconds; held_out names the split of an evaluation, or is empty."""

    step: int
    steps: int
    rate: float
    remaining: float
    held_out: str
    pieces: Sequence[Piece]
