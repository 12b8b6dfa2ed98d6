"""How fast a process makes the steps of a run, how long the run still takes, and the memory that it has."""

from __future__ import annotations

import math
import shlex
import time

from freetf_cli.config.recipe import Recipe
from freetf_cli.records import Timing
from freetf_cli.report.units import duration
from freetf_cli.training.growth import Growth, gpu_peak, host_memory

LONG = 2 * 3600.0  # seconds: a run on a CPU that takes longer is warned of
LONG_STEP = 5.0  # seconds: a first step that takes less says little, because libraries initialise in it


class Pace:
    """The times of this process, which begins after the step `start`."""

    def __init__(self, steps: int, start: int, tokens: int) -> None:
        self.steps, self.start = steps, start
        self._began = self._resumed = time.perf_counter()
        self._in_steps = 0.0  # seconds, without evaluations, samples and checkpoints
        self._timed = (0.0, start, tokens)  # those seconds, the step and the tokens at the last `timing`
        self.growth = Growth()

    def seconds(self) -> float:
        """Since this process began, everything included."""
        return time.perf_counter() - self._began

    def resume(self) -> None:
        """Continue to time steps, after an evaluation or a checkpoint."""
        self._resumed = time.perf_counter()

    def step_made(self) -> None:
        now = time.perf_counter()
        self._in_steps, self._resumed = self._in_steps + now - self._resumed, now

    def timing(self, step: int, tokens: int) -> Timing:
        """The times of the steps since the last call, and the memory now."""
        before, first, counted = self._timed
        self._timed = (self._in_steps, step, tokens)
        seconds = self._in_steps - before
        resident, own = host_memory()
        self.growth.add(step, own)
        return Timing(seconds / (step - first), (tokens - counted) / seconds, resident, gpu_peak())

    def rate(self, step: int) -> float:
        """Steps per second, without evaluations, samples and checkpoints; 0 before the first step."""
        return (step - self.start) / self._in_steps if self._in_steps else 0.0

    def remaining(self, step: int) -> float:
        """Seconds that the run still takes, everything included."""
        done = step - self.start
        return (self.steps - step) / done * self.seconds() if done else math.inf

    def is_known(self, step: int) -> bool:
        """Whether enough was timed for `remaining` to be meaningful."""
        rate = self.rate(step)
        return rate > 0 and (step > self.start + 1 or rate < 1 / LONG_STEP)


def too_long(recipe: Recipe, context: int, seconds: float) -> str:
    """The warning of a run that takes `seconds` more on a CPU, with the command that trains the demo's recipe on its data."""
    data = recipe.data
    words = [f"data.dir={data.dir}", f"model.context={context}"] if data.dir else [f"data.task={data.task}"]
    smaller = ["freetf", "train", f"demo-{recipe.kind}", *(part for word in words for part in ("--set", word)), "-o", "RUN"]
    return f"this run takes {duration(seconds)} more on this CPU; a recipe of a size for it: {shlex.join(smaller)}"
