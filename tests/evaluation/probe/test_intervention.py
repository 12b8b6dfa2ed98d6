"""Interventions, latent swaps and probes on models whose Z is known by construction."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from freetf_cli.config.recipe import DataConfig
from freetf_cli.data.batches import DataSource, open_data
from freetf_cli.evaluation.probe.decoding import HiddenFeatures, decode, pooled, probe
from freetf_cli.evaluation.probe.factors import FactorReader, NaiveBayes, factor_reader, letters_reader
from freetf_cli.evaluation.probe.information import UNREAD
from freetf_cli.evaluation.probe.intervention import intervene, latent_swap
from freetf_cli.evaluation.probe.rate import Posterior
from freetf_cli.evaluation.probe.verdict import verdict
from freetf_cli.generation.sampling import SampleSpec
from freetf_cli.records.likelihood import Cost, Estimate
from freetf_cli.records.probe import Decoding, FactorInformation, Intervention, LatentAblation, Rate
from tests.evaluation.probe.planted import PlantedLetters

GROUPS, COUNT = 48, 12


@contextlib.contextmanager
def silent(name: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda n: None


@pytest.fixture(scope="module")
def letters() -> tuple[DataSource, FactorReader]:
    source = open_data(DataConfig(task="letters"), context=None, seed=0)
    return source, letters_reader(source.facts.params)


def intervened(decides: str, letters: tuple[DataSource, FactorReader]) -> Intervention:
    source, reader = letters
    spec = SampleSpec(total=66, groups=GROUPS, count=COUNT)
    return intervene(PlantedLetters(decides), source.tokenizer, reader, "K>", spec, "letters", silent)


@pytest.fixture(scope="module")
def planted(letters: tuple[DataSource, FactorReader]) -> dict[str, Intervention]:
    return {decides: intervened(decides, letters) for decides in ("position", "nothing", "all")}


def factor(found: Intervention, name: str) -> FactorInformation:
    return next(one for one in found.factors if one.factor == name)


def test_a_z_that_is_the_position_gives_5_83_bits(planted: dict[str, Intervention]) -> None:
    position = factor(planted["position"], "position")
    assert position.information.low <= math.log2(57) <= position.information.high + 1e-9
    assert position.information.value == pytest.approx(math.log2(57), abs=0.3)
    assert position.within > 0.97 and position.between < 0.1
    noise = factor(planted["position"], "noise").information
    assert noise.low <= 0 <= noise.high and abs(noise.value) < 0.25


def test_a_z_that_is_ignored_gives_none(planted: dict[str, Intervention]) -> None:
    for one in planted["nothing"].factors:
        assert one.information.low <= 1e-3 and one.information.high >= 0, one.factor
        assert abs(one.information.value) < 0.2
    position = factor(planted["nothing"], "position")
    assert position.entropy == pytest.approx(math.log2(57), abs=0.15)
    assert position.within == pytest.approx(position.between, abs=0.02)


def test_a_z_that_is_everything_gives_position_and_noise(planted: dict[str, Intervention]) -> None:
    noise = factor(planted["all"], "noise")
    assert noise.sites == 64
    assert noise.information.low <= 21.587 <= noise.information.high
    assert noise.information.value == pytest.approx(noise.entropy, rel=0.02)
    assert factor(planted["all"], "position").information.value > 5


@pytest.mark.parametrize("decides", ["position", "nothing", "all"])
def test_the_shuffled_control_is_zero_and_outputs_are_valid(planted: dict[str, Intervention], decides: str) -> None:
    found = planted[decides]
    for one in found.factors:
        assert one.shuffled.low <= 1e-3 and one.shuffled.high >= 0, one.factor
        assert (one.groups, one.count) == (GROUPS, COUNT)
    assert found.valid is not None and found.valid.value > 0.99


def test_z_does_not_override_the_prompts_letter(planted: dict[str, Intervention]) -> None:
    letter = factor(planted["position"], "letter")
    assert letter.entropy == pytest.approx(math.log2(26), abs=0.05)
    assert abs(letter.information.value) < 0.1


def test_heat_maps_and_boxes_show_the_same_groups(planted: dict[str, Intervention]) -> None:
    found = planted["position"]
    where, noise = (np.array(one.shares) for one in found.heat_maps)
    assert where.shape == noise.shape == (GROUPS, 64)
    assert where.max(1).min() > 0.6  # every Z has its place
    peaks = where.argmax(1)
    assert (np.diff(peaks) >= -8).all() and peaks[-1] > peaks[0]
    blue, green = found.samples
    assert not blue.shared and green.shared and len(green.groups) == 3
    starts = [{row.index("K", 2) for row in group if "K" in row[2:]} for group in green.groups]
    assert all(max(one) - min(one) <= 4 for one in starts)


def posterior_of(codes_of: Callable[[dict[str, object]], int], source: DataSource, count: int) -> Posterior:
    """A sure posterior: each row's first code is `codes_of(factors)`, the others are from the prior."""
    rows = source.held_out_factors("val", count)
    z = torch.from_numpy(np.random.default_rng(0).integers(0, 65536, (count, 65)))
    z[:, 0] = torch.tensor([codes_of(row) for row in rows])
    zeros = np.zeros(count)
    hidden = torch.randn(count, 40, generator=torch.Generator().manual_seed(0))
    own = np.arange(count)
    return Posterior(torch.zeros(count, 65, 16), torch.ones(count, 65), z, np.roll(own, 1), zeros, zeros, zeros, zeros + 65, own, hidden)


def starting(row: dict[str, object]) -> int:
    """A code that PlantedLetters reads as the row's own position."""
    return -(-(int(str(row["position"])) << 16) // 57)


def test_a_swapped_position_is_taken_over(letters: tuple[DataSource, FactorReader]) -> None:
    source, reader = letters
    rows = source.held_out_factors("val", 40)
    posterior = posterior_of(starting, source, 40)
    spec = SampleSpec(total=66, count=40)
    for decides, taken in (("position", 0.97), ("nothing", 0.0)):
        found = latent_swap(PlantedLetters(decides), source.tokenizer, reader, posterior, rows, spec, silent)
        position, noise = found
        assert [one.factor for one in found] == ["position", "noise"] and position.sequences == 40
        assert position.taken.value == pytest.approx(taken, abs=0.1)
        assert position.chance.value < 0.15
        assert noise.taken.value == pytest.approx(noise.chance.value, abs=0.06)
    assert latent_swap(PlantedLetters("position"), source.tokenizer, reader, posterior, rows[:19], spec, silent) == []


def test_probes_read_what_is_there_and_not_what_is_not(letters: tuple[DataSource, FactorReader]) -> None:
    source, reader = letters
    rows = source.held_out_factors("val", 1200)
    posterior = posterior_of(lambda row: int(str(row["position"])) // 8, source, 1200)  # Z has the eighth that the target starts in
    found = {(one.factor, one.source, one.probe): one for one in decode(posterior, reader, rows, 16, 0, silent)}
    assert len(found) == 3 * 2 * 2
    for kind in ("linear", "mlp"):
        told = found["position", "Z", kind]
        assert (1.8 if kind == "linear" else 2.4) < told.bits < 3.0  # the eighths have 2.8 bits; 720 sequences do not teach all
        assert told.accuracy.value > 0.08 > told.shuffled
        for name in ("letter", "noise"):
            assert found[name, "Z", kind].bits < 0.3
        assert found["position", "hidden", kind].bits < 0.2  # noise here: the ceiling is what it is given
    few = source.held_out_factors("val", 79)
    assert decode(posterior_of(starting, source, 79), reader, few, 16, 0, silent) == []


def test_a_probe_leaves_unread_labels_out_and_finds_a_plane() -> None:
    x = torch.randn(900, 10, generator=torch.Generator().manual_seed(0))
    labels = (x[:, 0] > 0).long().numpy()
    labels[::3] = UNREAD
    found = probe(x, labels, 2, "linear")
    assert found.right.mean() > 0.93 and len(found.right) == 150
    assert found.entropy - found.cross_entropy > 0.7
    xor = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long().numpy()
    assert probe(x, xor, 2, "linear").right.mean() < 0.65 < 0.8 < probe(x, xor, 2, "mlp").right.mean()
    marks = (x[:, :3] > 0).long().numpy()
    assert probe(x, marks, 2, "linear").entropy == pytest.approx(3, abs=0.05)


def test_features_keep_positions_or_average_segments() -> None:
    assert pooled(torch.arange(12.0).view(1, 6, 2)).tolist() == [list(range(12))]
    long = pooled(torch.ones(2, 640, 3))
    assert long.shape == (2, 64 * 3) and bool((long == 1).all())
    x = torch.zeros(8, 5, 32)
    x[..., 3] = torch.randn(8, 5)
    features = HiddenFeatures()(x).view(8, 5, 16)
    assert torch.allclose(features[..., -1].abs(), (x[..., 3] - x[..., 3].mean()).abs(), atol=1e-5)  # its one direction


def test_reading_letters_agrees_with_the_truth(letters: tuple[DataSource, FactorReader]) -> None:
    source, reader = letters
    rows = source.held_out_factors("val", 300)
    texts = [source.tokenizer.decode(np.append(row, 0)) for batch in source.held_out("val", 300, 300) for row in batch.inputs]
    texts = [text[:-1] + "_" for text in texts]  # the last token of a row is no input
    truth, read = reader.truth(rows), reader.read(texts)
    assert (truth["letter"] == read["letter"]).mean() > 0.98
    assert (truth["position"] == read["position"]).mean() > 0.97
    assert (truth["noise"][:, :63] == read["noise"][:, :63]).all()
    assert reader.read(["K>" + "_" * 64])["position"].tolist() == [UNREAD]


def test_reading_sentiment_from_words() -> None:
    texts = ["good fine film", "a fine good one", "bad dull film", "a dull bad one"] * 5
    reader = NaiveBayes(texts, np.array([1, 1, 0, 0] * 5), 2)
    assert reader.read(["good!", "so dull", "unknown", ""]).tolist() == [1, 0, UNREAD, UNREAD]
    source = open_data(DataConfig(task="reviews"), context=None, seed=0)
    found = factor_reader(source, "val", 200)
    assert found is not None and {one.name for one in found.factors} == {"genre", "sentiment"}
    truth = found.truth(source.held_out_factors("val", 200))["sentiment"]
    texts = [example.text for example in _examples(source, 200)]
    assert (found.read(texts)["sentiment"] == truth).mean() > 0.97
    assert found.notes[0] == "sentiment (negative, positive) is read from words by naive Bayes, 100.0% right on 200 held-out sequences"


def _examples(source: DataSource, count: int):  # type: ignore[no-untyped-def]
    from freetf_cli.data.rows import HELD_OUT_SEED, stream_seed
    from freetf_cli.tasks import make_task

    return make_task("reviews", {}).examples(stream_seed(HELD_OUT_SEED, "val"), 0, count)


def test_coins_are_read_and_other_tasks_have_no_factor() -> None:
    reader = factor_reader(open_data(DataConfig(task="coins"), context=None, seed=0), "val", 20)
    assert reader is not None
    assert reader.read(["0001", "0111", "101"])["z"].tolist() == [0, 1, UNREAD]  # the first is given
    assert factor_reader(open_data(DataConfig(task="blocks"), context=None, seed=0), "val", 20) is None


# --- the verdict's rules -----------------------------------------------------------------------------------------------


def numbers(ce: float, other: float, floor: float | None = 27.4) -> tuple[Rate, LatentAblation]:
    """CE and the CE with another sequence's Z, bits a sequence of 65 targets."""
    one = Estimate(10, 9, 11)
    ln2 = math.log(2)

    def cost(bits: float) -> Cost:
        nats = bits * ln2 / 65
        return Cost(nats, nats, nats, bits / 65, None, bits)

    length = Estimate(ce + 30, ce + 30, ce + 30)
    flow = Rate(one, Estimate(ce, ce, ce), length, [], [], 1.0, 0.1, 1, 2, 1.0, 2.0, 8.0, 9.0, 0.1, None, floor, 100, 100, 65)
    gain = (other - ce) * ln2 / 65
    return flow, LatentAblation(cost(ce), cost(other), cost(other), Estimate(gain, gain - 1e-4, gain + 1e-4))


def told(name: str, bits: float, entropy: float, sites: int = 1) -> FactorInformation:
    zero = Estimate(0.0, -0.02, 0.02)
    return FactorInformation(name, Estimate(bits, bits - 0.1, bits + 0.1), zero, entropy, sites, 64, 64, 1.0, 0.5, 0.1)


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
    factors = [told("position", position, 5.83), told("noise", noise, 21.6, 64)]
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
    lucky = replace(told("position", 0.8, 5.83), shuffled=Estimate(0.7, 0.6, 0.9))
    found = Intervention("K>", "prior", [lucky], Estimate(1, 1, 1), [], [])
    assert verdict(rate, ablation, found).label == "used"
    doubtful = replace(ablation, other_less_posterior=Estimate(0.1, -0.01, 0.2))
    assert verdict(rate, doubtful, found).label == "unused"
    read = Decoding("z", "Z", "linear", Estimate(1, 1, 1), 0.5, 0.5, 0.99, 1.0)
    assert any("a probe (linear) reads 0.99 of 1.00 bits of z from Z" in line for line in verdict(rate, ablation, found, [read]).evidence)


def test_swaps_go_under_another_prompt(letters: tuple[DataSource, FactorReader], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another letter than the row's own, the other coin, nothing for text; and the control has the same prompts with other Zs."""
    source, reader = letters
    rows = source.held_out_factors("val", 30)
    posterior = posterior_of(starting, source, 30)
    asked: list[tuple[list[str], list[list[int]]]] = []

    def noted(model: object, tokenizer: object, prompts: list[str], spec: SampleSpec, advance: object) -> list[str]:
        assert spec.given_z is not None
        asked.append((prompts, [list(z) for z in spec.given_z]))
        return ["K>" + "_" * 64 for _ in prompts]

    monkeypatch.setattr("freetf_cli.evaluation.probe.intervention._texts", noted)
    latent_swap(PlantedLetters("position"), source.tokenizer, reader, posterior, rows, SampleSpec(total=66, count=30), silent)
    (prompts, own), (same, other) = asked
    order = [own.index(z) for z in posterior.z.tolist()]
    assert prompts == same and sorted(order) == list(range(30))
    assert all(prompts[place][0] != row["letter"] for place, row in zip(order, rows, strict=True))
    assert other == posterior.z[posterior.other[[posterior.z.tolist().index(z) for z in own]]].tolist() and other != own
    coins = open_data(DataConfig(task="coins"), context=None, seed=0)
    known, asked[:] = coins.held_out_factors("val", 30), []
    reader = factor_reader(coins, "val", 30)
    assert reader is not None
    latent_swap(PlantedLetters("position"), coins.tokenizer, reader, posterior, known, SampleSpec(total=64, count=30), silent)
    order = [asked[0][1].index(z) for z in posterior.z.tolist()]
    assert all(asked[0][0][place] == str(1 - row["z"]) for place, row in zip(order, known, strict=True))


def test_documents_stay_together_and_their_order_does_not_matter() -> None:
    from freetf_cli.evaluation.probe.decoding import _dealt

    documents = np.repeat(np.arange(20), 5)
    dealt = _dealt(range(100), documents, 0)
    pieces = documents[dealt]
    assert (np.diff(np.flatnonzero(np.diff(pieces)), prepend=-1) == 5).all()  # a piece of five after the other
    assert list(pieces[::5]) != sorted(pieces[::5]) and sorted(dealt) == list(range(100))
