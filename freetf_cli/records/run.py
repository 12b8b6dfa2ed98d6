"""A run at a glance, for `freetf show` and a run's page; and the result of `freetf demo`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Any

from freetf_cli.records import LN2, CheckpointInfo, DataFacts, Metrics, TrainResult, Unit, floor_text
from freetf_cli.records.curves import bit_curves, curve, floor_line, last_metrics, split_metrics
from freetf_cli.records.glossary import glossary
from freetf_cli.records.plan import KINDS, Plan
from freetf_cli.records.samples import Agreement, SampleGroups, agreement_table
from freetf_cli.report.blocks import Block, Card, Cards, Chart, Facts, Grid, Mood, Note, Report, Section, Table
from freetf_cli.report.units import count, duration, is_number, number, share, size

MOODS: dict[str, Mood] = {"finished": "good", "done": "good", "failed": "bad", "error": "bad", "diverged": "bad"}
SMALL_CHARTS = (  # title, unit, field of a metrics line, factor to the unit
    ("loss", "nats/token", "loss", 1.0),
    ("learning rate", "rate", "lr", 1.0),
    ("free bits κ", "bits/token", "kappa", 1 / LN2),
    ("Zs above κ", "%", "above_kappa", 100.0),
    ("gradient norm", "norm", "grad_norm", 1.0),
)
ROLES = {"CE": "ce", "KL": "kl", "CE + KL": "nelbo", "nll": "green", "floor": "floor"}
UNSAID = (None, "softmax", "binary")  # values that go without saying, in any setting and in one
UNSAID_OF = {"data.teacherless": "0.0", "latent.beyond": "prior", "latent.every": "1", "latent.objective.credit_from": "0"}
OF_BITS = ("latent.bits", "latent.objective.mismatch", "latent.objective.mismatch_over", "latent.numerics.gradient")
# Settings that distinguish runs; the page has all of them.
HIGHLIGHTS = (
    *("data.task", "data.dir", "data.train_rows", "data.teacherless", "model.layers", "model.width", "model.heads", "model.context"),
    *("model.attention", "model.attention_layers", "model.document_mask"),
    *("latent.kind", "latent.bits", "latent.kappa", "latent.window", "latent.beyond", "latent.every", "latent.encoder"),
    "latent.table.order",
    *(f"latent.objective.{name}" for name in ("free_bits", "slope", "mismatch", "mismatch_over", "beta", "credit_from", "schedule")),
    "latent.numerics.gradient",
    *("train.steps", "train.batch", "train.lr", "train.seed", "train.precision"),
)


@dataclass(frozen=True)
class RunSummary:
    """A run at a glance: what `show` prints and a run's page shows."""

    run: str
    kind: str
    status: str
    recipe: dict[str, Any]
    facts: DataFacts
    plan: Plan
    metrics: list[Metrics]
    checkpoints: list[CheckpointInfo]
    samples: list[SampleGroups]
    agreement: list[Agreement]
    manifest: dict[str, Any]

    def report(self) -> Report:
        free = self.kind == "free"
        known = flattened(self.recipe)
        data = f"{self.facts.name}, rows of {count(self.facts.context)} positions, vocabulary {count(self.facts.vocabulary)}"
        return Report(
            title(self.run, self.manifest),
            [
                *self._key_figures(),
                Facts([("recipe", ", ".join(f"{key} {known[key]}" for key in highlights(known)))]),
                Section("Curves", self._curves()),
                Section("Samples", [*(one.block(latent=free) for one in self.samples), agreement_table(self.agreement)]),
                Section("Checkpoints", [self._checkpoints()]),
                Section("Sizes", [self.plan.facts(), self.plan.sizes()]),
                Section("Recipe", [Grid(self._settings(), columns=True)], detail=True),
                Section("Manifest", self._manifest(), detail=True),
            ],
            kicker=KINDS[self.kind],
            status=(self.status, next((mood for word, mood in MOODS.items() if self.status.startswith(word)), "warn")),
            about=[line for line in (str(self.recipe.get("description") or ""), data) if line],
            glossary=glossary("CE", "KL", "CE + KL", "Z", "κ", free=free, floor=self.facts.floor_bits is not None),
        )

    def _key_figures(self) -> list[Block]:
        last = last_metrics(self.metrics)
        if last is None:
            return [Note(f"no metrics yet; floor: {floor_text(self.facts.floor_bits) or 'not known'}")]
        unit = self.facts.unit(last)
        figures = {"CE": unit.bits(last.ce)}
        if self.kind == "free":
            figures |= {"KL": unit.bits(last.kl), "CE + KL": unit.nelbo(last)}
            figures |= {} if last.nll is None else {"nll": unit.bits(last.nll)}
        if unit.floor is not None:
            figures["floor"] = unit.floor
        cards = [
            Card(name, number(bits), unit.name, f"{number(bits / unit.factor, 4)} nats/token", ROLES[name])
            for name, bits in figures.items()
        ]
        return [Cards(cards), Note(self._reading(last, unit)), Note(last.fault(), "strong")]

    def _reading(self, last: Metrics, unit: Unit) -> str:
        """What the numbers mean, in a few sentences."""
        where = "the training batch" if last.split == "train" else f"the held-out split {last.split}"
        words = [f"Step {count(last.step)}, on {where}."]
        if self.kind == "free":
            words.append(f"The best known bound on -log P(S): {last.best_bound(unit)}.")
        elif unit.floor is not None and is_number(last.ce):
            gap = unit.bits(last.ce) - unit.floor
            words.append(f"CE lies {number(abs(gap))} bits {'below' if gap < 0 else 'above'} the floor.")
        if unit.floor is None and self.facts.floor_bits is not None:
            words.append(f"The floor is {floor_text(self.facts.floor_bits)}; rows differ in length, so it has no place on this scale.")
        saved = unit.saved(last)
        if saved is not None and saved > 0:
            words.append(f"Each bit of KL brings CE {saved:.2f} bits below the floor.")
        return " ".join(words)

    def _curves(self) -> list[Block]:
        if not self.metrics:
            return []
        unit, free = self.facts.unit(self.metrics[-1]), self.kind == "free"
        train, held_out = split_metrics(self.metrics)
        name = f"CE and KL, {unit.name}" if free else f"CE, {unit.name}"
        main = Chart(name, bit_curves(self.metrics, self.facts, free=free), "step", unit.name, references=floor_line(unit.floor))
        small = []
        for title, of, key, factor in SMALL_CHARTS:
            name = f"{title}: CE + penalised KL" if free and key == "loss" else title
            numbers = curve(name, train or held_out, partial(_scaled, key, factor))
            if any(map(is_number, numbers.y)) and (free or "κ" not in title):
                small.append(Chart(numbers.name, [numbers], "step", of, small=True))
        return [main, Grid(small)]

    def _checkpoints(self) -> Table:
        rows = []
        for one in self.checkpoints:
            rows.append([count(one.step), number(one.val_loss, 4), "best" if one.best else "", size(one.bytes), one.path])
        return Table(["step", "held-out loss, nats/token", "", "size", "path"], rows, align="rrlrl")

    def _settings(self) -> list[Table]:
        tables = [(name, flattened(value)) for name, value in self.recipe.items() if isinstance(value, dict)]
        return [Table(["", ""], list(rows.items()), name) for name, rows in tables]

    def _manifest(self) -> list[Block]:
        argv = self.manifest.get("argv")
        command = shlex.join(map(str, argv)) if isinstance(argv, list) else ""
        rest = flattened({key: value for key, value in self.manifest.items() if key != "argv"})
        rows = [("run", self.run), ("data, SHA-256", self.facts.sha256), *rest.items()]
        return [Note(command, "command"), Table(["", ""], rows)]


def _scaled(key: str, factor: float, line: Metrics) -> float:
    """A field of a metrics line in another unit; NaN where it is null."""
    return Unit(factor, "").bits(getattr(line, key))


def run_names(runs: Iterable[str]) -> dict[str, str]:
    """The last part of each path, after the run's name if it is a checkpoint; the whole paths if these are equal."""
    paths = {run: PurePath(run) for run in runs}
    ends = {run: "/".join(path.parts[-3::2]) if path.parent.name == "checkpoints" else path.name or run for run, path in paths.items()}
    return ends if len(set(ends.values())) == len(ends) else {run: run for run in ends}


def title(run: str, manifest: Mapping[str, Any]) -> str:
    """The run's name and the name of its recipe: `first · letters-free`."""
    name, recipe = PurePath(run).name or run, recipe_name(manifest)
    return name if recipe in ("", name) else f"{name} · {recipe}"


def recipe_name(manifest: Mapping[str, Any]) -> str:
    """The name of a run's recipe; of a file without its folder and its suffix."""
    return re.sub(r"^.*/(?=[^/]+\.toml)|\.toml", "", str(manifest.get("recipe") or ""))


def highlights(known: Mapping[str, str]) -> list[str]:
    """The settings that distinguish a run, of those in its recipe. known: of `flattened`."""
    kind = known.get("latent.kind", "binary")
    bits = kind in ("binary", "plan")
    names = [name for name in HIGHLIGHTS if bits or name not in OF_BITS]
    if kind != "binary":
        after = names.index("latent.kind") + 1
        names[after:after] = [name for name in known if name.startswith("latent.options.")]
    return [name for name in names if known.get(name) not in (*UNSAID, UNSAID_OF.get(name))]


def flattened(tree: Any, prefix: str = "") -> dict[str, str]:
    """Nested tables as `table.key` and value, without what is not set."""
    if isinstance(tree, dict):
        below = (flattened(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in tree.items())
        return {key: value for one in below for key, value in one.items()}
    if isinstance(tree, list | tuple):
        return {prefix: " ".join(map(str, tree))} if tree else {}
    return {} if tree is None or tree == "" else {prefix: str(tree)}


@dataclass(frozen=True)
class DemoResult:
    """What the demo trained and measured. program: how to call freetf; seconds: in total."""

    program: str
    folder: str
    baseline: TrainResult
    free: TrainResult
    agreement: list[Agreement]
    seconds: float

    def report(self) -> Report:
        position = next((one for one in self.agreement if one.factor == "position" and "×" in one.ratio()), None)
        sentence = position and (
            f"Targets start at the same place {position.ratio().replace('×', 'times')} as often when Z is shared as across groups "
            f"({share(position.within)} against {share(position.across)} of pairs)."
        )
        free, baseline = shlex.quote(self.free.run), shlex.quote(self.baseline.run)
        facts = [("done in", duration(self.seconds)), ("runs", f"{baseline}, {free}")]
        facts.append(("reports", f"{baseline}/report.html, {free}/report.html"))
        words = ("recipe list", f"sample {free} --prompt 'Q>' --z shared --groups 2 --count 5", f"probe-latent {free}", f"show {free}")
        tries = [Note(f"{self.program} {command}", "command") for command in words]
        return Report("", [agreement_table(self.agreement), Note(sentence or "", "strong"), Facts(facts), Section("Try next:", tries)])
