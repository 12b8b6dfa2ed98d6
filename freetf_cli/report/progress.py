"""Shows progress on stderr: live on a terminal, now and then a plain line elsewhere, nothing with --quiet."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from freetf_cli.report.blocks import Piece, Status
from freetf_cli.report.console import err, shows_progress, visible
from freetf_cli.report.units import count, duration, number

REFRESH = 0.1  # seconds between redraws: drawing must not slow the work down
PLAIN_LINES = 18  # lines about an unwatched run, beside its first, its last and the held-out ones


@contextmanager
def counter(description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Counts things that are done: `with counter("documents") as advance: … advance()`. Cheap enough to call for each item.

    `advance(0, "training BPE on documents")` changes the description.
    """
    console = err()
    if not (shows_progress() and console.is_interactive):
        yield lambda n=1, description=None: None
        return
    bar = _bar(console, has_total=total is not None)
    task = bar.add_task(visible(description), total=total)
    waiting, drawn = 0, 0.0

    def advance(n: int = 1, description: str | None = None) -> None:
        nonlocal waiting
        waiting += n
        if description:
            bar.update(task, description=visible(description))
        if description or time.monotonic() - drawn >= REFRESH:
            flush()

    def flush() -> None:
        nonlocal waiting, drawn
        bar.advance(task, waiting)
        bar.refresh()
        waiting, drawn = 0, time.monotonic()

    with bar:
        try:
            yield advance
        finally:
            flush()


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{number(speed, 1)}/s" if speed else "", style="cyan")


def _bar(console: Console, *, has_total: bool) -> Progress:
    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False)]
    wide = console.width >= 50
    if has_total:
        columns += [BarColumn(bar_width=None)] * wide + [MofNCompleteColumn()] + [_Rate()] * wide + [TimeRemainingColumn(compact=True)]
    else:
        columns += [TextColumn("{task.completed:,}"), _Rate()]
    return Progress(*columns, console=console, auto_refresh=False, redirect_stdout=_stdout_is_watched(), expand=has_total and wide)


def _stdout_is_watched() -> bool:
    """rich may send stdout through its display on stderr only where both are the terminal, never in a pipe."""
    return sys.stdout.isatty()


class TrainingProgress:
    """The display of a training run: `with TrainingProgress() as display: … display.update(status)`.

    When stderr can no longer be written because its reader is gone, the display ends and the run continues.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet or not shows_progress()
        self._console = err()
        self._live: Live | None = None
        self._now: Status | None = None
        self._held_out: Status | None = None
        self._drawn = 0.0
        self._due = 0

    def __enter__(self) -> TrainingProgress:
        if not self.quiet and self._console.is_interactive:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                get_renderable=self._render,
                redirect_stdout=_stdout_is_watched(),
                vertical_overflow="crop",
            )
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._try(self._live.stop)

    def _try(self, show: Callable[[], None]) -> None:
        try:
            show()
        except OSError:
            self.quiet, self._live = True, None

    def update(self, status: Status) -> None:
        """Take in the status at a logged step or after a held-out evaluation."""
        if status.held_out:
            self._held_out = status
        if not status.held_out or self._now is None:
            self._now = status
        if self._live and time.monotonic() - self._drawn >= REFRESH:
            self._drawn = time.monotonic()
            self._try(self._live.refresh)
        elif not self._live and not self.quiet and self._is_due(status):
            self._try(lambda: self._console.print(Text(visible(plain_line(status))), soft_wrap=True))

    def _is_due(self, status: Status) -> bool:
        if status.held_out:
            return True
        if status.step < self._due and status.step < status.steps:
            return False
        every = max(1, math.ceil(status.steps / PLAIN_LINES))
        self._due = (status.step // every + 1) * every
        return True

    def _render(self) -> Group | Text:
        if self._now is None:
            return Text("starting", style="dim")
        width = self._console.width
        return Group(bar_line(self._now, width), number_line(self._now, self._held_out, width))


def plain_line(status: Status) -> str:
    """A status as one line of text."""
    words = [f"step {count(status.step)}/{count(status.steps)}"]
    words += [f"held out ({status.held_out})"] if status.held_out else []
    words += [piece.text for piece in status.pieces]
    words += [] if status.held_out else [f"{number(status.rate, 1)} steps/s", f"{duration(status.remaining)} left"]
    return " · ".join(words)


def bar_line(status: Status, width: int) -> Table:
    """The steps done, their rate and the time left."""
    narrow, wide = width < 34, width >= 50
    cells: list[Text | ProgressBar] = [Text(f"{count(status.step)}/{count(status.steps)}{'' if narrow else ' steps'}", style="bold")]
    if wide:
        total = max(status.steps, 1)
        cells += [ProgressBar(total=total, completed=status.step), Text(f"{100 * status.step / total:.0f} %")]
    if not narrow:
        cells.append(Text(f"{number(status.rate, 1)}/s", style="cyan"))
    cells.append(Text(f"{duration(status.remaining)}{'' if narrow else ' left'}", style="dim"))
    line = Table.grid(padding=(0, 2, 0, 0), expand=wide, pad_edge=False)
    for cell in cells:
        line.add_column(no_wrap=True, ratio=1 if isinstance(cell, ProgressBar) else None)
    line.add_row(*cells)
    return line


def number_line(status: Status, held_out: Status | None, width: int) -> Text:
    """A run's numbers and the main number of its last evaluation. If the line is too long, numbers of the highest rank are dropped."""
    pieces = list(status.pieces)
    if held_out:
        pieces += [Piece(f"held out: {one.text}", f"val {one.short}", "magenta", 1) for one in held_out.pieces if one.rank == 0]
    line = Text("  ").join(Text(piece.text, style=piece.style) for piece in pieces)
    while line.cell_len > width and pieces:
        line = Text("  ").join(Text(piece.short, style=piece.style) for piece in pieces)
        pieces.remove(max(pieces, key=lambda piece: piece.rank))
    line.truncate(width)
    return line
