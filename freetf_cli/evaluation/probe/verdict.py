"""What Z is used for, in words, by rules that can be checked against the numbers (docs/probing.md lists them)."""

from __future__ import annotations

from collections.abc import Sequence

from freetf_cli.records import COPIED, LN2, UNUSED
from freetf_cli.records.intervention import FactorInformation, Intervention
from freetf_cli.records.likelihood import Estimate
from freetf_cli.records.probe import Decoding, LatentAblation, Rate, Verdict

UNUSED_BITS = 0.5  # per sequence: Z is unused if a wrong one costs less, or less than UNUSED of the entropy
ENCODED = 0.1  # Z encodes a factor above this share of its entropy
BROKEN = 0.8  # Z copies the sequence if less than COPIED of the entropy is left as CE, and fewer outputs are valid


def verdict(rate: Rate, ablation: LatentAblation, intervention: Intervention | None, decoding: Sequence[Decoding] = ()) -> Verdict:
    """What Z is used for: nothing (unused), a copy of the sequence (copying), a factor of one site (global), a factor of many sites
    (details), or something else (used)."""
    label, sentence = _label(rate, ablation, intervention)
    return Verdict(label, sentence, _evidence(rate, ablation, intervention, decoding))


def _label(rate: Rate, ablation: LatentAblation, intervention: Intervention | None) -> tuple[str, str]:
    """The verdict's label and sentence."""
    entropy = _entropy(rate, ablation)
    wrong_bits = (ablation.other.bits_per_token - ablation.posterior.bits_per_token) * rate.targets  # another sequence's Z costs so much
    if ablation.other_less_posterior.low <= 0 or wrong_bits < max(UNUSED_BITS, UNUSED * entropy):
        return "unused", "Z is unused: the decoder writes the same whatever Z it is given."
    valid = intervention.valid.value if intervention and intervention.valid else None
    if rate.ce.value < COPIED * entropy and (valid is None or valid < BROKEN):
        broken = "" if valid is None else f", and with Z from the prior only {valid:.0%} of the outputs are valid"
        return "copying", f"Z copies the sequence (collapse): little is left to write{broken}."
    if intervention is None:
        return "used", "Z is used, but no factor of this data is known."
    encoded = [factor for factor in intervention.factors if _is_encoded(factor)]
    one, many = (", ".join(_name(each) for each in encoded if (each.sites > 1) == several) for several in (False, True))
    if one and many:
        return "details", f"Z holds a global factor, {one}, and details too: {many}."
    if many:
        return "details", f"Z holds details: {many}."
    if one:
        return "global", f"Z holds a global factor: {one}."
    return "used", "Z is used, but drawn from the prior it decides none of the known factors."


def _entropy(rate: Rate, ablation: LatentAblation) -> float:
    """Entropy of a sequence in bits where it is known, else its lowest upper bound: ELBO, or CE with a wrong Z or one from the prior."""
    bounds = (rate.nelbo.value, *(cost.bits_per_token * rate.targets for cost in (ablation.prior, ablation.other)))
    return rate.floor or min(bounds)


def _is_encoded(factor: FactorInformation) -> bool:
    """Whether Z encodes more than a tenth of the factor's entropy, and more than the shuffled control."""
    found = factor.information
    return found.value > ENCODED * factor.entropy.value > 0 and found.low > max(0.0, factor.shuffled.high)


def _name(factor: FactorInformation) -> str:
    return f"{factor.factor} ({factor.information.value:.1f} of {factor.entropy.value:.1f} bits)"


def _evidence(rate: Rate, ablation: LatentAblation, intervention: Intervention | None, decoding: Sequence[Decoding]) -> list[str]:
    """The numbers behind the verdict, a line each."""
    wrong = ablation.other_less_posterior
    wrong_bits = Estimate(wrong.value / LN2, wrong.low / LN2, wrong.high / LN2)
    lines = [
        f"KL {rate.kl.text()} bits per sequence: at most {rate.information_high.text()} are information about the sequence, "
        f"at least {rate.mismatch_low.text()} are mismatch with the prior",
        f"another sequence's Z costs {wrong_bits.text(3)} bits per token more",
    ]
    if saving := rate.saving():
        lines.append(f"efficiency: {saving}")
    if intervention is not None:
        lines += [
            f"I(Z; {one.factor}) = {one.information.text()} of {one.entropy.text()} bits; shuffled {one.shuffled.text()}"
            for one in intervention.factors
        ]
        if intervention.valid is not None:
            lines.append(f"{intervention.valid.share()} of the outputs with Z from the prior are valid")
    for name in dict.fromkeys(one.factor for one in decoding):
        best = max((one for one in decoding if one.factor == name and one.source == "Z"), key=lambda one: one.bits.value)
        if best.bits.value > ENCODED * best.entropy:
            lines.append(f"a probe ({best.probe}) reads {best.bits.text()} of {best.entropy:.2f} bits of {name} from Z")
    return lines
