"""What `freetf compare` measures on two models. A difference is always B − A."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from freetf_cli.records import Metrics
from freetf_cli.records.likelihood import Cost, Estimate, Unit
from freetf_cli.records.plan import KINDS
from freetf_cli.records.samples import HIDDEN, Spans
from freetf_cli.report.units import MISSING, count, is_number, number, signed, span

METRICS = ("nll", "elbo", "ce_posterior", "ce_prior", "kl")
LATENT_METRICS = ("ce_posterior", "ce_prior", "kl")  # a baseline has none of these


@dataclass(frozen=True)
class LatentUse:
    """How much a Free model's Z is used on held-out sequences.

    kl: of all bits of Z. above_kappa: share of tokens whose KL exceeds κ; kappa: bits per token.
    prior_less_posterior: CE with Z from the prior less CE with Z from the encoder, bits per token, with a paired 95 % interval.
    """

    kl: Cost
    above_kappa: float
    kappa: float
    prior_less_posterior: Estimate


@dataclass(frozen=True)
class Side:
    """One of the two. run: as the user named it. sha256: of the weights.

    checkpoint_bytes: of the whole checkpoint folder. train_tokens_per_second: the median of the run's own record, None without one.
    parameters, train_flops_per_token, evaluation_seconds (of this measurement, on this machine): None where nothing was measured.
    curve: the run's metrics, losses in nats per token; empty where the checkpoint lies in no run.
    """

    run: str
    checkpoint: str
    kind: str
    step: int
    sha256: str
    checkpoint_bytes: int
    parameters: int | None = None
    train_flops_per_token: float | None = None
    train_tokens_per_second: float | None = None
    evaluation_seconds: float | None = None
    curve: list[Metrics] = field(default_factory=list)
    latent: LatentUse | None = None

    def text(self) -> str:
        """`Free Transformer, step 20, 263,489 parameters`."""
        size = f", {count(self.parameters)} parameters" if self.parameters is not None else ""
        return f"{KINDS.get(self.kind, self.kind)}, step {count(self.step)}{size}"


@dataclass(frozen=True)
class TensorShape:
    """A tensor that cannot be compared: its shape in A and in B, None where it is missing."""

    name: str
    a: list[int] | None
    b: list[int] | None


@dataclass(frozen=True)
class Change:
    """How far weights moved: ‖B − A‖ / ‖A‖ and the cosine of A and B.

    relative: 0 where both are zero, None where only A is. cosine: None where either is zero.
    """

    relative: float | None
    cosine: float | None

    def text(self) -> str:
        """`0.123 (0.9921)`: the relative norm of the difference, and the cosine."""
        return f"{number(self.relative, 3)} ({number(self.cosine, 4)})"


@dataclass(frozen=True)
class TensorChange:
    """One tensor that both have in the same shape. group: `blocks.3`, `embedding`, …; part: `attention`, `ffn` or ``."""

    name: str
    group: str
    part: str
    shape: list[int]
    change: Change


@dataclass(frozen=True)
class GroupChange:
    """The tensors of a group together, and those of its attention and its feed-forward part (None where it has none)."""

    group: str
    tensors: int
    all: Change
    attention: Change | None
    ffn: Change | None


@dataclass(frozen=True)
class WeightChanges:
    """Weights of B against those of A; `all` is over every tensor that both have in the same shape (None: there is none)."""

    only_a: list[TensorShape]
    only_b: list[TensorShape]
    reshaped: list[TensorShape]
    all: Change | None
    groups: list[GroupChange]
    tensors: list[TensorChange]


@dataclass(frozen=True)
class Difference:
    """B − A of a cost: its mean and paired 95 % interval in nats per token, the mean in the other units of `Cost` too."""

    nats_per_token: float
    low: float
    high: float
    bits_per_token: float
    bits_per_byte: float | None
    bits_per_sequence: float | None
    excludes_zero: bool

    @property
    def direction(self) -> Literal["lower", "higher", "none"]:
        """Where B lies, if the interval excludes zero."""
        return "none" if not self.excludes_zero else "lower" if self.nats_per_token < 0 else "higher"

    def text(self, unit: Unit) -> str:
        """`-0.12 [-0.20, -0.05]`."""
        value = signed(unit.of(self.nats_per_token), unit.digits)
        return f"{value} {span(unit.of(self.low), unit.of(self.high), unit.digits)}".strip()


@dataclass(frozen=True)
class MetricPair:
    """A metric of both. None where a side is a baseline and has no such metric; then nothing is compared.

    relative_percent: 100 (B − A) / |A|.
    """

    a: Cost | None
    b: Cost | None
    difference: Difference | None
    relative_percent: float | None


@dataclass(frozen=True)
class Positions:
    """CE + KL (a baseline's CE) at each position, bits per token; NaN where no target counts. targets: how many were counted there."""

    a: list[float]
    b: list[float]
    targets: list[int]


@dataclass(frozen=True)
class SamplePair:
    """Sequences of both from the same prompt and seeds; each with a Z of its own from the prior, the prompt's included."""

    prompt: str
    seed: int
    a: list[str]
    b: list[str]
    spans: Spans = field(default_factory=dict, metadata=HIDDEN)


@dataclass(frozen=True)
class CheckResult:
    """One --fail-if. found: B relative to A, in `unit`. holds: the condition, which describes the failure, was not met."""

    expression: str
    metric: str
    unit: Literal["%", "bits/token"]
    found: float
    holds: bool

    def text(self) -> str:
        """`+0.731 %`."""
        return f"{self.found:+.4g} {self.unit}" if is_number(self.found) else MISSING
