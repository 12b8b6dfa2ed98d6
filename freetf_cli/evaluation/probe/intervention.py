"""What Z decides, measured by setting it: the intervention of the paper's Figure 4, and the latent swap (docs/probing.md).

Shapes: M Zs (groups), N sequences under each, S sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from freetf_cli.data.rows import Factors
from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.evaluation import Stage
from freetf_cli.evaluation.posterior import latent_of
from freetf_cli.evaluation.probe.agreement import pair_sums
from freetf_cli.evaluation.probe.information import mutual_information, shuffled
from freetf_cli.evaluation.probe.rate import Posterior
from freetf_cli.evaluation.statistics import LEAST, Floats, share
from freetf_cli.generation.sampling import SampleSpec, generate
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.intervention import FactorInformation, HeatMap, Intervention
from freetf_cli.records.likelihood import Estimate
from freetf_cli.records.probe import LatentSwap
from freetf_cli.records.samples import SampleGroups
from freetf_cli.report.units import fraction
from freetf_cli.tasks.factors import UNREAD, Factor, Ints, Reading, RowReader, encode

SHOWN_GROUPS, SHOWN_COUNT = 3, 6  # boxes of Figure 4, and sequences in each
MAPPED_GROUPS = 48  # Zs in a heat map
PROMPTED_GROUPS, PROMPTED_COUNT = 64, 32  # Zs and sequences of the smaller intervention over all prompts


@dataclass(frozen=True)
class Generator:
    """Generates sequences and reads their factors."""

    model: Decoder
    tokenizer: Tokenizer
    reader: RowReader
    stage: Stage

    def texts(self, name: str, prompts: Sequence[str], spec: SampleSpec) -> list[str]:
        """The sequences of `generate`. name: of this part of the measurement, for the display of progress."""
        found = []
        with self.stage(name, len(prompts) * spec.groups * spec.count) as advance:
            for sample in generate(self.model, self.tokenizer, prompts, spec):
                found.append(sample.text)
                advance(1)
        return found

    def factors(self, name: str, prompts: Sequence[str], zs: Sequence[Sequence[int]], spec: SampleSpec) -> dict[str, Ints]:
        """The factors that are read from one sequence for each prompt and Z, as numbers [N] or marks [N, S]."""
        texts = self.texts(name, prompts, replace(spec, z="independent", groups=1, count=1, given_z=zs))
        return self.encode(self.reader.read_all(texts))

    def encode(self, readings: Sequence[Reading]) -> dict[str, Ints]:
        return encode(self.reader.factors, [reading.factors for reading in readings])


def intervene(generator: Generator, prompt: str, spec: SampleSpec) -> Intervention:
    """Generate spec.count sequences under each of spec.groups Zs, all from one prompt, and measure what the Zs decide.

    InputError with too few groups for an interval.
    """
    spec, reader = replace(spec, z="shared", prompt_z="prior"), generator.reader
    texts = generator.texts("sampling", [prompt], spec)
    readings = reader.read_all(texts)
    found, shape = generator.encode(readings), (spec.groups, spec.count)
    values = {factor: found[factor.name].reshape(*shape, *found[factor.name].shape[1:]) for factor in reader.factors}
    values |= {factor: _by_prompt(generator, factor, spec) for factor in reader.factors if factor.given}
    factors, unread = [], []
    with generator.stage("estimating information", len(values)) as advance:
        for factor, seen in values.items():
            if len(factor.values) > 1 and (seen.reshape(len(seen), -1) != UNREAD).any(1).sum() >= LEAST:
                factors.append(_information(factor, seen, spec.seed))
            elif len(factor.values) > 1:
                outputs = (seen.reshape(seen.shape[0] * seen.shape[1], -1) != UNREAD).any(1)
                unread.append(f"{factor.name}: read from {outputs.sum():,} of {len(outputs):,} outputs, too few")
            advance(1)
    groups = [texts[start : start + spec.count] for start in range(0, len(texts), spec.count)]
    return Intervention(
        prompt=prompt,
        prompt_z="prior",
        factors=factors,
        valid=_valid(readings, shape, spec.seed),
        heat_maps=_heat_maps(reader, groups[:MAPPED_GROUPS]),
        samples=_shown(generator, prompt, spec, groups),
        readers=[*reader.notes, *unread],
    )


def _information(factor: Factor, values: Ints, seed: int) -> FactorInformation:
    """values: [M, N], or [M, N, S] for a factor with sites."""
    found = mutual_information(values, len(factor.values), seed)
    control = mutual_information(shuffled(values, seed), len(factor.values), seed)
    same_M, pairs_M, other, outside = pair_sums(list(values))
    return FactorInformation(
        factor=factor.name,
        information=found.information,
        shuffled=control.information,
        entropy=found.entropy,
        sites=factor.sites,
        groups=values.shape[0],
        count=values.shape[1],
        read=float((values != UNREAD).mean()),
        within=share(same_M, pairs_M, seed=seed),
        across=fraction(other, outside),
        given=factor.given,
    )


def _by_prompt(generator: Generator, factor: Factor, spec: SampleSpec) -> Ints:
    """Values [M, N] of a factor that the prompt gives, each Z under prompts drawn at random: does Z override the prompt?"""
    rng, prompts = np.random.default_rng(spec.seed), generator.reader.prompts
    groups, count = min(spec.groups, PROMPTED_GROUPS), min(spec.count, PROMPTED_COUNT)
    drawn = [prompts[number] for number in rng.integers(len(prompts), size=groups * count)]
    latent = latent_of(generator.model)
    zs = [z for _ in range(groups) for z in [latent.prior(rng, spec.total - 1).tolist()] * count]
    return generator.factors("sampling, other prompts", drawn, zs, spec)[factor.name].reshape(groups, count)


def _valid(readings: Sequence[Reading], shape: tuple[int, int], seed: int) -> Estimate | None:
    """The share of valid outputs, with an interval over Zs; None where validity means nothing."""
    if any(reading.valid is None for reading in readings):
        return None
    return share(np.array([reading.valid for reading in readings], np.float64).reshape(shape).mean(1), seed=seed)


def _heat_maps(reader: RowReader, groups: Sequence[Sequence[str]]) -> list[HeatMap]:
    """For each Z the share of its outputs with a mark at each place; Zs in the order of the first map's mean place."""
    marks = [[reader.marks(text) for text in group] for group in groups]
    shares = [np.array([[one[title] for one in group] for group in marks]).mean(1) for title in marks[0][0]]
    if not shares:
        return []
    order = np.argsort((shares[0] * np.arange(shares[0].shape[1])).sum(1) / np.maximum(shares[0].sum(1), 1e-9), kind="stable")
    return [HeatMap(title, share[order].round(4).tolist()) for title, share in zip(marks[0][0], shares, strict=True)]


def _shown(generator: Generator, prompt: str, spec: SampleSpec, groups: Sequence[Sequence[str]]) -> list[SampleGroups]:
    """The boxes of Figure 4: samples with independent Zs (blue), and the first groups that share a Z (green)."""
    blue = replace(spec, z="independent", groups=1, count=min(SHOWN_COUNT, spec.count), seed=spec.seed + 1)
    independent = generator.texts("sampling, independent Z", [prompt], blue)
    green = [list(group[:SHOWN_COUNT]) for group in groups[:SHOWN_GROUPS]]
    spans = {text: found for text in chain(independent, *green) if (found := generator.reader.spans(text))}
    return [SampleGroups("", False, [independent], prompt, spans), SampleGroups("", True, green, prompt, spans)]


def latent_swap(generator: Generator, posterior: Posterior, rows: Sequence[Factors], spec: SampleSpec) -> list[LatentSwap]:
    """Generate with the Zs of spec.count rows under prompts of other rows. The control has the same prompts and the Zs of yet other rows.

    Empty for fewer than 20 rows with known factors; a factor that is read from fewer than 20 outputs is left out.
    """
    reader, known = generator.reader, np.array([number for number, row in enumerate(rows) if row], np.int64)
    if len(known) < LEAST:
        return []
    known = np.random.default_rng(spec.seed).permutation(known)[: spec.count]
    prompts = [reader.other_prompt(rows[number]) for number in known]
    own, other = (
        generator.factors(name, prompts, posterior.z[donors].tolist(), spec)
        for name, donors in (("swapping Z", known), ("swapping Z, control", posterior.other[known]))
    )
    truth, documents = encode(reader.factors, [rows[number] for number in known]), posterior.documents[known]
    results = []
    for factor in reader.factors:
        matches = [_matches(factor, truth[factor.name], found[factor.name]) for found in (own, other)]
        if not factor.given and min(read.sum() for _, read in matches) >= LEAST:
            taken, chance = (share(same, read, clusters=documents, seed=spec.seed) for same, read in matches)
            results.append(LatentSwap(factor.name, taken, chance, int(matches[0][1].sum())))
    return results


def _matches(factor: Factor, truth: Ints, found: Ints) -> tuple[Floats, Floats]:
    """How far each output agrees with the factor's true value (for marks: |A ∩ B| / |A ∪ B|), and whether both can be read, [N] each."""
    if factor.sites == 1:
        read = (found != UNREAD) & (truth != UNREAD)
        return ((found == truth) & read).astype(np.float64), read.astype(np.float64)
    common, union = (truth & found).sum(1), (truth | found).sum(1)
    return common / np.maximum(union, 1), (union > 0).astype(np.float64)
