"""The verdict's rules, on numbers made up for each."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from freetf_cli.evaluation.probe.verdict import verdict
from freetf_cli.records.intervention import FactorInformation, Intervention
from freetf_cli.records.likelihood import Cost, Estimate
from freetf_cli.records.probe import Decoding, LatentAblation, Rate


def numbers(ce: float, other: float, floor: float | None = 27.4) -> tuple[Rate, LatentAblation]:
    """CE and the CE with another sequence's Z, in bits per sequence of 65 targets."""
    one = Estimate(10, 9, 11)
    ln2 = math.log(2)

    def cost(bits: float) -> Cost:
        nats = bits * ln2 / 65
        return Cost(nats, nats, nats, bits / 65, None, bits)

    length = Estimate(ce + 30, ce + 30, ce + 30)
    flow = Rate(one, Estimate(ce, ce, ce), length, [], [], 1.0, one, one, 2, one, one, one, one, one, None, floor, 100, 100, 65)
    gain = (other - ce) * ln2 / 65
    return flow, LatentAblation(cost(ce), cost(other), cost(other), Estimate(gain, gain - 1e-4, gain + 1e-4))


def measured(name: str, bits: float, entropy: float, sites: int = 1) -> FactorInformation:
    zero = Estimate(0.0, -0.02, 0.02)
    information, most = Estimate(bits, bits - 0.1, bits + 0.1), Estimate(entropy, entropy, entropy)
    return FactorInformation(name, information, zero, most, sites, 64, 64, 1.0, Estimate(0.5, 0.4, 0.6), 0.1)


@pytest.mark.parametrize(
    ("ce", "other", "position", "noise", "valid", "label"),
    [
        (27.2, 27.5, 0.1, 0.1, 0.99, "unused"),
        (27.2, 27.1, 3.0, 0.1, 0.99, "unused"),
        (22.0, 40.0, 4.0, 0.5, 0.99, "global"),
        (10.0, 60.0, 4.0, 9.0, 0.95, "details"),
        (10.0, 60.0, 0.1, 9.0, 0.95, "details"),
        (1.0, 60.0, 4.0, 9.0, 0.3, "copying"),
        (1.0, 60.0, 4.0, 9.0, 0.95, "details"),
        (22.0, 40.0, 0.1, 0.1, 0.99, "used"),
        (0.0, 60.0, 4.0, 9.0, 0.3, "copying"),
    ],
)
def test_verdicts(ce: float, other: float, position: float, noise: float, valid: float, label: str) -> None:
    factors = [measured("position", position, 5.83), measured("noise", noise, 21.6, 64)]
    found = Intervention("K>", "prior", factors, Estimate(valid, valid, valid), [], [])
    judged = verdict(*numbers(ce, other), found)
    assert judged.label == label
    assert any("shuffled" in line for line in judged.evidence)
    if label == "global":
        assert "position" in judged.sentence and "noise" not in judged.sentence


def test_a_verdict_without_factors() -> None:
    assert verdict(*numbers(300, 420, floor=None), None).label == "used"
    assert verdict(*numbers(3, 420, floor=None), None).label == "copying"
    assert verdict(*numbers(300, 301, floor=None), None).label == "unused"
    assert verdict(*numbers(1000, 12_000, floor=None), None).label == "used"  # a wrong Z confuses


def test_a_verdict_needs_more_than_its_control() -> None:
    rate, ablation = numbers(22.0, 40.0)
    lucky = replace(measured("position", 0.8, 5.83), shuffled=Estimate(0.7, 0.6, 0.9))
    found = Intervention("K>", "prior", [lucky], Estimate(1, 1, 1), [], [])
    assert verdict(rate, ablation, found).label == "used"
    doubtful = replace(ablation, other_less_posterior=Estimate(0.1, -0.01, 0.2))
    assert verdict(rate, doubtful, found).label == "unused"
    read = Decoding("z", "Z", "linear", Estimate(1, 1, 1), 0.5, 0.5, Estimate(0.99, 0.9, 1.0), 1.0)
    assert any(
        "a probe (linear) reads 0.99 [0.90, 1.00] of 1.00 bits of z from Z" in line
        for line in verdict(rate, ablation, found, [read]).evidence
    )


@pytest.mark.parametrize(
    ("efficiency", "line"),
    [
        (Estimate(0.86, 0.8, 0.9), "efficiency: 0.86 [0.80, 0.90] bits of CE saved by each bit of KL"),
        (Estimate(-0.01, -0.05, 0.03), "efficiency: -0.01 [-0.05, 0.03] bits of CE saved by each bit of KL"),
        (Estimate(-4.36, -4.4, -4.3), "efficiency: none: even with posterior Z, CE lies above the floor"),
        (None, None),
    ],
)
def test_efficiency_in_words(efficiency: Estimate | None, line: str | None) -> None:
    rate, ablation = numbers(22.0, 40.0)
    found = verdict(replace(rate, efficiency=efficiency), ablation, None).evidence
    assert next((one for one in found if one.startswith("efficiency")), None) == line
