"""Whose turn a step is: the decoder's, the encoder's, or both (`train.encoder`).

He et al. (Lagging inference networks and posterior collapse, arXiv 1901.05534) find that the posterior lags behind the decoder early in
training. Their Algorithm 1 updates the encoder until the bound stops improving, then the decoder once, and so on; when the mutual
information of Z and held-out data no longer rises, both are updated together. So does `turns = "lagging"`:

- Every update of the encoder counts as a training step, with a batch and a learning rate of its own. A run with turns therefore costs what
  one without them costs, and its decoder is updated in fewer steps. He et al. count the decoder's updates.
- The bound has stopped improving if its mean over WINDOW steps of the turn is not below the mean over the WINDOW before, as in their
  program. A turn has at most `steps` steps; theirs has 100.
- I(S; Z) is measured every `check_every` steps, not after each epoch, on the first ROWS rows of `eval.split` with the same noise each time,
  by their estimator (`evaluation.posterior.information`).

Every step computes all gradients, those of the part whose turn it is not too. Without them (`requires_grad_(False)`) a step of the encoder
would take two thirds of the time, one of the decoder as long as now. But gradients are clipped by the norm of all of them, so that the
updates would be others; and a step would need a compiled graph and a CUDA graph for each turn, where one of each serves all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import Any

from freetf_cli.config.recipe import EncoderConfig

WINDOW = 10  # steps of a turn over which the objective is averaged
ROWS = 512  # held-out rows of a measurement of I(S; Z), which can show ln 512 = 6.2 nats


class Turn(Enum):
    """What a step updates."""

    BOTH = "both"
    DECODER = "decoder"
    ENCODER = "encoder"


@dataclass
class Turns:
    """Where a run is in its turns: the state that, beside the step, decides what the next step updates."""

    config: EncoderConfig
    lags: bool = True  # "lagging": until I(S; Z) has stopped rising
    made: int = 0  # steps of the encoder in this turn
    window: float = 0.0  # sum of the objective since the last multiple of WINDOW
    before: float = math.inf  # the sum over the WINDOW steps before that
    ended: bool = False  # whether the bound has stopped improving in this turn
    best: float = -math.inf  # the largest I(S; Z) so far, nats

    def now(self, step: int) -> Turn:
        """What a step, counted from 0, updates."""
        if self.config.turns == "together" or (self.config.turns == "lagging" and not self.lags):
            return Turn.BOTH
        if self.config.turns == "alternating":
            return Turn.DECODER if step % (self.config.steps + 1) == self.config.steps else Turn.ENCODER
        return Turn.DECODER if self.ended or self.made >= self.config.steps else Turn.ENCODER

    @property
    def reads_objective(self) -> bool:
        """Whether `after` needs the objective of each step, so that the host waits for it."""
        return self.config.turns == "lagging" and self.lags

    def after(self, turn: Turn, objective: float) -> None:
        """Count a step of a lagging encoder. objective: nats per token; a step that was skipped has none that is finite, and counts too."""
        if turn is Turn.DECODER:
            self.made, self.window, self.before, self.ended = 0, 0.0, math.inf, False
            return
        self.made, self.window = self.made + 1, self.window + objective
        if self.made % WINDOW == 0:
            self.ended = not self.window < self.before
            self.before, self.window = self.window, 0.0

    def is_checked(self, step: int) -> bool:
        """Whether I(S; Z) is measured after this many steps."""
        return self.reads_objective and step % self.config.check_every == 0

    def check(self, information: float) -> None:
        """Compare I(S; Z), nats, with the measurements before: the first that is not above all of them ends the turns."""
        self.lags, self.best = information > self.best, max(self.best, information)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, for JSON; nothing where the step alone decides."""
        if self.config.turns != "lagging":
            return {}
        found = {name: value for name, value in asdict(self).items() if name != "config"}
        return {name: value if not isinstance(value, float) or math.isfinite(value) else str(value) for name, value in found.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over `state`; ValueError if a value is missing or of another type."""
        for one in fields(self) if self.config.turns == "lagging" else ():
            if one.name == "config":
                continue
            value, before = state.get(one.name), getattr(self, one.name)
            if isinstance(before, float) and isinstance(value, str | int | float) and not isinstance(value, bool):
                value = float(value)
            if type(value) is not type(before):
                raise ValueError(f"encoder.{one.name} is {value!r}")
            setattr(self, one.name, value)
