"""What reports say, whoever renders them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from pydantic import TypeAdapter

from freetf_cli.records import latent_fault, to_json
from freetf_cli.records.intervention import colours, sizes_text
from freetf_cli.records.likelihood import Estimate, Likelihood
from freetf_cli.records.paired import STRETCHES, MetricPair, Positions
from freetf_cli.records.probe_sweep import Sweep, information_chart, kappa_title, panels_note, sweep_panels
from freetf_cli.records.run import RunSummary
from freetf_cli.records.samples import Agreement, SampleGroups, line_spans
from freetf_cli.report.units import duration, number, short, signed, times
from freetf_cli.tasks import spans_by_text
from tests.report.helper import FACTS, TRAINED, comparison, cost, likelihood, metrics, mixed, pair, probe, side, summary, sweep

Said = Callable[[object], str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """The text of a record's report in a pipe."""
    from freetf_cli.report.terminal import show

    def text(record: object) -> str:
        show(record.report())  # type: ignore[attr-defined]
        return capsys.readouterr().out

    return text


def test_numbers_as_text() -> None:
    assert (number(-0.001), number(1234.5), number(None), number(math.nan), signed(0.126)) == ("0.00", "1,234", "–", "–", "+0.13")
    assert (short(1.51e9), duration(3723)) == ("1.51 G", "1:02:03")
    assert Estimate(1.0, math.nan, math.nan).text() == "1.00" and Estimate(0.5, 0.4, 0.6).share() == "50.0 % [40.0, 60.0]"


@pytest.mark.parametrize(
    ("within", "across", "pairs", "said"),
    [
        (0.5, 0.25, (400, 40), "2.0 ×"),
        (0.5, 0.25, (39, 400), "too few"),  # 9.75 agreeing pairs by chance
        (0.5, 0.25, (400, 39), "too few"),
        (0.62, 0.0, (1045, 108), "too few"),  # not ∞ ×
        (0.0, 0.0, (4000, 4000), "too few"),
        (0.0, 0.5, (400, 400), "0.0 ×"),
        (math.nan, math.nan, (0, 0), "–"),
    ],
)
def test_a_ratio_of_agreements_needs_ten_events(within: float, across: float, pairs: tuple[int, int], said: str) -> None:
    assert Agreement("position", within, across, *pairs).ratio() == said
    assert times(within, across, across * min(pairs)) == said


def test_json_leaves_out_what_is_for_display() -> None:
    record = summary(samples=[SampleGroups("", True, [["K>K"]], "K>", {"K>K": [("K>K", "plain")]})])
    found = json.loads(to_json(record))
    assert "spans" not in found["samples"][0] and found["metrics"][0]["lr"] == record.metrics[0].lr
    assert TypeAdapter(RunSummary).validate_python(found) == replace(record, samples=[replace(record.samples[0], spans={})])


def test_a_run(said: Said) -> None:
    text = said(summary())
    for words in (
        *("letters · letters-free", "CE + KL  31.41 bits/sequence (0.3350 nats/token)", "27.41", "62.1 %", "1,045", "too few"),
        *(
            "+12.6 % FLOPs (+12.5 %",
            "1.8 GiB",
            "7,160,928",
            "model.layers 8",
            "shared Z",
            "min 31.41",
            "brings CE 0.53 bits below the floor",
        ),
    ):
        assert words in text, words
    assert "attention" not in text and "model.attention multi-token" in said(summary(recipe={"model": {"attention": "multi-token"}}))
    baseline = said(summary(False))
    assert "KL" not in baseline and "independent Z" not in baseline and "27.43" in baseline and "no Z" in baseline
    assert "has no place on this scale" in said(summary(facts=replace(FACTS, targets=None)))


def test_a_likelihood_says_what_may_be_compared(said: Said) -> None:
    text = said(likelihood())
    assert "Compare nll and CE + KL with a baseline's CE" in text and "nats/token" in text and "±" in text and "bits/byte" not in text
    assert text.index("Z from the posterior, bits/sequence") < text.index("K: draws of Z") and "The gap from nll to the floor is +" in text
    assert "-0." in said(replace(likelihood(), floor_bits=likelihood().nll.bits_per_sequence + 0.3))[text.index("The gap") - 40 :]  # type: ignore[operator]
    baseline = said(likelihood("evaluate-baseline"))
    assert "posterior" not in baseline and "K =" not in baseline and "baseline decoder" in baseline


def test_text_is_reported_in_bits_per_byte(said: Said) -> None:
    def of_text(one: object) -> object:
        return replace(one, bits_per_byte=one.bits_per_token / 4.2, bits_per_sequence=None)  # type: ignore[attr-defined,type-var]

    made: Likelihood = likelihood()
    costs = {name: of_text(getattr(made, name)) for name in ("nll", "elbo", "kl", "ce_prior", "ce_posterior")}
    bound = [replace(point, nll=of_text(point.nll)) for point in made.bound]
    text = said(replace(made, **costs, bound=bound, prior_bound=[], floor_bits=None))  # type: ignore[arg-type]
    assert "bits/byte" in text and "above the nll" in text and "floor" not in text


def test_a_probe(said: Said) -> None:
    text = said(probe())
    for words in (
        *("Verdict: details. ", "Rate: what flows", "Latent ablation:", "Intervention:", "Latent swap:", "Decoding:", "bits/sequence"),
        *(
            "lower bound, a sum over 64 sites",
            "at most log2 of their number, 11.00 bits",
            "nats/token (paired",
            "shared Z",
            "hidden, linear",
        ),
    ):
        assert words in text, words
    assert "\nposition: lower bound" not in text and "it has reached that" in text
    assert "it has reached that" not in said(probe(rate=replace(probe().rate, information_low=Estimate(7.9, 7.8, 8.0))))
    bare = said(probe(intervention=None, latent_swap=[], decoding=[], rate=replace(probe().rate, efficiency=None)))
    assert not any(word in bare for word in ("Intervention", "Latent swap", "Decoding", "efficiency"))


def test_a_sweep_is_in_the_order_of_kappa(said: Said) -> None:
    text = said(Sweep(sweep().runs[::-1]))
    rates = [
        line.split()[0]
        for line in text[text.index("Rate and") : text.index("Information of")].splitlines()
        if "runs/" not in line and "letters-" in line
    ]
    assert rates == ["1/64", "1/8", "1/2", "2"]
    shown = text[text.index("Samples by κ") :]
    assert next(line for line in shown.splitlines() if line.startswith("κ = ")) == "κ = 1/64 bit per token" and shown.count("shared Z") == 8
    unlearned = probe(rate=replace(probe().rate, efficiency=Estimate(-23.79, -24, -23)))
    assert "-23.79" not in said(Sweep([unlearned])) and "1 run on" in said(Sweep([unlearned]))
    assert "a/run" in said(Sweep([probe(run="a/run"), probe(run="b/run")])) and "No runs" in said(Sweep([]))


def test_panels_have_kappa_and_numbers() -> None:
    panels = sweep_panels(sweep().runs)
    assert [one.title for one in panels] == [f"κ = {k} per token" for k in ("1/64 bit", "1/8 bit", "1/2 bit", "2 bits")]
    assert panels[1].measured[0] == "I(Z; position) 1.29 [1.26, 1.35] of 5.81 bits" and panels[1].measured[2].startswith("valid 99.6 %")
    assert [box.kind for box in panels[0].boxes] == ["independent", "shared", "shared"]
    twice = [one.title for one in sweep_panels([probe(run="runs/b"), probe(run="runs/a")])]
    assert twice == ["κ = 1/2 bit per token · b", "κ = 1/2 bit per token · a"]
    assert sweep_panels([probe(intervention=None)]) == [] and panels_note([probe(intervention=None)]) == ""
    assert "sequences each" in panels_note(sweep().runs)


@pytest.mark.parametrize(
    ("value", "title"), [(0.0, "0 bits"), (1 / 1024, "1/1024 bit"), (0.1, "0.1 bit"), (1.5, "1.5 bits"), (math.nan, "– bit")]
)
def test_kappa_is_written_as_in_the_paper(value: float, title: str) -> None:
    assert kappa_title(value) == f"κ = {title} per token"


def test_factors_have_the_colours_of_samples() -> None:
    expected = {"letter": "plain", "position": "target", "noise": "noise"}
    assert colours(probe().factors()) == {one.name: one.role for one in information_chart(sweep().runs).series} == expected
    drawn = information_chart(sweep().runs[::-1], names=["noise", "position"]).series
    assert {one.name: one.role for one in drawn} == {"position": "target", "noise": "noise"}


def test_the_pieces_of_a_row() -> None:
    pieces = [*(("K>", "prompt"), ("__", "blank"), ("K", "target"), ("Q", "invalid"), ("!", "noise"), ("_", "blank"))]
    assert line_spans("K>__KQ!_", spans=spans_by_text("letters", {}, ["K>__KQ!_"])) == pieces
    assert line_spans("The film was good.", "The film was ") == [("The film was ", "prompt"), ("good.", "plain")]
    assert line_spans("K>K", spans={"K>K": [("K>K", "noise")]}) == [("K>K", "noise")]


@pytest.mark.parametrize(
    ("a", "b", "half", "begins", "mood"),
    [
        (0.40, 0.39, 0.005, "B has the lower bound: B − A of nll is -0.94 [-1.41, -0.47] bits/sequence, -2.50 %", "good"),
        (0.40, 0.41, 0.005, "A has the lower bound: ", "bad"),
        (0.40, 0.41, 0.02, "No difference seen: B − A of nll is +0.94 [-0.94, 2.81] bits/sequence", "warn"),
    ],
)
def test_verdicts(a: float, b: float, half: float, begins: str, mood: str) -> None:
    sentence, found = comparison(metrics={**comparison().metrics, "nll": pair(a, b, half)}).verdict()
    assert sentence.startswith(begins) and found == mood


def test_a_bound_that_loses_to_an_exact_nll_decides_nothing() -> None:
    sentence, mood = mixed().verdict()
    assert sentence.startswith("Undecided: A is below the bound of B") and mood == "warn"
    better = replace(mixed(), metrics={**mixed().metrics, "nll": pair(0.41, 0.40)})
    assert better.verdict()[0].startswith("B is better: ")  # a bound below an exact value decides


def test_positions_are_pooled_by_their_targets() -> None:
    rows = comparison().by_position.rows()  # type: ignore[union-attr]
    assert len(rows) == STRETCHES
    assert rows[0] == ["1–8", "1.000", "0.500", "-0.500"] and rows[-1] == ["57–64", "1.000", "1.500", "+0.500"]
    uneven = Positions([1.0, 4.0] * 8, [0.0] * 16, [3, 1] * 8)
    assert uneven.rows()[0] == ["0–1", "1.750", "0.000", "-1.750"]


def test_a_comparison(said: Said) -> None:
    text = " ".join(said(comparison()).split())
    for words in (
        *("nll 37.51 36.57 -0.94 [-1.41, -0.47] -2.50 B lower", "FAILED kl>0 +0.0144 bits/token", "latent.kappa 0.125 –", "51,234"),
        *("2 tensors: encoder 1, post_sampler 1", "embedding.weight 29×64 → 29×32", "0.250 (0.9700)", "A: independent Z"),
    ):
        assert words in text, words
    assert "not compared" in said(mixed()) and "A: no Z" in said(mixed())
    seconds = next(line for line in said(mixed()).splitlines() if line.startswith("this measurement, s"))
    assert "×" not in seconds and "64 draws of Z" in said(mixed())
    assert "draws of Z" not in said(comparison(a=side("old", free=False), b=side("new", free=False)))


@pytest.mark.parametrize(("a", "low", "said"), [(0.001, 0.0009, "+900.00"), (0.001, -0.001, "–"), (0.0004, 0.0003, "–"), (0.0, 0.0, "–")])
def test_a_change_relative_to_nearly_nothing_is_left_out(a: float, low: float, said: str) -> None:
    found = MetricPair(replace(cost(a), low=low), None, None, 900.0)
    assert found.percent() == said


def test_samples_say_which_factor_has_which_size() -> None:
    factors = probe().factors()
    assert sizes_text(factors[1:]) == "1,024 Zs from the prior, 128 sequences each"
    assert sizes_text(factors) == (
        "letter: 64 Zs from the prior, 32 sequences each; position, noise: 1,024 Zs from the prior, 128 sequences each"
    )


@pytest.mark.parametrize(
    ("ce", "ce_prior", "nll", "words"),
    [
        (0.500, 0.504, 0.5, "Z is unused: a random Z adds 0.8 % of nll"),
        (0.500, 0.490, 0.5, "Z is unused: a random Z adds 0.0 % of nll"),
        (0.500, 0.506, 0.5, ""),
        (0.049, 0.900, 0.5, "Z copies the sequence (collapse): with the encoder's Z, CE is 9.8 % of nll"),
        (0.300, 1.010, 0.5, "Z from the prior is worse than no information: CE is 101.0 %"),
        (0.300, 0.990, 0.5, ""),
        (0.300, None, None, ""),
        (math.nan, 0.3, 0.5, ""),
    ],
)
def test_what_is_wrong_with_z(ce: float, ce_prior: float | None, nll: float | None, words: str) -> None:
    found = latent_fault(ce, ce_prior, nll, None if nll is None else 1.0)
    assert found.startswith(words) and bool(found) == bool(words)


def test_the_best_bound_is_named_and_the_loose_one_called_loose(said: Said) -> None:
    last = metrics(4000, "val", nll=0.3, ce_prior=0.4, frequencies=1.0)
    shown = said(summary(metrics=[last]))
    assert "The best known bound on -log P(S): nll 28.13 bits/sequence, 0.72 above the floor; CE + KL is a loose one." in shown
    assert "nll 28.13 bits/sequence, 0.72 above the floor" in said(replace(TRAINED, val=last))
    assert "skipped     3 of 4,000 steps; 3,997 changed the weights" in said(replace(TRAINED, skipped=3)) and "skipped" not in said(TRAINED)
    below = replace(last, nll=0.29)
    assert "0.22 below the floor (an error of sampling)" in said(replace(TRAINED, val=below))
    assert "31.41 bits/sequence, 4.00 above the floor; nll is no tighter" in said(replace(TRAINED, val=replace(last, nll=0.34)))
    assert "nll 31.41 bits/sequence, 4.00 above the floor; CE + KL is as tight" in said(replace(TRAINED, val=replace(last, nll=0.33499)))
    assert "a loose one; `freetf evaluate` finds a tighter one" in said(summary())
    unused = replace(last, ce_prior=last.ce)
    assert all("Z is unused" in said(each) for each in (summary(metrics=[unused]), replace(TRAINED, val=unused)))
    made = likelihood()
    assert "Z is unused" in said(replace(made, ce_prior=made.ce_posterior, frequencies=1.0)) and "Z is" not in said(
        replace(made, frequencies=1.0)
    )


def test_progress_is_reported_in_the_units_of_the_data() -> None:
    from tests.report.helper import progress

    text = progress(facts=replace(FACTS, floor_bits=None), ce=math.log(4), kl=0.0, bytes_per_token=2.0)
    texts = [piece.text for piece in text.status().pieces]
    assert "CE 1.00 KL 0.00 bits/byte" in texts
    assert not any("floor" in piece.text for piece in progress(facts=replace(FACTS, targets=None)).status().pieces)
    assert metrics(10, free=False).has_latent() is False
