"""Probes and likelihoods made up for the tests: nothing here was measured."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from freetf_cli.records import LN2, SampleGroups
from freetf_cli.records.likelihood import BoundPoint, Cost, Estimate, Likelihood
from freetf_cli.records.probe import (
    Budget,
    Decoding,
    FactorInformation,
    HeatMap,
    Intervention,
    ProbeResult,
    Reliance,
    Sweep,
    Transplant,
    Verdict,
)
from tests.report.helper import FACTS, letters_groups

T, H, PLACES, GROUPS = 65, 16, 64, 48


def estimate(value: float, half: float = 0.1) -> Estimate:
    return Estimate(value, value - half, value + half)


def cost(bits: float, half: float = 0.1) -> Cost:
    """Of a letters sequence, from bits per sequence."""
    nats = bits * LN2 / T
    return Cost(nats, nats - half * LN2 / T, nats + half * LN2 / T, bits / T, None, bits)


def likelihood(free: bool = True, **changes: Any) -> Likelihood:
    bound = [BoundPoint(k, cost(bits)) for k, bits in ((1, 29.48), (8, 28.31), (64, 27.76), (512, 27.58))] if free else []
    prior = [BoundPoint(k, cost(bits)) for k, bits in ((1, 61.2), (64, 33.1), (4096, 28.9))] if free else []
    nll = cost(27.58) if free else cost(27.47)
    made = Likelihood(
        *("runs/letters", "likelihood", "free" if free else "baseline", 4000, "val", 4096, 4096 * T, 0, FACTS),
        nll=nll,
        proposal="posterior" if free else "none",
        elbo=cost(29.48) if free else nll,
        ce_posterior=cost(19.87) if free else None,
        kl=cost(9.61) if free else None,
        ce_prior=cost(61.2) if free else None,
        bound=bound,
        prior_bound=prior,
        floor_bits=27.412,
        seconds=83.0,
    )
    return replace(made, **changes)


def text_likelihood() -> Likelihood:
    """Of running text: bits per byte, rows of different lengths, no floor."""

    def of(nats: float) -> Cost:
        return Cost(nats, nats - 0.01, nats + 0.01, nats / LN2, nats / LN2 / 4.2, None)

    bound = [BoundPoint(k, of(nats)) for k, nats in ((1, 3.44), (8, 3.41), (64, 3.39))]
    costs = {"nll": of(3.39), "elbo": of(3.44), "ce_posterior": of(3.31), "kl": of(0.13), "ce_prior": of(3.52)}
    return likelihood(
        **costs, bound=bound, prior_bound=[], floor_bits=None, facts=replace(FACTS, name="shop", task=None, bytes_per_token=4.2)
    )


def budget(kappa: float = 0.5, **changes: Any) -> Budget:
    weights = [math.exp(-i / 9) + 0.08 * (1 + math.sin(i)) for i in range(T)]
    by_position = [9.61 * weight / sum(weights) for weight in weights]
    by_bit = [9.61 / H * (1 + 0.6 * math.sin(2.1 * i)) for i in range(H)]
    made = Budget(
        *(estimate(9.61, 0.19), estimate(19.87, 0.24), estimate(29.48, 0.3), by_position, by_bit, kappa, 0.031, 212, T * H),
        *(7.91, 8.63, 0.98, 1.7, 0.31),
        efficiency=estimate(0.784, 0.02),
        floor=27.412,
        sequences=4096,
        paired=4096,
        targets=float(T),
    )
    return replace(made, **changes)


def reliance() -> Reliance:
    return Reliance(cost(19.87), cost(64.9), cost(61.2), estimate((64.9 - 19.87) * LN2 / T, 0.004))


def factors(position: float = 4.12, noise: float = 3.21) -> list[FactorInformation]:
    size = (GROUPS, 64)
    return [
        FactorInformation("letter", estimate(-0.001, 0.004), estimate(0.0, 0.004), 0.0, 1, *size, 1.0, 1.0, 1.0),
        FactorInformation("position", estimate(position, 0.13), estimate(0.02, 0.03), 5.83, 1, *size, 0.993, 0.621, 0.051),
        FactorInformation("noise", estimate(noise, 0.22), estimate(0.11, 0.14), 21.58, PLACES, *size, 0.993, 0.31, 0.07),
    ]


def heat_maps() -> list[HeatMap]:
    draw = random.Random(0)
    starts = sorted(draw.randrange(57) for _ in range(GROUPS))
    targets = [[max(0.0, min(1.0, 1.1 - abs(place - start - 3.5) / 5)) * 0.9 for place in range(PLACES)] for start in starts]
    noise = [[0.55 if draw.random() < 0.05 else 0.04 * draw.random() for _ in range(PLACES)] for _ in starts]
    return [HeatMap("where the target stands", targets), HeatMap("where the noise stands", noise)]


def intervention(**changes: Any) -> Intervention:
    samples = [letters_groups(False, groups=2), letters_groups(True, groups=2)]
    return replace(Intervention("K>", "from the prior", factors(), estimate(0.982, 0.004), heat_maps(), samples), **changes)


def decoding() -> list[Decoding]:
    rows = [("position", "Z", "linear", 0.581, 3.9), ("position", "Z", "mlp", 0.664, 4.4), ("position", "hidden", "linear", 0.211, 1.2)]
    found = [Decoding(f, s, p, estimate(a, 0.012), 0.021, 0.019, bits, 5.83) for f, s, p, a, bits in rows]
    return [*found, Decoding("noise", "Z", "mlp", estimate(0.951, 0.002), 0.9375, 0.9372, 3.6, 21.58)]


VERDICT = Verdict(
    "global",
    "Z says where the target stands and some of the noise; it says nothing about the letter.",
    [
        "I(Z; position) is 4.12 of 5.83 bits, the shuffled control 0.02",
        "a wrong Z costs 45.0 bits/sequence",
        "KL 9.61 bits/sequence saves 7.54 bits of CE",
    ],
)


def result(**changes: Any) -> ProbeResult:
    made = ProbeResult(
        *("runs/letters-k0.5", 4000, FACTS, H, 0.5, "val", 0),
        budget=budget(),
        reliance=reliance(),
        intervention=intervention(),
        transplant=[
            Transplant("position", estimate(0.587, 0.021), estimate(0.049, 0.009), 1024),
            Transplant("noise", estimate(0.29, 0.02), estimate(0.07, 0.01), 1024),
        ],
        decoding=decoding(),
        verdict=VERDICT,
        notes=["Noise is read at 64 places; places hidden by the target are left out."],
        seconds=171.0,
    )
    return replace(made, **changes)


def sweep(kappas: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)) -> Sweep:
    """Position first, then noise, as κ grows."""
    runs = []
    for kappa in kappas:
        position, noise = 5.6 * (1 - math.exp(-2.6 * kappa)), 20 * (1 - math.exp(-0.35 * kappa))
        kl = estimate(1.15 * (position + noise) + 0.4, 0.2)
        flow = budget(kappa, kl=kl, ce=estimate(27.41 - 0.8 * kl.value, 0.3))
        label = "global" if kappa < 1 else "details" if kappa < 4 else "copying"
        runs.append(
            result(
                run=f"runs/letters-k{kappa:g}",
                kappa=kappa,
                budget=flow,
                intervention=intervention(factors=factors(position, noise), valid=estimate(0.99 - kappa / 20, 0.01)),
                verdict=replace(VERDICT, label=label),
            )
        )
    return Sweep(runs)


# Long enough to be cut by anything that cuts, and with what a model or a file name may hold.
EVIL = "</title></style><script>alert(1)</script><img src=x onerror=y>[red]\x1b[2J\u202e\ud800"


def hostile() -> ProbeResult:
    """EVIL wherever a text can come from outside."""
    named = [replace(one, factor=EVIL) for one in factors()]
    found = Intervention(EVIL, EVIL, named, estimate(0.5, 0.1), [HeatMap(EVIL, [[0.5]])], [SampleGroups(EVIL, True, [[EVIL]])], [EVIL])
    return result(
        run=EVIL,
        split=EVIL,
        facts=replace(FACTS, name=EVIL),
        intervention=found,
        transplant=[Transplant(EVIL, estimate(0.5), estimate(0.1), 3)],
        decoding=[Decoding(EVIL, EVIL, EVIL, estimate(0.5), 0.1, 0.1, 1.0, 2.0)],
        verdict=Verdict(EVIL, EVIL, [EVIL]),
        notes=[EVIL],
    )


NAN = Estimate(math.nan, math.nan, math.nan)
NAN_COST = Cost(math.nan, math.nan, math.nan, math.nan, None, math.nan)


def unknown() -> ProbeResult:
    """NaN wherever a number can fail."""
    nan = math.nan
    flow = Budget(NAN, NAN, NAN, [nan] * 4, [nan] * 2, 0.5, nan, 0, 0, nan, nan, nan, nan, nan, NAN, nan, 0, 0, nan)
    one = FactorInformation("position", NAN, NAN, nan, 1, 2, 3, nan, nan, nan)
    found = intervention(factors=[one], valid=NAN, heat_maps=[HeatMap("map", [[nan, nan], [nan, nan]])], samples=[])
    return result(
        budget=flow,
        reliance=Reliance(NAN_COST, NAN_COST, NAN_COST, NAN),
        intervention=found,
        transplant=[Transplant("position", NAN, NAN, 0)],
        decoding=[Decoding("position", "Z", "linear", NAN, nan, nan, nan, nan)],
    )


ODD_RESULTS = {
    "full": result(),
    "no intervention": result(intervention=None, transplant=[], decoding=[], notes=[]),
    "no factors": result(intervention=intervention(factors=[], heat_maps=[], samples=[], valid=None, readers=["a classifier, 91 % right"])),
    "no floor": result(budget=budget(efficiency=None, floor=None)),
    "empty": result(budget=budget(by_position=[], by_bit=[]), intervention=intervention(heat_maps=[HeatMap("map", [])])),
    "unknown": unknown(),
    "hostile": hostile(),
    "long": result(budget=budget(by_position=[0.1] * 2048), facts=replace(FACTS, name="shop")),
}
