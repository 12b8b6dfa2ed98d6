"""Interventions and latent swaps on models whose Z is known by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest

from freetf_cli.config.recipe import DataConfig
from freetf_cli.data.batches import DataSource, open_data
from freetf_cli.evaluation.probe.factors import factor_reader
from freetf_cli.evaluation.probe.intervention import Generator, intervene, latent_swap
from freetf_cli.generation.sampling import SampleSpec
from freetf_cli.records.intervention import FactorInformation, Intervention
from freetf_cli.tasks import make_task
from freetf_cli.tasks.base import Task
from tests.evaluation.probe.planted import PlantedLetters
from tests.evaluation.probe.posteriors import posterior_of, silent, starting

GROUPS, COUNT = 48, 12


@pytest.fixture(scope="module")
def letters() -> tuple[DataSource, Task]:
    source = open_data(DataConfig(task="letters"), context=None, seed=0)
    return source, make_task("letters", source.facts.params)


def intervened(decides: str, letters: tuple[DataSource, Task]) -> Intervention:
    source, reader = letters
    spec = SampleSpec(total=66, groups=GROUPS, count=COUNT)
    return intervene(Generator(PlantedLetters(decides), source.tokenizer, reader, silent), "K>", spec)


@pytest.fixture(scope="module")
def planted(letters: tuple[DataSource, Task]) -> dict[str, Intervention]:
    return {decides: intervened(decides, letters) for decides in ("position", "nothing", "all")}


def factor(found: Intervention, name: str) -> FactorInformation:
    return next(one for one in found.factors if one.factor == name)


def test_a_z_that_is_the_position_gives_5_83_bits(planted: dict[str, Intervention]) -> None:
    position = factor(planted["position"], "position")
    assert position.information.low <= math.log2(57) <= position.information.high + 1e-9
    assert position.information.value == pytest.approx(math.log2(57), abs=0.3)
    assert position.within.low > 0.95 and position.across < 0.1
    noise = factor(planted["position"], "noise").information
    assert noise.low <= 0 <= noise.high and abs(noise.value) < 0.25


def test_a_z_that_is_ignored_gives_none(planted: dict[str, Intervention]) -> None:
    for one in planted["nothing"].factors:
        assert one.information.low <= 1e-3 and one.information.high >= 0, one.factor
        assert abs(one.information.value) < 0.2
    position = factor(planted["nothing"], "position")
    assert position.entropy.low <= math.log2(57) <= position.entropy.high + 1e-9 and position.entropy.value > math.log2(57) - 0.15
    assert position.within.value == pytest.approx(position.across, abs=0.02)


def test_a_z_that_is_everything_gives_position_and_noise(planted: dict[str, Intervention]) -> None:
    noise = factor(planted["all"], "noise")
    assert noise.sites == 64
    assert noise.information.low <= 21.587 <= noise.information.high
    assert noise.information.value == pytest.approx(noise.entropy.value, rel=0.02)
    assert factor(planted["all"], "position").information.value > 5


@pytest.mark.parametrize("decides", ["position", "nothing", "all"])
def test_the_shuffled_control_is_zero_and_outputs_are_valid(planted: dict[str, Intervention], decides: str) -> None:
    found = planted[decides]
    for one in found.factors:
        assert one.shuffled.low <= 1e-3 and one.shuffled.high >= 0, one.factor
        assert (one.groups, one.count) == (GROUPS, COUNT)
    assert found.valid is not None and found.valid.value > 0.99


def test_a_factor_that_no_output_shows_is_left_out(letters: tuple[DataSource, Task], monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained model may write no letter at all: the other factors are measured all the same."""
    source, reader = letters
    generator = Generator(PlantedLetters("nothing"), source.tokenizer, reader, silent)
    monkeypatch.setattr(Generator, "texts", lambda self, name, prompts, spec: ["K>" + "_" * 64] * (len(prompts) * spec.groups * spec.count))
    found = intervene(generator, "K>", SampleSpec(total=66, groups=24, count=2))
    assert "position: read from 0 of 48 outputs, too few" in found.readers
    assert [one.factor for one in found.factors] == ["noise"]
    noise = found.factors[0]
    assert noise.information.value == noise.entropy.value == 0 and math.isnan(noise.within.value) and math.isnan(noise.across)
    assert found.valid is not None and (found.valid.value, found.valid.low) == (0, 0) and found.valid.high > 0.1


def test_z_does_not_override_the_prompts_letter(planted: dict[str, Intervention]) -> None:
    letter = factor(planted["position"], "letter")
    assert letter.entropy.value == pytest.approx(math.log2(26), abs=0.05)
    assert abs(letter.information.value) < 0.1
    assert [one.factor for one in planted["position"].factors if one.given] == ["letter"]


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


def test_the_position_of_a_swapped_latent_is_taken_over(letters: tuple[DataSource, Task]) -> None:
    source, reader = letters
    rows = source.held_out_factors("val", 40)
    posterior = posterior_of(starting, source, 40)
    spec = SampleSpec(total=66, count=40)
    for decides, taken in (("position", 0.97), ("nothing", 0.0)):
        found = latent_swap(Generator(PlantedLetters(decides), source.tokenizer, reader, silent), posterior, rows, spec)
        position, noise = found
        assert [one.factor for one in found] == ["position", "noise"] and position.sequences == 40
        assert position.taken.value == pytest.approx(taken, abs=0.1)
        assert position.chance.value < 0.15
        assert noise.taken.value == pytest.approx(noise.chance.value, abs=0.06)
    assert latent_swap(Generator(PlantedLetters("position"), source.tokenizer, reader, silent), posterior, rows[:19], spec) == []


def test_swapped_latents_go_under_another_prompt(letters: tuple[DataSource, Task], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another letter than the row's own, the other coin, nothing for text; and the control has the same prompts with other Zs."""
    source, reader = letters
    rows = source.held_out_factors("val", 30)
    posterior = posterior_of(starting, source, 30)
    asked: list[tuple[list[str], list[list[int]]]] = []

    def noted(self: Generator, name: str, prompts: list[str], spec: SampleSpec) -> list[str]:
        assert spec.given_z is not None
        asked.append((prompts, [list(z) for z in spec.given_z]))
        return ["K>" + "_" * 64 for _ in prompts]

    monkeypatch.setattr(Generator, "texts", noted)
    generator = Generator(PlantedLetters("position"), source.tokenizer, reader, silent)
    latent_swap(generator, posterior, rows, SampleSpec(total=66, count=30))
    (prompts, own), (same, other) = asked
    order = [own.index(z) for z in posterior.z.tolist()]
    assert prompts == same and sorted(order) == list(range(30))
    assert all(prompts[place][0] != row["letter"] for place, row in zip(order, rows, strict=True))
    assert other == posterior.z[posterior.other[[posterior.z.tolist().index(z) for z in own]]].tolist() and other != own
    coins = open_data(DataConfig(task="coins"), context=None, seed=0)
    known, asked[:] = coins.held_out_factors("val", 30), []
    reader = factor_reader(coins, "val", 30)
    assert reader is not None
    latent_swap(Generator(PlantedLetters("position"), coins.tokenizer, reader, silent), posterior, known, SampleSpec(total=66, count=30))
    assert set(asked[0][0]) == {""}, "a row of coins has no prompt that could tell another coin"
