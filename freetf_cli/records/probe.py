"""What Z encodes: the records of `probe-latent`. Information and KL are in bits per sequence unless a name says otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field

from freetf_cli.records import DataFacts, SampleGroups
from freetf_cli.records.likelihood import Cost, Estimate


@dataclass(frozen=True)
class Budget:
    """What flows through Z on held-out sequences, with Z from the encoder.

    kl: KL(Q(Z|S) ‖ P), ce and their sum `length`, bits per sequence. by_position: the KL's mean at each input position, bits;
    by_bit: its sum over positions for each of the H bits of a token, bits. above_kappa: share of tokens whose KL exceeds κ; kappa: bits
    per token.
    active_bits: of `all_bits` = T·H bits, those whose posterior probability varies over sequences (variance above 0.01).
    KL = information + mismatch: `information_low` … `information_high` bracket the mutual information I(S; Z) of sequence and Z (from
    `paired` sequences; its lower end cannot pass log2 of their number); `mismatch_low` … `mismatch_high` bracket
    KL(aggregate posterior ‖ P), the part that tells nothing and that sampling from the prior does not know.
    imbalance: the part of the mismatch that single bits show (each bit's mean against 1/2), bits per sequence.
    efficiency: (floor − CE) / KL, bits of CE saved by a bit of KL; None where no floor is known, or hardly any KL flows.
    targets: counted targets a sequence, on average.
    """

    kl: Estimate
    ce: Estimate
    length: Estimate
    by_position: list[float]
    by_bit: list[float]
    kappa: float
    above_kappa: float
    active_bits: int
    all_bits: int
    information_low: float
    information_high: float
    mismatch_low: float
    mismatch_high: float
    imbalance: float
    efficiency: Estimate | None
    floor: float | None
    sequences: int
    paired: int
    targets: float


@dataclass(frozen=True)
class Reliance:
    """CE with Z from the posterior, with the posterior Z of another sequence, and with Z from the prior.

    other_less_posterior: what a wrong Z costs, with a paired interval, nats per token.
    """

    posterior: Cost
    other: Cost
    prior: Cost
    other_less_posterior: Estimate


@dataclass(frozen=True)
class FactorInformation:
    """I(Z; factor) in bits, over generated sequences: `groups` Zs from the prior, `count` sequences each, all from one prompt.

    entropy: of the factor over all outputs, the most that Z could tell. shuffled: the same estimate after the sequences were dealt
    to Zs at random: the control, zero but for chance. sites: how many per-site terms were summed (1: a factor of one value); with more
    than one, the sum is a lower bound. read: share of outputs in which the factor could be read.
    within, between: how often two outputs of one group, and of two groups, agree (noise: common places over all marked places).
    """

    factor: str
    information: Estimate
    shuffled: Estimate
    entropy: float
    sites: int
    groups: int
    count: int
    read: float
    within: float
    between: float


@dataclass(frozen=True)
class HeatMap:
    """shares[group][place]: in which share of a group's outputs a place of the line holds the thing. Groups sorted for the eye."""

    title: str
    shares: list[list[float]]


@dataclass(frozen=True)
class Intervention:
    """Fixed Zs, many sequences each, from the prior. valid: share of outputs that the task could have made (None: cannot be said).

    prompt_z: where Z at the prompt's positions came from. readers: how factors of text were read, with the reader's accuracy.
    """

    prompt: str
    prompt_z: str
    factors: list[FactorInformation]
    valid: Estimate | None
    heat_maps: list[HeatMap]
    samples: list[SampleGroups]
    readers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Transplant:
    """Z inferred from a sequence A generates under another prompt B: how often B's output has A's factor (noise: common places over all).

    chance: the same under the same prompts with the Zs of other sequences. sequences: outputs in which the factor could be read.
    """

    factor: str
    taken: Estimate
    chance: Estimate
    sequences: int


@dataclass(frozen=True)
class Decoding:
    """A probe that predicts a factor from `source` ("Z" or "hidden", the state at the injection layer), on held-out sequences.

    probe: "linear" or "mlp". accuracy: share right (noise: mean over sites). majority: accuracy of always saying the commonest.
    shuffled: accuracy of the same probe trained on shuffled labels. bits: H(factor) less the probe's held-out cross-entropy, at least 0:
    what a reader of this kind can use (noise: sum over sites).
    """

    factor: str
    source: str
    probe: str
    accuracy: Estimate
    majority: float
    shuffled: float
    bits: float
    entropy: float


@dataclass(frozen=True)
class Verdict:
    """What Z is used for, in words. label: unused, global, details, copying, or used (of no known factor)."""

    label: str
    sentence: str
    evidence: list[str]


@dataclass(frozen=True)
class ProbeResult:
    """All that `probe-latent` finds about one run."""

    run: str
    step: int
    facts: DataFacts
    bits: int
    kappa: float
    split: str
    seed: int
    budget: Budget
    reliance: Reliance
    intervention: Intervention | None
    transplant: list[Transplant]
    decoding: list[Decoding]
    verdict: Verdict
    notes: list[str]
    seconds: float


@dataclass(frozen=True)
class Sweep:
    """Several runs side by side, by κ."""

    runs: list[ProbeResult]
