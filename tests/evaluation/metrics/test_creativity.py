"""creativity: its measures by hand, its perfect sampler by simulation, and a run from end to end."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from freetf_cli.config.recipe import DataConfig, LatentConfig, ModelConfig
from freetf_cli.data.batches import open_data
from freetf_cli.errors import InputError
from freetf_cli.evaluation.metrics import Request, default_sequences, load, own_options
from freetf_cli.evaluation.metrics.creativity import Shares, measure, perfect, training_objects
from freetf_cli.evaluation.statistics import repeated
from freetf_cli.generation.sampling import SampleSpec, generate
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.tasks import make_task

SMALL = {"parents": 2, "children": 6, "seed_length": 2}


def test_the_measures_by_hand() -> None:
    """Two new objects, one of them twice; one that is known, in another order; one incoherent row."""
    task = make_task("siblings", {"parents": 2, "children": 8})
    texts = ["0 1 p0", "1 0 p0", "4 5 p1", "2 3 p0", "3 4 p0"]
    assert measure(task, texts, {(2, 3), (6, 7)}) == Shares(2 / 5, 4 / 5, 1 / 5, 3 / 5, 3 / 12)


@pytest.mark.parametrize(("name", "params"), [("circles", {"nodes": 3, "among": 5}), ("triangles", {"nodes": 9, "density": 0.7})])
def test_a_perfect_sampler_by_simulation(name: str, params: dict[str, object]) -> None:
    """True rows stand for generated ones: the means over 300 samples agree with the formulas, within 4 standard errors."""
    task, rows = make_task(name, params), 15
    known = {task.identity(example.text) for example in task.examples(1, 0, 12)}
    texts = [example.text for example in task.examples(2, 0, 300 * rows)]
    samples = [measure(task, texts[start : start + rows], known) for start in range(0, len(texts), rows)]
    assert task.objects is not None
    expected = perfect(task.objects, len(known), rows)
    for measured in ("creativity", "coherence", "memorised", "distinct", "coverage"):
        values = np.array([getattr(sample, measured) for sample in samples])
        assert getattr(expected, measured) == pytest.approx(values.mean(), abs=4 * values.std() / 300**0.5 + 1e-12)
    assert 0.1 < expected.creativity < 0.9


def test_a_perfect_sampler_of_many_objects_by_its_formula() -> None:
    found, objects, rows = perfect(623_750, 9_900, 1000), 623_750, 1000
    different = objects * (1 - (1 - 1 / objects) ** rows)
    assert found.distinct == pytest.approx(different / rows, rel=1e-9)
    assert found.creativity == pytest.approx((1 - 9_900 / objects) * different / rows, rel=1e-9)
    assert (perfect(1, 1, 5).coverage, perfect(1, 0, 5).creativity) == (1, 1 / 5)


@pytest.mark.parametrize("kappa", [None, 0.5])
def test_a_run(kappa: float | None) -> None:
    """The rows that are measured: a fresh prefix for each, Z from the prior, the temperature asked for."""
    source = open_data(DataConfig(task="siblings", params=SMALL, train_rows=9), context=None, seed=3)
    latent = None if kappa is None else LatentConfig(kappa=kappa, bits=4)
    model = build_model(ModelConfig(layers=2, width=16, heads=2, vocab=source.facts.vocabulary, context=source.context), latent)
    initialise_model(model, seed=0)
    task, kind = source.task, "baseline" if kappa is None else "free"
    assert task is not None and task.objects == 6
    checkpoint, told = SimpleNamespace(recipe=SimpleNamespace(kind=kind), step=7), []
    request = Request("r", "val", sequences=20, seed=5, temperature=0.7, advance=told.append)
    found = load("creativity")(checkpoint, model, source, request)
    known = training_objects(source, task)
    assert known == {task.identity(row.text) for row in make_task("siblings", SMALL).examples(_train_seed(3), 0, 9)}
    spec = SampleSpec(total=source.context + 1, prompt_z="prior", temperature=0.7, seed=5)
    texts = [sample.text for sample in generate(model, source.tokenizer, (task.prompt(5, i) for i in range(60)), spec)]
    each = [measure(task, texts[start : start + 20], known) for start in (0, 20, 40)]
    assert found.coherence.measured.value == pytest.approx(np.mean([one.coherence for one in each]))
    assert found.distinct.measured == repeated([one.distinct for one in each]) or found.distinct.measured.low == 0
    assert (found.objects, found.training_objects, found.sequences, found.step, sum(told)) == (6, len(known), 20, 7, 20)
    assert found.creativity.perfect == perfect(6, len(known), 20).creativity
    assert "perfect sampler" in str(found.report())


def _train_seed(seed: int) -> int:
    from freetf_cli.streams import stream_seed

    return stream_seed(seed, "train")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(task="letters"), "open-ended tasks"),
        (DataConfig(task="siblings"), "a finite training set"),
    ],
)
def test_data_that_it_is_not_for(config: DataConfig, message: str) -> None:
    source = open_data(config, context=None, seed=0)
    with pytest.raises(InputError, match=message):
        load("creativity")(None, None, source, Request("r", "val"))  # type: ignore[arg-type]


def test_its_options() -> None:
    assert (own_options("creativity"), default_sequences("creativity")) == (("--temperature",), 1000)
    assert (own_options("likelihood"), default_sequences("likelihood")) == (("--samples",), 256)
