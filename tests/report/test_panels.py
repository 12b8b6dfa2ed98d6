from __future__ import annotations

import math
from dataclasses import replace

import pytest

from freetf_cli.records import SampleGroups
from freetf_cli.report.panels import kappa_title, panels_note, sweep_panels
from tests.report.helper import FACTS
from tests.report.probe_helper import NAN, ODD_RESULTS, intervention, result, sweep


def test_panels_are_in_the_order_of_kappa_and_tell_the_numbers() -> None:
    panels = sweep_panels(sweep((8.0, 1 / 64, 1.0, 0.125)).runs)
    assert [one.title for one in panels] == [
        *("κ = 1/64 bit per token", "κ = 1/8 bit per token", "κ = 1 bit per token", "κ = 8 bits per token"),
    ]
    told = sweep_panels([result()])[0].told
    assert told == [
        "I(Z; position) 4.12 [3.99, 4.25] of 5.83 bits",
        "I(Z; noise) 3.21 [2.99, 3.43] of 21.58 bits",
        "valid 98.2 % [97.8, 98.6]",
    ]
    assert [one.shared for one in panels[0].groups] == [False, True]


def test_other_data_names_all_of_its_factors() -> None:
    other = result(facts=replace(FACTS, task=None), intervention=intervention(valid=None))
    assert [line.split(")")[0] for line in sweep_panels([other])[0].told] == ["I(Z; letter", "I(Z; position", "I(Z; noise"]
    assert "valid" not in panels_note([other]) and "valid" in panels_note([result()])


def test_two_runs_of_one_kappa_have_their_names() -> None:
    titles = [one.title for one in sweep_panels([result(run="runs/b"), result(run="runs/a"), result(run="runs/c", kappa=2.0)])]
    assert titles == ["κ = 1/2 bit per token · a", "κ = 1/2 bit per token · b", "κ = 2 bits per token"]
    titles = [one.title for one in sweep_panels([result(run="y/r"), result(run="x/r")])]
    assert titles == ["κ = 1/2 bit per token · x/r", "κ = 1/2 bit per token · y/r"]


def test_a_run_without_samples_has_no_panel() -> None:
    none = [
        ODD_RESULTS["no intervention"],
        ODD_RESULTS["no factors"],
        result(intervention=intervention(samples=[SampleGroups("", True, [[]])])),
    ]
    assert sweep_panels(none) == [] and panels_note(none[:2]) == ""
    assert len(sweep_panels([*none, result()])) == 1


def test_the_note_counts_the_samples() -> None:
    assert panels_note(sweep().runs).count("48 Zs from the prior, 64 sequences each") == 1


@pytest.mark.parametrize(
    ("kappa", "title"),
    [
        *((0.0, "κ = 0 bits"), (1 / 1024, "κ = 1/1024 bit"), (0.1, "κ = 0.1 bit"), (0.75, "κ = 0.75 bit"), (1.5, "κ = 1.5 bits")),
        *((0.125 * math.log(2) / math.log(2), "κ = 1/8 bit"), (math.nan, "κ = – bit")),
    ],
)
def test_kappa_is_written_as_in_the_paper(kappa: float, title: str) -> None:
    assert kappa_title(kappa) == f"{title} per token"


def test_what_is_not_known_is_a_dash() -> None:
    unknown = replace(ODD_RESULTS["unknown"], intervention=intervention(factors=[], valid=NAN))
    assert sweep_panels([unknown])[0].told == ["valid –"]
