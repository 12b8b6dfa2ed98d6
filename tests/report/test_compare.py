"""Comparisons made up for the tests, in the terminal and on the page."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace

import pytest
from rich.cells import cell_len

from freetf_cli.records.compare import (
    Change,
    CheckResult,
    Comparison,
    Difference,
    GroupChange,
    LatentUse,
    MetricPair,
    Positions,
    SamplePair,
    Setting,
    Side,
    TensorChange,
    TensorShape,
    WeightChanges,
)
from freetf_cli.records.likelihood import Cost, Estimate
from freetf_cli.report import compare_rows
from freetf_cli.report.compare import comparison
from freetf_cli.report.compare_report import comparison_html
from tests.report.helper import FACTS, all_metrics, letters_row
from tests.report.test_report import read

BITS = 65 / math.log(2)


def cost(nats: float) -> Cost:
    return Cost(nats, nats - 0.01, nats + 0.01, nats / math.log(2), None, nats * BITS)


def difference(nats: float, half: float) -> Difference:
    return Difference(nats, nats - half, nats + half, nats / math.log(2), None, nats * BITS, abs(nats) > half)


def pair(a: float, b: float, half: float = 0.005) -> MetricPair:
    return MetricPair(cost(a), cost(b), difference(b - a, half), 100 * (b - a) / abs(a))


def side(name: str, *, free: bool = True) -> Side:
    use = LatentUse(cost(0.09), 0.4, 0.125, Estimate(0.2, 0.18, 0.22)) if free else None
    kind = "free" if free else "baseline"
    folder = f"runs/{name}/checkpoints/step-004000"
    return Side(f"runs/{name}", folder, kind, 4000, "ab" * 32, 88_000_000, 7_160_928, 4.3e7, 51_234.0, 12.5, all_metrics(free), use)


MOVED = Change(0.25, 0.97)
WEIGHTS = WeightChanges(
    only_a=[],
    only_b=[TensorShape("latent.encoder.zeta", None, [64]), TensorShape("latent.post_sampler.weight", None, [256, 64])],
    reshaped=[TensorShape("embedding.weight", [29, 64], [29, 32])],
    all=MOVED,
    groups=[GroupChange(f"blocks.{number}", 9, MOVED, MOVED, Change(None, None)) for number in (0, 10)],
    tensors=[TensorChange("blocks.0.ffn.up.weight", "blocks.0", "ffn", [192, 64], MOVED)],
)
SAMPLES = SamplePair("K>", 0, [letters_row("K", 7, 1), letters_row("K", 9, 2)], [letters_row("K", 30, 3), letters_row("K", 40, 4)])


def result(**changes: object) -> Comparison:
    made = Comparison(
        a=side("old"),
        b=side("new"),
        equal=False,
        recipe=[Setting("latent.kappa", 0.125, None)],
        checks=[CheckResult("nll>+0.5%", "nll", "%", -2.5, True), CheckResult("kl>0", "kl", "bits/token", 0.0144, False)],
        facts=FACTS,
        split="val",
        sequences=256,
        tokens=16_640,
        importance_samples=64,
        seed=0,
        floor_bits=27.412,
        weights=WEIGHTS,
        metrics={
            "nll": pair(0.40, 0.39),
            "elbo": pair(0.41, 0.40),
            "ce_posterior": pair(0.3, 0.31),
            "ce_prior": pair(0.5, 0.5),
            "kl": pair(0.09, 0.1),
        },
        by_position=Positions([math.nan] + [1.0] * 64, [math.nan] + [0.5] * 32 + [1.5] * 32, [0] + [256] * 64),
        samples=SAMPLES,
    )
    return replace(made, **changes)


def mixed() -> Comparison:
    """A baseline as A."""
    alone = {name: MetricPair(None, cost(0.3), None, None) for name in ("ce_posterior", "ce_prior", "kl")}
    return result(a=side("old", free=False), metrics={"nll": pair(0.40, 0.41), "elbo": pair(0.40, 0.42), **alone}, checks=[])


def broken() -> Comparison:
    nothing = Cost(math.nan, math.nan, math.nan, math.nan, None, math.nan)
    apart = Difference(math.nan, math.nan, math.nan, math.nan, None, math.nan, False)
    lost = MetricPair(nothing, cost(0.3), apart, math.nan)
    odd = replace(WEIGHTS, all=Change(math.nan, math.nan), groups=[GroupChange("norm", 1, Change(math.nan, None), None, None)])
    places = Positions([math.nan] * 3, [1.0] * 3, [4] * 3)
    return result(metrics=dict.fromkeys(("nll", "elbo", "ce_posterior", "ce_prior", "kl"), lost), weights=odd, by_position=places)


EQUAL = Comparison(replace(side("old"), latent=None), replace(side("new"), latent=None), True, [Setting("train.lr", 1, 2)], [])
TEXT = result(samples=SamplePair("Once", 3, ["Once upon\na time " * 8, "x\x1b[31m"], ["Once é\n", "…"]))
ODD = {
    "free": result(),
    "mixed": mixed(),
    "broken": broken(),
    "equal": EQUAL,
    "text": TEXT,
    "bare": result(a=replace(side("old"), curve=[]), b=replace(side("new"), curve=[]), samples=None, checks=[], recipe=[]),
    "nothing in common": result(weights=WeightChanges([], [], [], None, [], [])),
}


def shown(made: Comparison, screen, width: int) -> str:
    stream = screen(width)
    comparison(made)
    sys.stdout.flush()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    return "".join(line for line in plain.splitlines(keepends=True) if "hint: " not in line)  # commands to copy are never folded


@pytest.mark.parametrize("width", [20, 40, 80, 100, 140])
@pytest.mark.parametrize("name", ODD)
def test_nothing_is_wider_than_the_terminal(screen, name, width):
    said = shown(ODD[name], screen, width)
    assert max(cell_len(line) for line in said.splitlines()) <= width
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", said)
    assert "\x1b[31m" not in said.replace("\\x1b", "")


@pytest.mark.parametrize("width", [80, 140])
def test_no_number_is_folded_at_80_columns(screen, width):
    said = shown(result(), screen, width)
    for cells in ("nll 37.51 36.57 -0.94 [-1.41, -0.47] -2.50", "0.250 (0.9700)", "7,160,928", "51,234", "✗ kl>0 +0.0144 bits/token"):
        assert cells in re.sub(" +", " ", said)


def test_samples_stand_side_by_side_where_they_fit(screen):
    wide, narrow = (shown(result(), screen, width) for width in (150, 80))
    first = [next(line for line in said.splitlines() if SAMPLES.a[0] in line) for said in (wide, narrow)]
    assert SAMPLES.b[0] in first[0] and SAMPLES.b[0] not in first[1]
    assert SAMPLES.b[0] in narrow


def test_a_pipe_has_no_colour_and_every_character(ascii_pipe):
    written = ascii_pipe()
    comparison(result())
    sys.stdout.flush()
    said = written.getvalue().decode("ascii")
    assert "\x1b" not in said and "..." not in said
    assert all(row in said for row in (*SAMPLES.a, *SAMPLES.b))
    assert "B - A" in said and "||B - A||" in said


@pytest.mark.parametrize(
    ("a", "b", "half", "begins", "mood"),
    [
        (0.40, 0.39, 0.005, "B has the lower bound: B − A of nll is -0.94 [-1.41, -0.47] bits/sequence, -2.50 %", "good"),
        (0.40, 0.41, 0.005, "A has the lower bound: ", "bad"),
        (0.40, 0.41, 0.02, "No difference seen: B − A of nll is +0.94 [-0.94, 2.81] bits/sequence", "open"),
    ],
)
def test_verdicts(a, b, half, begins, mood):
    made = result(metrics={**result().metrics, "nll": pair(a, b, half)})
    said, found = compare_rows.verdict(made)
    assert said.startswith(begins) and found == mood


def test_a_bound_that_loses_to_an_exact_nll_is_told_of():
    said, mood = compare_rows.verdict(mixed())
    assert said.startswith("Undecided: A is below the bound of B") and mood == "open"
    better = replace(mixed(), metrics={**mixed().metrics, "nll": pair(0.41, 0.40)})
    assert compare_rows.verdict(better)[0].startswith("B is better: ")  # a bound below an exact value decides


def test_positions_are_pooled_by_their_targets():
    rows, apart = compare_rows.position_rows(result())
    assert len(rows) == compare_rows.STRETCHES
    assert rows[0] == ["1–8", "1.000", "0.500", "-0.500"] and rows[-1] == ["57–64", "1.000", "1.500", "+0.500"]
    assert apart == [-0.5] * 4 + [0.5] * 4
    uneven = result(by_position=Positions([1.0, 4.0], [1.0, 4.0], [3, 1]))
    assert [row[0] for row in compare_rows.position_rows(uneven)[0]] == ["0", "1"]
    assert compare_rows._mean([1.0, 4.0], [3, 1]) == 1.75


def test_bars_lean_to_the_side_of_the_better_one(screen):
    said = shown(result(), screen, 140)
    by_name = {line.split("  ")[0].strip(): line for line in said.splitlines() if "│" in line}
    assert "█│" in by_name["nll"] and "│█" in by_name["KL"]


def test_missing_tensors_are_counted(screen):
    said = shown(result(), screen, 140)
    assert "2 tensors: encoder 1, post_sampler 1" in said and "embedding.weight 29×64 → 29×32" in said


@pytest.mark.parametrize("name", ODD)
def test_every_page_stands_alone(name):
    page = comparison_html(ODD[name])
    parsed = read(page)
    assert parsed.links == [] and "<script" not in page and "@import" not in page and "url(" not in page
    assert re.findall(r"https?://[^\s\"']*", page.replace("http://www.w3.org/2000/svg", "")) == []
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", parsed.said.split("}")[-1])
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page


def test_the_page_tells_the_result():
    said = read(comparison_html(result())).said
    for words in (
        "old and new",
        "B has the lower bound",
        "-0.94 [-1.41, -0.47]",
        "27.41",
        "FAILS",
        "kl>0",
        "latent.kappa",
        "blocks.10",
        "51,234",
    ):
        assert words in said
    for words in ("blocks.0.ffn.up.weight", "encoder.zeta", "A: CE + KL", "CE prior − CE posterior", SAMPLES.a[0][2:9]):
        assert words in said


def test_the_page_of_a_baseline_and_of_equals():
    said = read(comparison_html(mixed())).said
    assert "not compared" in said and "no Z" in said
    said = read(comparison_html(EQUAL)).said
    assert "Equal" in said and "train.lr" in said and "Held-out cost" not in said.split("}")[-1]


def test_what_comes_from_outside_is_escaped():
    evil = "</title></style><script>alert(1)</script><img src=x onerror=y>\x1b\u202e\ud800"
    named = replace(side("a"), run=evil)
    weights = replace(WEIGHTS, only_a=[TensorShape(evil, [1], None)], groups=[GroupChange(evil, 1, MOVED, None, None)])
    made = result(a=named, recipe=[Setting(evil, evil, evil)], weights=weights, samples=SamplePair(evil, 0, [evil], [evil]))
    page = comparison_html(replace(made, facts=replace(FACTS, name=evil), split=evil))
    assert "<script" not in page and "<img" not in page and "\x1b" not in page and "\u202e" not in page
    page.encode("utf-8")
    read(page)
