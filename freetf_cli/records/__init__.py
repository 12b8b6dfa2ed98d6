"""Records that library functions return. `to_json` prints them for programs; their `report()` describes them for people.

Frozen and plain (no torch, no numpy), each with its units in its docstring. The JSON form is one object with "schema_version".
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from freetf_cli.records.plan import KINDS
from freetf_cli.report.blocks import Cell, Facts, Note, Piece, Report, Status, Table
from freetf_cli.report.units import MISSING, count, duration, fraction, is_number, number, share

SCHEMA_VERSION = 1
UNUSED, COPIED = 0.01, 0.1  # as shares of nll or entropy: Z is unused if another one adds less to the CE, and copies if the CE is less
LN2 = math.log(2.0)
LEAST_KL = 0.5  # bits per sequence; what a bit of a smaller KL saves is noise


def to_json(record: Any) -> str:
    """One line of JSON, `schema_version` first. NaN and infinities become null: JSON has none."""
    return json.dumps({"schema_version": SCHEMA_VERSION, **_plain(record)}, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """A record as a dict. The metadata of a field may rename it in JSON; with the name "" it is left out."""
    if dataclasses.is_dataclass(value):
        keys = {one.name: one.metadata.get("json", one.name) for one in dataclasses.fields(value)}
        return {key: _plain(getattr(value, name)) for name, key in keys.items() if key}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True)
class DatasetSummary:
    """A data folder that was written. Documents, tokens and bytes of each split; floor in bits per sequence where it is known."""

    folder: str
    task: str | None
    tokenizer: str
    vocabulary: int
    splits: dict[str, dict[str, int]]
    labels: dict[str, int]
    floor_bits: float | None
    notes: list[str] = field(default_factory=list)

    def report(self) -> Report:
        labels = ", ".join(f"{name} {count(size)}" for name, size in self.labels.items())
        facts = [("folder", self.folder), ("task", self.task or "text"), ("tokenizer", self.tokenizer)]
        facts += [("vocabulary", count(self.vocabulary)), ("labels", labels), ("floor", floor_text(self.floor_bits))]
        names = ["documents", "tokens", "bytes"]
        rows = [[split, *(count(sizes[name]) for name in names)] for split, sizes in self.splits.items()]
        return Report("", [Facts(facts), Table(["split", *names], rows, align="lrrr"), *map(Note, self.notes)])


def floor_text(bits: float | None) -> str:
    """`27.41 bits/sequence`; empty for None."""
    return "" if bits is None else f"{number(bits)} bits/sequence"


@dataclass(frozen=True)
class Unit:
    """The unit of bits in which a result is reported."""

    factor: float  # bits in a nat per token
    name: str
    digits: int = 2  # useful decimals
    floor: float | None = None  # in this unit; None if it is unknown or not comparable

    def bits(self, nats: float | None) -> float:
        """Convert nats per token to this unit; NaN for None."""
        return math.nan if nats is None else nats * self.factor

    def nelbo(self, metrics: Metrics) -> float:
        """CE + KL, the negative ELBO: no model brings it below the floor."""
        return self.bits(metrics.ce) + self.bits(metrics.kl)

    def saved(self, metrics: Metrics) -> float | None:
        """Bits of CE below the floor for each bit of KL, 1 at best. None without a floor, or where hardly any KL flows."""
        kl = self.bits(metrics.kl)
        if self.floor is None or not kl > LEAST_KL or not is_number(metrics.ce):
            return None
        return (self.floor - self.bits(metrics.ce)) / kl


def latent_fault(ce: float | None, ce_prior: float | None, nll: float | None, frequencies: float | None) -> str:
    """What is wrong with a Free model's Z, and what to change, in a line; empty if nothing is, or if a cost is unknown.

    Costs of the same held-out targets, all in one unit. ce, ce_prior: CE with Z from the posterior and from the prior. nll: the tightest
    known bound on -log P(S). frequencies: CE of a model that reads nothing and knows each token's frequency.
    """
    if not (is_number(ce) and is_number(ce_prior) and is_number(nll) and is_number(frequencies)):
        return ""
    if ce_prior - ce < UNUSED * nll:
        added = share(fraction(max(0.0, ce_prior - ce), nll))
        return f"Z is unused: a random Z adds {added} of nll to the CE. Train longer, or raise latent.kappa."
    if ce < COPIED * nll:
        return (
            f"Z copies the sequence (collapse): with the encoder's Z, CE is {share(ce / nll)} of nll. Lower latent.kappa or latent.bits; "
            "`freetf probe-latent` finds out whether samples are valid."
        )
    if ce_prior > frequencies:
        return (
            f"Z from the prior is worse than no information: CE is {share(ce_prior / frequencies)} of what the tokens' frequencies alone "
            "cost. Samples will be poor. Lower latent.kappa, or set latent.objective.mismatch."
        )
    return ""


@dataclass(frozen=True)
class DataFacts:
    """What a run needs to know about its data."""

    name: str
    task: str | None
    vocabulary: int
    context: int
    targets: int | None  # that count in a row; None when it varies
    floor_bits: float | None  # entropy of a row's targets in bits per sequence, the lowest CE that any model can reach; None if unknown
    sha256: str
    params: dict[str, Any] = field(default_factory=dict)  # of the task

    @classmethod
    def read(cls, known: Mapping[str, Any]) -> DataFacts:
        """The facts in a manifest or a checkpoint; keys of another version are left out. TypeError if one is missing."""
        return cls(**{one.name: known[one.name] for one in dataclasses.fields(cls) if one.name in known})

    def unit(self, line: Metrics) -> Unit:
        """The unit of a record: bits per byte of text; else bits per sequence where every row has as many targets, else bits per token,
        without a floor."""
        if line.bytes_per_token:
            return Unit(1 / LN2 / line.bytes_per_token, "bits/byte")
        if self.targets:
            return Unit(self.targets / LN2, "bits/sequence", floor=self.floor_bits)
        return Unit(1 / LN2, "bits/token")


@dataclass(frozen=True)
class Metrics:
    """One line of metrics.jsonl. Losses and kappa in nats per token. A baseline has kl = penalty = above_kappa = kappa = 0."""

    step: int
    tokens: int  # targets that training has counted so far; padding and what a row gives are none
    split: str
    loss: float
    ce: float
    kl: float
    penalty: float
    above_kappa: float  # share of the tokens, or of the Zs that tokens share
    kappa: float
    lr: float | None  # null for held-out lines, as grad_norm
    grad_norm: float | None
    bytes_per_token: float | None = None  # of text, in the targets of this line; null for other data
    nll: float | None = None  # this and the next two: of a Free model at the end of training, for the targets of this line; else null
    ce_prior: float | None = None
    frequencies: float | None = None

    def fault(self) -> str:
        """What is wrong with Z; empty if nothing is known to be."""
        return latent_fault(self.ce, self.ce_prior, self.nll, self.frequencies)

    def best_bound(self, unit: Unit) -> str:
        """The tightest known bound on -log P(S) of a Free model, in words. nll has an error of sampling, and may be the larger one."""
        nelbo = unit.nelbo(self)
        if not is_number(self.nll):
            return f"CE + KL {number(nelbo)} {unit.name}, a loose one; `freetf evaluate` finds a tighter one"
        nll = unit.bits(self.nll)
        name, best, other = ("CE + KL", nelbo, "nll is no tighter") if nelbo < nll else ("nll", nll, "CE + KL is a loose one")
        if number(nll) == number(nelbo):
            other = f"{'nll' if nelbo < nll else 'CE + KL'} is as tight"
        side = "above" if unit.floor is None or best >= unit.floor else "below"
        error = " (an error of sampling)" if side == "below" else ""
        above = "" if unit.floor is None else f", {number(abs(best - unit.floor))} {side} the floor{error}"
        return f"{name} {number(best)} {unit.name}{above}; {other}"

    def has_latent(self) -> bool:
        return not (self.kl == 0 and self.kappa == 0) and is_number(self.kappa)


@dataclass(frozen=True)
class Timing:
    """What timing.jsonl records: times of the steps since the last record, without evaluations, samples and checkpoints, and memory."""

    seconds: float  # mean time of a step
    tokens_per_second: float  # targets that counted
    rss: int  # bytes of the process in host memory
    gpu_peak: int | None  # the most bytes of tensors on its GPU so far; null on a CPU


@dataclass(frozen=True)
class Progress:
    """Where a training run stands. rate in steps per second, as in timing.jsonl; remaining in seconds, everything included."""

    metrics: Metrics
    steps: int
    rate: float
    remaining: float
    facts: DataFacts

    def status(self) -> Status:
        """This state as text for a progress display."""
        line, unit = self.metrics, self.facts.unit(self.metrics)
        held_out, latent = "" if line.split == "train" else line.split, line.has_latent()
        ce, kl = number(unit.bits(line.ce)), number(unit.bits(line.kl))
        costs, brief = (f"CE {ce} KL {kl}", f"{ce} + {kl}") if latent else (f"CE {ce}", ce)
        loss = Piece(f"loss {number(line.loss, 4)} nats/token", f"loss {number(line.loss, 3)} nats", "", 3)
        pieces = [loss, Piece(f"{costs} {unit.name}", brief if held_out else f"{costs} bits", "bold", 0)]
        if unit.floor is not None:
            pieces.append(Piece(f"floor {number(unit.floor)}", f"floor {number(unit.floor)}", "green", 2))
        if latent:
            kappa = f"κ {number(line.kappa / LN2, 3)}"
            pieces.append(Piece(f"{kappa} bits/token", kappa, "dim", 4))
        return Status(line.step, self.steps, self.rate, self.remaining, held_out, pieces)


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
    """A finished run. tokens: targets that counted. seconds: of this process, which began after step `start`, evaluations included."""

    run: str
    kind: str
    steps: int
    tokens: int
    seconds: float
    val: Metrics | None
    checkpoint: str
    page: str = field(metadata={"json": "report"})
    facts: DataFacts
    start: int = 0
    skipped: int = 0  # steps of this process that changed no weight, because their loss or gradient was not finite

    def report(self) -> Report:
        held_out, best, made = "", "", self.steps - self.start
        since = f" since step {count(self.start)}" if self.start else ""
        spent = f"{duration(self.seconds)}{since}" if made else "in an earlier call"
        if self.val:
            unit = self.facts.unit(self.val)
            latent = f" + KL {number(unit.bits(self.val.kl))} = {number(unit.nelbo(self.val))}" if self.kind == "free" else ""
            held_out = f"CE {number(unit.bits(self.val.ce))}{latent} {unit.name} (loss {number(self.val.loss, 4)} nats/token)"
            if self.kind == "free":
                best = self.val.best_bound(unit)
        skipped = f"{count(self.skipped)} of {count(made)} steps; {count(made - self.skipped)} changed the weights"
        facts = [
            ("model", KINDS[self.kind]),
            ("trained", f"{count(self.steps)} steps, {count(self.tokens)} tokens, {spent}"),
            ("skipped", skipped if self.skipped else ""),
            ("held out", held_out),
            ("best bound", best),
            ("floor", floor_text(self.facts.floor_bits)),
            ("checkpoint", self.checkpoint),
            ("report", self.page),
        ]
        run = shlex.quote(self.run)
        options = "--z shared --groups 3 --count 8" if self.kind == "free" else "--count 8"
        return Report(
            self.run,
            [Facts(facts), Note(self.val.fault() if self.val else "", "strong")],
            hints=[f"freetf show {run}", f"freetf sample {run} {options}"],
        )


@dataclass(frozen=True)
class Finding:
    """One check of `doctor`. fix: the command that helps if it is not ok. optional: freetf is complete without it."""

    name: str
    value: str
    ok: bool
    fix: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Findings:
    """All checks of `doctor` on this machine."""

    findings: list[Finding]

    def report(self) -> Report:
        rows: list[list[Cell]] = [[self._mark(one), one.name, one.value, (one.fix, "command")] for one in self.findings]
        return Report("", [Table(["", "what", "found", "to fix it"], rows)])

    @staticmethod
    def _mark(one: Finding) -> Cell:
        return ("✓", "good") if one.ok else MISSING if one.optional else ("✗", "bad")
