"""Records that library functions return. `render` shows them to people, `to_json` to programs.

Frozen, plain (no torch, no numpy), each with its units in its docstring. JSON form: one object with "schema_version".
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 1
LN2 = math.log(2.0)


def to_json(record: Any) -> str:
    """One line of JSON, `schema_version` first. NaN and infinities become null: JSON has none."""
    fields = dataclasses.asdict(record) if dataclasses.is_dataclass(record) and not isinstance(record, type) else dict(record)
    return json.dumps(_finite({"schema_version": SCHEMA_VERSION, **fields}), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


@dataclass(frozen=True)
class DatasetSummary:
    """A data folder just written. documents, tokens and bytes a split; floor in bits per sequence where it is known."""

    folder: str
    task: str | None
    tokenizer: str
    vocabulary: int
    splits: dict[str, dict[str, int]]
    labels: dict[str, int]
    floor_bits: float | None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DataFacts:
    """What a run needs to tell about its data.

    floor_bits: entropy of a row's targets in bits per sequence, the lowest CE that any model can reach; None if unknown.
    targets: counted targets a row (None when it varies).
    bytes_per_token: of the train split's text, None if not text. params: the task's parameters.
    """

    name: str
    task: str | None
    vocabulary: int
    context: int
    targets: int | None
    floor_bits: float | None
    sha256: str
    bytes_per_token: float | None = None
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Metrics:
    """One line of metrics.jsonl. Losses and kappa in nats per token; above_kappa is a share of the tokens.

    A baseline has kl = penalty = above_kappa = kappa = 0. lr and grad_norm are null for held-out lines.
    """

    step: int
    tokens: int
    split: str
    loss: float
    ce: float
    kl: float
    penalty: float
    above_kappa: float
    kappa: float
    lr: float | None
    grad_norm: float | None


@dataclass(frozen=True)
class Progress:
    """Where a training run stands, for a progress display. rate in steps per second, remaining in seconds."""

    metrics: Metrics
    steps: int
    rate: float
    remaining: float
    facts: DataFacts


@dataclass(frozen=True)
class PartCost:
    """One part of a model: parameters, and forward FLOPs per token (a multiply-add is two)."""

    name: str
    parameters: int
    flops: float


@dataclass(frozen=True)
class Plan:
    """What `train --dry-run` predicts, without a device. FLOPs per token for forward and backward. Memory in bytes, of each of the
    processes that train together."""

    recipe: str
    kind: str
    parts: list[PartCost]
    parameters: int
    train_flops_per_token: float
    overhead_compute: float | None  # Free / its baseline - 1, by FLOPs
    overhead_compute_paper: float | None  # one block in L, as the paper counts it
    overhead_parameters: float | None
    memory: dict[str, float]  # parameters, gradients, optimizer, activations, total
    steps: int
    tokens: int
    precision: str
    processes: int = 1


@dataclass(frozen=True)
class Sample:
    """One generated sequence: the record of `sample --json`. text holds prompt and continuation; z one code an input position
    (the prompt's first), None for a baseline."""

    prompt: str
    text: str
    group: int
    index: int
    seed: int
    z: list[int] | None


@dataclass(frozen=True)
class Agreement:
    """How often two sequences agree, in shares of pairs: within a group that shares Z, and across groups.

    Pairs without the factor (an output with no target) are left out; `pairs_*` count what was compared.
    """

    factor: str
    within: float
    across: float
    pairs_within: int
    pairs_across: int

    @property
    def ratio(self) -> float:
        """within / across; infinite when only sequences of a group agree, NaN when none do."""
        if self.across:
            return self.within / self.across
        return math.inf if self.within else math.nan


@dataclass(frozen=True)
class SampleGroups:
    """Samples of one prompt as the paper's Figure 4 shows them: groups of sequences, with or without a shared Z."""

    title: str
    shared: bool
    groups: list[list[str]]
    prompt: str = ""


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint of a run: step, held-out objective in nats per token, whether it is the best, size in bytes."""

    step: int
    path: str
    val_loss: float | None
    best: bool
    bytes: int


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    run: str
    kind: str
    steps: int
    tokens: int
    seconds: float
    val: Metrics | None
    checkpoint: str
    report: str
    facts: DataFacts


@dataclass(frozen=True)
class RunSummary:
    """A run at a glance: what `show` and the HTML report draw."""

    run: str
    kind: str
    status: str
    recipe: dict[str, Any]
    facts: DataFacts
    plan: Plan
    metrics: list[Metrics]
    checkpoints: list[CheckpointInfo]
    samples: list[SampleGroups]
    agreement: list[Agreement]
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """One thing that `doctor` checked: fine, or with the command that fixes it."""

    name: str
    value: str
    ok: bool
    fix: str = ""


@dataclass(frozen=True)
class DemoResult:
    """What the demo made and measured; seconds in all."""

    folder: str
    baseline: TrainResult
    free: TrainResult
    agreement: list[Agreement]
    seconds: float
