"""Progress on stderr: live on a terminal, a plain line now and then elsewhere, nothing with --quiet."""

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

from freetf_cli import records as results
from freetf_cli.report.console import Verbosity, err, verbosity, visible
from freetf_cli.report.units import count, duration, figure, is_number, scale

REFRESH = 0.1  # seconds between redraws: drawing must not slow the work
PLAIN_LINES = 18  # progress lines of a run that is not watched, beside its first, its last and the held-out ones


@contextmanager
def counter(description: str, total: int | None = None, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Counts things done: `with counter("documents") as advance: … advance()`. Cheap to call once an item."""
    console = err()
    if quiet or verbosity() is Verbosity.QUIET or not console.is_interactive:
        yield lambda n=1: None
        return
    bar = _bar(console, has_total=total is not None)
    task = bar.add_task(visible(description), total=total)
    waiting, drawn = 0, 0.0

    def advance(n: int = 1) -> None:
        nonlocal waiting, drawn
        waiting += n
        if time.monotonic() - drawn >= REFRESH:
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
        return Text(f"{figure(speed, 1)}/s" if speed else "", style="cyan")


def _bar(console: Console, *, has_total: bool) -> Progress:
    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False)]
    wide = console.width >= 50
    if has_total:
        columns += [BarColumn(bar_width=None)] * wide + [MofNCompleteColumn()] + [_Rate()] * wide + [TimeRemainingColumn(compact=True)]
    else:
        columns += [TextColumn("{task.completed:,}"), _Rate()]
    return Progress(*columns, console=console, auto_refresh=False, redirect_stdout=_stdout_is_watched(), expand=has_total and wide)


def _stdout_is_watched() -> bool:
    """rich sends stdout to the display's console, our stderr: only right where both are the terminal, never in a pipe."""
    return sys.stdout.isatty()


class TrainingProgress:
    """How a training run goes: `with TrainingProgress() as display: … display.update(progress)`.

    Where stderr can no longer be written, its reader or terminal being gone, the display ends and the run does not.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet or verbosity() is Verbosity.QUIET
        self._console = err()
        self._live: Live | None = None
        self._now: results.Progress | None = None
        self._held_out: results.Metrics | None = None
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
            self._try(self._live.refresh)
        if self._live:
            self._try(self._live.stop)

    def _try(self, show: Callable[[], None]) -> None:
        try:
            show()
        except OSError:
            self.quiet, self._live = True, None

    def update(self, progress: results.Progress) -> None:
        """Take in a logged step, or a held-out line (a split other than train)."""
        if progress.metrics.split == "train":
            self._now = progress
        else:
            self._held_out = progress.metrics
            self._now = self._now or progress
        if self._live:
            self._draw()
        elif not self.quiet and self._is_due(progress):
            self._try(lambda: self._console.print(Text(plain_line(progress)), soft_wrap=True))

    def log(self, text: str) -> None:
        """A line above the display: a checkpoint written, a resumed run."""
        if not self.quiet:
            self._try(lambda: self._console.print(Text(visible(text)), soft_wrap=True))

    def _draw(self) -> None:
        if self._live and time.monotonic() - self._drawn >= REFRESH:
            self._try(self._live.refresh)
            self._drawn = time.monotonic()

    def _is_due(self, progress: results.Progress) -> bool:
        step = progress.metrics.step
        if progress.metrics.split != "train":
            return True
        if step < self._due and step < progress.steps:
            return False
        every = max(1, math.ceil(progress.steps / PLAIN_LINES))
        self._due = (step // every + 1) * every
        return True

    def _render(self) -> Group | Text:
        if self._now is None:
            return Text("starting", style="dim")
        width = self._console.width
        return Group(bar_line(self._now, width), number_line(self._now, self._held_out, width))


def plain_line(progress: results.Progress) -> str:
    """A logged step as one line of text."""
    line, to = progress.metrics, scale(progress.facts)
    words = [f"step {count(line.step)}/{count(progress.steps)}"]
    if line.split != "train":
        words.append(f"held out ({visible(line.split)})")
    words.append(f"loss {figure(line.loss, 4)} nats/token")
    words.append(f"CE {figure(to.bits(line.ce))}" + (f", KL {figure(to.bits(line.kl))}" if _has_latent(line) else "") + f" {to.unit}")
    if to.floor is not None:
        words.append(f"floor {figure(to.floor)}")
    if line.split == "train":
        words.append(f"{figure(progress.rate, 1)} steps/s")
        words.append(f"{duration(progress.remaining)} left")
    return " · ".join(words)


def bar_line(progress: results.Progress, width: int) -> Table:
    """The steps done, their rate and the time left."""
    done, steps = progress.metrics.step, progress.steps
    narrow = width < 34
    cells: list[Text | ProgressBar] = [Text(f"{count(done)}/{count(steps)}{'' if narrow else ' steps'}", style="bold")]
    if width >= 50:
        cells += [ProgressBar(total=max(steps, 1), completed=done), Text(f"{100 * done / max(steps, 1):.0f} %")]
    if not narrow:
        cells.append(Text(f"{figure(progress.rate, 1)}/s", style="cyan"))
    cells.append(Text(f"{duration(progress.remaining)}{'' if narrow else ' left'}", style="dim"))
    line = Table.grid(padding=(0, 2, 0, 0), expand=width >= 50, pad_edge=False)
    for cell in cells:
        line.add_column(no_wrap=True, ratio=1 if isinstance(cell, ProgressBar) else None)
    line.add_row(*cells)
    return line


def number_line(progress: results.Progress, held_out: results.Metrics | None, width: int) -> Text:
    """The losses; what matters least gives way where the terminal is narrow."""
    for wide in (True, False):
        pieces = _pieces(progress, held_out, wide=wide)
        if len(_join(pieces)) <= width:
            return _join(pieces)
    while len(pieces) > 1 and len(_join(pieces)) > width:
        pieces.remove(max(pieces, key=lambda piece: piece[0]))
    line = _join(pieces)
    line.truncate(width)
    return line


_Piece = tuple[int, str, str]  # importance (0: stays longest), text, style


def _pieces(progress: results.Progress, held_out: results.Metrics | None, *, wide: bool) -> list[_Piece]:
    line, to = progress.metrics, scale(progress.facts)
    kl = f" KL {figure(to.bits(line.kl))}" if _has_latent(line) else ""
    pieces = [
        (3, f"loss {figure(line.loss, 4)} nats/token" if wide else f"loss {figure(line.loss, 3)} nats", ""),
        (0, f"CE {figure(to.bits(line.ce))}{kl} {to.unit if wide else 'bits'}", "bold"),
    ]
    if to.floor is not None:
        pieces.append((2, f"floor {figure(to.floor)}", "green"))
    if _has_latent(line):
        pieces.append((4, f"κ {figure(line.kappa / results.LN2, 3)}{' bits/token' if wide else ''}", "dim"))
    if held_out:
        kl = f"{' KL' if wide else ' +'} {figure(to.bits(held_out.kl))}" if _has_latent(held_out) else ""
        pieces.append((1, f"{'held out: CE' if wide else 'val'} {figure(to.bits(held_out.ce))}{kl}", "magenta"))
    return pieces


def _has_latent(line: results.Metrics) -> bool:
    """A baseline's line has neither KL nor kappa."""
    return not (line.kl == 0 and line.kappa == 0) and is_number(line.kappa)


def _join(pieces: list[_Piece]) -> Text:
    return Text("  ").join(Text(text, style=style) for _, text, style in pieces)
