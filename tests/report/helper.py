"""Records for the tests of reports: runs and comparisons are made up, probes and likelihoods are those of docs/results."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from freetf_cli.evaluation.metrics.answers import Answers, Errors
from freetf_cli.records import CheckpointInfo, DataFacts, DatasetSummary, Finding, Findings, Metrics, Progress, TrainResult
from freetf_cli.records.compare import CheckResult, Comparison, LatentUse, SamplePair, Side
from freetf_cli.records.intervention import HeatMap
from freetf_cli.records.likelihood import Cost, Estimate, Likelihood
from freetf_cli.records.paired import Difference, MetricPair, Positions
from freetf_cli.records.plan import PartCost, Plan
from freetf_cli.records.probe import ProbeResult
from freetf_cli.records.probe_sweep import Sweep
from freetf_cli.records.recipes import RecipeDiff, RecipeEntry, RecipeList, Setting, SweepEntry
from freetf_cli.records.run import DemoResult, RunSummary
from freetf_cli.records.samples import Agreement, SampleGroups
from freetf_cli.records.weights import Change, GroupChange, TensorChange, TensorShape, WeightChanges
from freetf_cli.tasks import spans_by_text
from scripts.sweep import load

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
FACTS = DataFacts("letters", "letters", 29, 65, 65, 27.412, "ab" * 32)
EVIL = "</title></style><script>alert(1)</script><img src=x onerror=y>[red]\x1b[2J\u202e\ud800"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def altered(record: Any, change: Callable[[Any], Any]) -> Any:
    """The record with every text and number in it changed."""
    if dataclasses.is_dataclass(record):
        return replace(record, **{one.name: altered(getattr(record, one.name), change) for one in dataclasses.fields(record)})  # type: ignore[type-var]
    if isinstance(record, list):
        return [altered(item, change) for item in record]
    return {key: altered(item, change) for key, item in record.items()} if isinstance(record, dict) else change(record)


def hostile(record: Any) -> Any:
    """Markup, scripts and control characters wherever a text can come from outside."""
    kept = {"free", "baseline", "letters", "train", "posterior", "prior"}
    return altered(record, lambda value: EVIL if isinstance(value, str) and value not in kept else value)


def unknown(record: Any) -> Any:
    """NaN wherever a number can fail."""
    return altered(record, lambda value: math.nan if isinstance(value, float) else value)


def letters_row(letter: str, start: int, seed: int) -> str:
    draw = random.Random(seed)
    body = ["_"] * 64
    body[start : start + 8] = letter * 8
    return f"{letter}>" + "".join("!" if draw.random() < 1 / 16 else char for char in body)


def letters_groups(shared: bool, groups: int = 3, count: int = 6) -> SampleGroups:
    rows = [[letters_row("K", (7 * g + (0 if shared else 9 * i)) % 57, 100 * g + i) for i in range(count)] for g in range(groups)]
    return SampleGroups("", shared, rows, "K>", spans_by_text("letters", {}, chain.from_iterable(rows)))


def metrics(step: int, split: str = "train", *, free: bool = True, **changes: Any) -> Metrics:
    fall = math.exp(-step / 150)
    ce, kl = (0.245 if free else 0.2925) + 2.8 * fall, 0.09 * (1 - fall) if free else 0.0
    kappa = 0.125 * math.log(2) if free else 0.0
    line = Metrics(step, step * 256 * 65, split, ce + 0.01, ce, kl, 0.01 * free, 0.1 * free, kappa, None, None)
    return replace(replace(line, lr=1e-3 * (1 - step / 5000), grad_norm=0.4) if split == "train" else line, **changes)


def all_metrics(free: bool = True, steps: int = 4000) -> list[Metrics]:
    return [metrics(step, split, free=free) for step in range(20, steps + 1, 20) for split in ("train", "val")[: 1 + (step % 200 == 0)]]


def progress(step: int = 1240, *, facts: DataFacts = FACTS, free: bool = True, split: str = "train", **changes: Any) -> Progress:
    return Progress(metrics(step, split, free=free, **changes), 4000, 12.34, 224.0, facts)


def plan(free: bool = True) -> Plan:
    parts = [PartCost("embedding", 7_424, 0.0), PartCost("blocks 1-8", 6_300_000, 1.26e7)]
    parts += [PartCost("encoder block", 853_504, 1.6e6)] if free else []
    memory = {"parameters": 2.9e7, "gradients": 2.9e7, "optimizer": 5.8e7, "activations": 1.9e9, "total": 2.02e9}
    extra = (0.126, 0.125, 0.135) if free else (None, None, None)
    total = sum(part.parameters for part in parts)
    return Plan("letters-free", "free" if free else "baseline", parts, total, 4.3e7, *extra, memory, 4000, 66_560_000, "fp32")


def summary(free: bool = True, **changes: Any) -> RunSummary:
    recipe: dict[str, Any] = {"description": "as in Figure 4", "model": {"layers": 8, "attention": "softmax"}, "train": {"lr": 1e-3}}
    made = RunSummary(
        *("runs/letters", "free" if free else "baseline", "finished", {**recipe, **({"latent": {"kappa": 0.125}} if free else {})}),
        *(FACTS, plan(free), all_metrics(free)),
        checkpoints=[CheckpointInfo(s, f"runs/letters/checkpoints/step-{s:06}", 0.26, s == 4000, 88_000_000) for s in (2000, 4000)],
        samples=[letters_groups(False, 2), *([letters_groups(True)] if free else [])],
        agreement=[Agreement("position", 0.621, 0.051, 1045, 108), Agreement("noise", 0.31, 0.0, 45, 108)] if free else [],
        manifest={
            "recipe": "letters-free",
            "argv": ["freetf", "train", "letters-free", "-o", "runs/letters"],
            "packages": {"torch": "2.13.0"},
            "git": None,
        },
    )
    return replace(made, **changes)


def sweep() -> Sweep:
    """The sweep of docs/results, with samples and heat maps."""
    found = load(RESULTS / "letters-sweep-h200.json")
    maps = [HeatMap("the letter", [[0.0, 0.5, 0.5, 1.0], [1.0, 0.0, 0.25, 0.0]])]
    samples = [letters_groups(False, 1), letters_groups(True, 2)]
    shown = [replace(one.intervention, heat_maps=maps, samples=samples) for one in found.runs if one.intervention]
    return Sweep([replace(one, intervention=new) for one, new in zip(found.runs, shown, strict=True)])


def probe(**changes: Any) -> ProbeResult:
    """κ = 1/2 of the sweep."""
    return replace(sweep().runs[2], **changes)


def likelihood(name: str = "evaluate-letters-2th") -> Likelihood:
    found: Likelihood = TypeAdapter(Likelihood).validate_python(
        json.loads((RESULTS / "letters-likelihood-h200.json").read_text(encoding="utf-8"))[name]
    )
    return found


def cost(nats: float) -> Cost:
    return Cost(nats, nats - 0.01, nats + 0.01, nats / math.log(2), None, nats * 65 / math.log(2))


def pair(a: float, b: float, half: float = 0.005) -> MetricPair:
    apart = b - a
    bits = apart / math.log(2)
    difference = Difference(apart, apart - half, apart + half, bits, None, 65 * bits, abs(apart) > half)
    return MetricPair(cost(a), cost(b), difference, 100 * apart / abs(a))


def side(name: str, *, free: bool = True) -> Side:
    use = LatentUse(cost(0.09), 0.4, 0.125, Estimate(0.2, 0.18, 0.22)) if free else None
    folder = f"runs/{name}/checkpoints/step-004000"
    known = (4000, "ab" * 32, 88_000_000, 7_160_928, 4.3e7, 51_234.0, 12.5, all_metrics(free), use)
    return Side(f"runs/{name}", folder, "free" if free else "baseline", *known)


MOVED = Change(0.25, 0.97)
WEIGHTS = WeightChanges(
    only_a=[],
    only_b=[TensorShape("encoder.zeta", None, [64]), TensorShape("post_sampler.weight", None, [256, 64])],
    reshaped=[TensorShape("embedding.weight", [29, 64], [29, 32])],
    all=MOVED,
    groups=[GroupChange(f"blocks.{number}", 9, MOVED, MOVED, Change(None, None)) for number in (0, 10)],
    tensors=[TensorChange("blocks.0.ffn.up.weight", "blocks.0", "ffn", [192, 64], MOVED)],
)


def comparison(**changes: Any) -> Comparison:
    nats = {"nll": (0.40, 0.39), "elbo": (0.41, 0.40), "ce_posterior": (0.3, 0.31), "ce_prior": (0.5, 0.5), "kl": (0.09, 0.1)}
    made = Comparison(
        *(side("old"), side("new"), False, [Setting("latent.kappa", 0.125, None)]),
        [CheckResult("nll>+0.5%", "nll", "%", -2.5, True), CheckResult("kl>0", "kl", "bits/token", 0.0144, False)],
        *(FACTS, "val", 256, 16_640, 64, 0, 27.412, WEIGHTS),
        metrics={name: pair(*both) for name, both in nats.items()},
        by_position=Positions([math.nan] + [1.0] * 64, [math.nan] + [0.5] * 32 + [1.5] * 32, [0] + [256] * 64),
        samples=SamplePair("K>", 0, [letters_row("K", 7, 1), letters_row("K", 9, 2)], [letters_row("K", 30, 3), letters_row("K", 40, 4)]),
    )
    return replace(made, **changes)


def mixed() -> Comparison:
    """A baseline as A."""
    alone = {name: MetricPair(None, cost(0.3), None, None) for name in ("ce_posterior", "ce_prior", "kl")}
    return comparison(a=side("old", free=False), metrics={"nll": pair(0.40, 0.41), "elbo": pair(0.40, 0.42), **alone}, checks=[])


DATASET = DatasetSummary(
    "data", "letters", "characters", 29, {"train": {"documents": 60000, "tokens": 3960000, "bytes": 3960000}}, {"K": 3}, 27.412
)
TRAINED = TrainResult("runs/my run", "free", 4000, 66560000, 324.0, metrics(4000, "val"), "runs/my run/c", "runs/my run/report.html", FACTS)
ERRORS = Errors(3, Estimate(0.1, 0.05, 0.2))
SAME = Comparison(replace(side("old"), latent=None), replace(side("new"), latent=None), True, [Setting("train.lr", 1, 2)], [])
RUNNING_TEXT = SamplePair("Once", 3, ["Once upon\na time " * 8, "x\x1b[31m"], ["Once é\n", "…"])
RECORDS: dict[str, Any] = {
    "dataset": DATASET,
    "plan": plan(),
    "trained": TRAINED,
    "doctor": Findings([Finding("torch", "2.13", True), Finding("device", "none", False, "pip install torch")]),
    "recipes": RecipeList(
        [RecipeEntry("letters-free", "free", "as in Figure 4", 8, 256, 3000, "letters")], [SweepEntry("figure4", "four κ")]
    ),
    "diff": RecipeDiff("a", "b", [Setting("train.lr", 1e-3, None)]),
    "demo": DemoResult("freetf", "demo", TRAINED, TRAINED, summary().agreement, 180.0),
    "answers": Answers(
        run="runs/blocks",
        task="answers",
        kind="free",
        step=10,
        split="val",
        sequences=30,
        seed=0,
        facts=FACTS,
        seconds=1.0,
        errors=ERRORS,
        errors_posterior=ERRORS,
    ),
    "run": summary(),
    "baseline": summary(False),
    "young run": summary(metrics=[], samples=[], agreement=[], checkpoints=[], status="running"),
    "one line": summary(metrics=[metrics(10)]),
    "diverged": summary(metrics=[metrics(step, ce=None, kl=None, loss=None, kappa=None) for step in (10, 20)]),
    "rows of varying length": summary(facts=replace(FACTS, targets=None), recipe={}, manifest={}),
    "likelihood": likelihood(),
    "likelihood of a baseline": likelihood("evaluate-baseline"),
    "probe": probe(),
    "probe without factors": probe(intervention=None, latent_swap=[], decoding=[], notes=["no factor is known"]),
    "sweep": Sweep(sweep().runs[::-1]),
    "no sweep": Sweep([]),
    "comparison": comparison(),
    "mixed": mixed(),
    "equal": SAME,
    "text": comparison(samples=RUNNING_TEXT, a=replace(side("old"), curve=[]), checks=[], recipe=[]),
}
for _name in ("run", "likelihood", "probe", "comparison"):
    _record, _changes = (
        RECORDS[_name],
        {"recipe": RECORDS[_name].recipe} if _name == "run" else {"recipe": []} if _name == "comparison" else {},
    )
    RECORDS |= {f"hostile {_name}": hostile(_record), f"unknown {_name}": replace(unknown(_record), **_changes)}
