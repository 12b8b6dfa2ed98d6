"""What Z is used for, in words, by rules that anybody can check against the numbers (docs/probing.md has them)."""

from __future__ import annotations

from collections.abc import Sequence

from freetf_cli.records import LN2
from freetf_cli.records.probe import Decoding, FactorInformation, Intervention, LatentAblation, Rate, Verdict

UNUSED_BITS, UNUSED_SHARE = 0.5, 0.01  # a wrong Z costs less than this a sequence, or than this share of the CE
TOLD = 0.1  # share of a factor's entropy
COPIED, BROKEN = 0.1, 0.8  # CE left, as a share of what there is to tell; valid outputs


def verdict(rate: Rate, ablation: LatentAblation, intervention: Intervention | None, decoding: Sequence[Decoding] = ()) -> Verdict:
    """unused, global, details, copying, or used where no factor is known or none is found."""
    evidence = _evidence(rate, ablation, intervention, decoding)
    prior, other = (cost.bits_per_token * rate.targets for cost in (ablation.prior, ablation.other))
    cost_bits = other - ablation.posterior.bits_per_token * rate.targets
    whole = rate.floor or min(rate.nelbo.value, prior, other)  # what there is to tell: the entropy, or the least bound of it
    if ablation.other_less_posterior.low <= 0 or cost_bits < max(UNUSED_BITS, UNUSED_SHARE * whole):
        return Verdict("unused", "Z is unused: the decoder writes the same whatever Z it is given.", evidence)
    valid = None if intervention is None or intervention.valid is None else intervention.valid.value
    if rate.ce.value < COPIED * whole and (valid is None or valid < BROKEN):
        broken = "" if valid is None else f", and with Z from the prior only {valid:.0%} of the outputs are valid"
        return Verdict("copying", f"Z copies the sequence (collapse): little is left to write{broken}.", evidence)
    told = [] if intervention is None else [factor for factor in intervention.factors if _is_told(factor)]
    if not told:
        known = "no factor of this data is known" if intervention is None else "drawn from the prior it decides none of the known factors"
        return Verdict("used", f"Z is used, but {known}.", evidence)
    one, many = [factor for factor in told if factor.sites == 1], [factor for factor in told if factor.sites > 1]
    if one and many:
        return Verdict("details", f"Z holds a global factor, {_names(one)}, and details too: {_names(many)}.", evidence)
    if many:
        return Verdict("details", f"Z holds details: {_names(many)}.", evidence)
    return Verdict("global", f"Z holds a global factor: {_names(one)}.", evidence)


def _is_told(factor: FactorInformation) -> bool:
    """More than a tenth of its entropy, and more than the shuffled control shows."""
    found = factor.information
    return found.value > TOLD * factor.entropy > 0 and found.low > max(0.0, factor.shuffled.high)


def _names(factors: Sequence[FactorInformation]) -> str:
    return ", ".join(f"{one.factor} ({one.information.value:.1f} of {one.entropy:.1f} bits)" for one in factors)


def _evidence(rate: Rate, ablation: LatentAblation, intervention: Intervention | None, decoding: Sequence[Decoding]) -> list[str]:
    saved = ablation.other_less_posterior
    lines = [
        f"KL {rate.kl.value:.2f} bits a sequence, of which at most {rate.information_high:.2f} tell the sequence "
        f"and at least {rate.mismatch_low:.2f} are mismatch with the prior",
        f"another sequence's Z costs {saved.value / LN2:.3f} bits a token more [{saved.low / LN2:.3f}, {saved.high / LN2:.3f}]",
    ]
    if rate.efficiency is not None:
        lines.append(f"each bit of KL saves {rate.efficiency.value:.2f} bits of CE below the floor")
    if intervention is not None:
        for one in intervention.factors:
            lines.append(
                f"I(Z; {one.factor}) = {one.information.value:.2f} bits [{one.information.low:.2f}, {one.information.high:.2f}] "
                f"of {one.entropy:.2f}; shuffled {one.shuffled.value:.2f}"
            )
        if intervention.valid is not None:
            lines.append(f"{intervention.valid.value:.1%} of the outputs with Z from the prior are valid")
    for name in dict.fromkeys(one.factor for one in decoding):
        best = max((one for one in decoding if one.factor == name and one.source == "Z"), key=lambda one: one.bits)
        if best.bits > TOLD * best.entropy:
            lines.append(f"a probe ({best.probe}) reads {best.bits:.2f} of {best.entropy:.2f} bits of {name} from Z")
    return lines
