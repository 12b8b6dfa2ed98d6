"""`freetf bench` on a CPU: what it counts and how results are computed. No time is asserted."""

from __future__ import annotations

import json
import math

import pytest
import torch

from freetf_cli.bench.generation import bench_sample
from freetf_cli.bench.mapper import bench_mapper
from freetf_cli.bench.products import products_of, seconds_of
from freetf_cli.bench.timing import Effort, machine, timed
from freetf_cli.bench.train_step import Variant, bench_train, made_step, with_baselines
from freetf_cli.config.recipe import LatentConfig, ModelConfig, Recipe, TrainConfig
from freetf_cli.generation.sampling import SampleSpec, continue_tokens, generate
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.records import to_json
from freetf_cli.records.bench import SampleBench, Timing
from freetf_cli.runs.plan import plan_run
from tests.generation.test_sampling import CONFIG, letters  # noqa: F401 (a fixture)

CPU = torch.device("cpu")
ONCE = Effort(steps=1, repeats=2)
FREE = Recipe(
    data={"task": "letters"},  # type: ignore[arg-type]
    model=ModelConfig(layers=2, width=16, heads=2, vocab=11, context=9),
    latent=LatentConfig(kappa=0.5, bits=4),
    train=TrainConfig(steps=10, batch=4, lr=1e-2, grad_accum_steps=2),
)


def test_timing_counts_every_step_and_spans_its_rounds() -> None:
    calls: list[int] = []
    took = timed(lambda: calls.append(1), Effort(steps=200, repeats=3))
    assert len(calls) >= 600
    assert 0 < took.least <= took.median <= took.most
    assert (took.steps, took.repeats) == (200, 3)


def test_one_free_recipe_comes_after_its_baseline() -> None:
    pair = with_baselines([Variant("free", FREE)])
    assert [(variant.name, variant.recipe.kind) for variant in pair] == [("free without Z", "baseline"), ("free", "free")]
    assert with_baselines(pair) == pair
    assert with_baselines(pair[:1]) == pair[:1]


def test_a_benchmarked_step_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a training step: repeated on one batch, it learns the batch."""
    from freetf_cli.training.step import TrainStep

    steps: list[TrainStep] = []
    plain = TrainStep.__init__
    monkeypatch.setattr(TrainStep, "__init__", lambda self, *words: (plain(self, *words), steps.append(self))[0])
    step = made_step(FREE, CPU)
    costs = []
    for _ in range(60):
        step()
        costs.append(float(steps[0].sums[0]))
    assert costs[-1] < 0.7 * costs[0]


def test_training_result_has_ratios_shares_and_parts() -> None:
    seen: list[None] = []
    result = bench_train(with_baselines([Variant("free", FREE)]), CPU, ONCE, lambda: seen.append(None))
    baseline, free = result.rows
    assert len(seen) == 2 and baseline.ratio == 1.0
    assert free.ratio == pytest.approx(free.time.median / baseline.time.median)
    assert free.tokens == 36 and free.tokens_per_second == pytest.approx(36 / free.time.median)
    plan = plan_run(FREE, "", bf16=False)
    assert free.flops == pytest.approx(plan.train_flops_per_token * 36 / free.time.median)
    assert free.share == pytest.approx(free.flops / result.machine.ceiling)
    assert (free.peak, free.predicted) == (None, plan.memory["total"])
    assert [part.part.split(",")[0].split(":")[0] for part in result.parts] == [
        "encoder",
        "mapper",
        "mapper",
        "mapper",
        "AdamW of the table",
    ]
    assert all(part.recipe == "free" and part.share == pytest.approx(part.time.median / free.time.median) for part in result.parts)


def test_the_products_of_a_step_are_found() -> None:
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4).T
    query = torch.randn(2, 2, 6, 4, requires_grad=True)

    def step() -> None:
        (a @ b).sum().backward()
        torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True).sum().backward()

    found = products_of(step)
    shapes = {(left.shape, right.shape, right.stride): count for (left, right), count in found.items()}
    assert shapes[(3, 4), (4, 5), (1, 4)] == 1  # with its layout
    assert shapes[(3, 5), (5, 4), (4, 1)] == 1  # the gradient of a
    assert shapes[(4, 6, 4), (4, 4, 6), (24, 1, 4)] == shapes[(4, 6, 6), (4, 6, 4), (24, 4, 1)] == 3  # one forward, two backward
    assert sum(found.values()) == 8
    assert seconds_of(found, CPU, ONCE) > 0


def test_products_of_a_step_agree_with_the_plan() -> None:
    """Except in attention, where the plan leaves out masked scores; and the encoder projects its one query once."""
    step = made_step(FREE, CPU)
    found = {pair: count for pair, count in products_of(step).items() if len(pair[0].shape) == 2}
    flops = sum(2 * count * math.prod(left.shape) * right.shape[-1] for (left, right), count in found.items())
    plan = plan_run(FREE, "", bf16=False)
    attention = 3 * sum(4 * 16 * keys for keys in (4.5, 4.5, 9))  # two causal blocks, one encoder
    assert flops == pytest.approx(36 * (plan.train_flops_per_token - attention), rel=0.03)


def test_all_ways_to_the_mappers_gradient_agree_with_float64() -> None:
    product, *ways = bench_mapper(40, 16, 9, CPU, ONCE).rows
    assert product.error is None and product.ratio == 1.0
    assert [way.way for way in ways] == ["through memory, in chunks", "as in training"]
    assert all(way.error is not None and way.error < 1e-5 for way in ways)
    assert product.flops == pytest.approx(2 * 40 * 512 * 16 / product.time.median)


def test_generation_reads_its_weights_once_a_token() -> None:
    result: SampleBench = bench_sample(with_baselines([Variant("free", FREE)]), [1, 3], 2, 5, CPU, ONCE)
    assert [(row.kind, row.batch) for row in result.rows] == [("baseline", 1), ("baseline", 3), ("free", 1), ("free", 3)]
    assert [row.ratio == 1.0 for row in result.rows] == [True, True, False, False]
    weights = sum(weight.numel() * 4 for weight in build_model(FREE.model, None).parameters())
    weights -= 0 if FREE.model.tie_embeddings else 11 * 16 * 4  # the embedding gives one row
    for row in result.rows:
        assert row.weight_bytes == weights
        assert row.tokens_per_second == pytest.approx(5 * row.batch / row.time.median)
        assert row.share == pytest.approx(weights * 5 / row.time.median / result.machine.bandwidth)


def test_continue_tokens_gives_what_generate_gives(letters) -> None:  # noqa: F811
    model = build_model(CONFIG, LatentConfig(kappa=1.0, bits=4))
    initialise_model(model, 0)
    spec = SampleSpec(total=13, seed=5, prompt_z="prior")
    (record,) = generate(model.eval(), letters, ["ab"], spec)
    ((tokens, codes),) = continue_tokens(model, [letters.encode("ab")], spec)
    assert (letters.decode(tokens), codes) == (record.text, record.z)


def test_the_rates_of_a_machine_are_measured() -> None:
    here = machine(CPU, "fp32", ONCE)
    assert here.precision == "float32" and here.ceiling > 1e9 and here.bandwidth > 1e8 and here.reading > 1e8
    assert math.isfinite(json.loads(to_json(here))["ceiling"])


def test_a_timing_shows_its_median_and_range() -> None:
    took = Timing(0.0123, 0.0120, 0.0130, 10, 5)
    assert took.cells() == ["12.30", "-2.4 +5.7 %"]
