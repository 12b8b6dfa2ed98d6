from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest

from freetf_cli.records.likelihood import BoundPoint, Likelihood
from freetf_cli.report.likelihood import likelihood as show
from tests.report.helper import Terminal
from tests.report.probe_helper import EVIL, NAN_COST, cost, likelihood, text_likelihood

ODD = {
    "free": likelihood(),
    "baseline": likelihood(False),
    "text": text_likelihood(),
    "no floor": likelihood(floor_bits=None),
    "no bound": likelihood(bound=[], prior_bound=[]),
    "one bound": likelihood(bound=[BoundPoint(1, cost(29.48))], prior_bound=[]),
    "prior": likelihood(proposal="prior"),
    "unknown": likelihood(nll=NAN_COST, elbo=NAN_COST, kl=NAN_COST, bound=[BoundPoint(1, NAN_COST), BoundPoint(8, NAN_COST)]),
    "hostile": likelihood(run=EVIL, split=EVIL),
}


def said(result: Likelihood, capsys: pytest.CaptureFixture[str]) -> str:
    show(result)
    return capsys.readouterr().out


def row(text: str, name: str) -> list[str]:
    """The cells of the table's row that begins with a name."""
    line = next(line for line in text.splitlines() if line.startswith(name + "  "))
    return [cell for cell in line.split("   ") if cell.strip()]


def test_every_cost_has_its_units_and_interval(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(likelihood(), capsys)
    assert all(unit in text for unit in ("nats/token", "bits/token", "bits/sequence", "95 % interval")) and "bits/byte" not in text
    assert [cell.strip() for cell in row(text, "nll, K = 512")[1:]] == ["0.2941", "[0.2930, 0.2952]", "0.4243", "27.58 ± 0.10"]
    assert "29.48 ± 0.10" in row(text, "CE + KL (elbo)")[-1] and "61.20" in row(text, "CE, prior Z")[-1]


def test_the_bound_falls_towards_the_floor(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(likelihood(), capsys)
    bars = [row(text, samples)[-1].count("█") for samples in ("1", "8", "64", "512")]
    assert bars == sorted(bars, reverse=True) and bars[0] == len(row(text, "1")[-1].strip()) and bars[-1] < bars[0] / 4
    assert "+2.07" in text and "From nll to the floor the gap is +0.17 bits/sequence" in text


def test_both_proposals_have_their_table_and_nll_names_the_tighter(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(likelihood(), capsys)
    assert text.index("Z from the posterior, bits/sequence") < text.index("Z from the prior, bits/sequence") < text.index("K: draws of Z")
    assert "here with Z from the posterior" in text and "nll, K = 512" in text and row(text, "4,096")[1].strip() == "28.90"
    prior = said(likelihood(proposal="prior"), capsys)
    assert "nll, K = 4,096" in prior and "here with Z from the prior" in prior


def test_a_bound_below_the_floor_keeps_its_sign(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(likelihood(floor_bits=27.70), capsys)
    assert "the gap is -0.12 bits/sequence" in text


def test_without_a_floor_bars_stand_on_the_last_bound(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(text_likelihood(), capsys)
    assert "bits/byte" in text and "above the nll" in text and "floor" not in text and "1.1645" in text and "+0.0172" in text


def test_a_baseline_has_only_its_nll(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(likelihood(False), capsys)
    assert "27.47" in text and "posterior" not in text and "K =" not in text and "baseline decoder" in text


def test_it_says_what_may_be_compared(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(likelihood(), capsys)
    assert "Comparable with a baseline's CE: nll and CE + KL" in text and "Not CE with the posterior Z" in text
    assert "Comparable with a baseline" not in said(likelihood(False), capsys)


@pytest.mark.parametrize("name", ODD)
def test_pipes_lose_nothing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(ODD[name], capsys)
    assert "nll" in text and "nan" not in text.lower() and "…" not in text and "\x1b" not in text and "None" not in text


@pytest.mark.parametrize("width", [20, 40, 60, 80, 140])
@pytest.mark.parametrize("name", ODD)
def test_terminals_of_any_width(name: str, width: int, screen: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = screen(width)
    show(replace(ODD[name], run="r"))
    lines = [line.replace("\x1b[1m", "").replace("\x1b[2m", "").replace("\x1b[0m", "") for line in stream.getvalue().splitlines()]
    assert "…" not in stream.getvalue() and max(len(line.rstrip()) for line in lines) <= width


def test_ascii_only(ascii_pipe: Callable[[], io.BytesIO]) -> None:
    written = ascii_pipe()
    show(likelihood())
    assert b"27.58 +/- 0.10" in written.getvalue() and b"#." in written.getvalue()
