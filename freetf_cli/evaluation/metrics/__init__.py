"""Metrics of `freetf evaluate`, one module each, found by listing this package.

To add a metric, add a module here with a function `evaluate`, and its test. The module's name is the value of `--task`; the first paragraph
of its docstring is its help. Two constants are optional: OPTIONS, those of `--samples`, `--temperature` and `--attempts` that it has, and
SEQUENCES, what `--sequences` is by default.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from freetf_cli.errors import InputError, nearest

if TYPE_CHECKING:
    from freetf_cli.data.batches import DataSource
    from freetf_cli.evaluation import Advance
    from freetf_cli.model.decoder import Decoder
    from freetf_cli.records.likelihood import Evaluation
    from freetf_cli.runs.checkpoint import Checkpoint

    Metric = Callable[[Checkpoint, Decoder, DataSource, "Request"], Evaluation]


@dataclass(frozen=True)
class Request:
    """What to measure."""

    run: str  # the model's name in the report
    split: str
    sequences: int = 256  # of the held-out split; all of them if it has fewer
    draws: int = 512  # of Z for each sequence, for metrics that average over Z (`--samples`)
    seed: int = 0  # of the draws of Z; the sequences do not depend on it
    temperature: float | None = None  # of generated tokens, for metrics that generate
    attempts: int | None = None  # generated answers to a question
    advance: Advance = lambda _: None  # called with the number of sequences that were just measured

    def described(self, task: str, checkpoint: Checkpoint, source: DataSource, sequences: int, seconds: float) -> dict[str, Any]:
        """The fields of an `Evaluation` of `sequences` sequences."""
        model = {"run": self.run, "kind": checkpoint.recipe.kind, "step": checkpoint.step}
        data = {"facts": source.facts, "split": self.split, "sequences": sequences, "seed": self.seed}
        return {"task": task, **model, **data, "seconds": seconds}


def metric_names() -> tuple[str, ...]:
    """The names of all metrics, sorted. Imports none of them."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(name: str) -> Metric:
    """The function `evaluate` of a metric; InputError for an unknown name."""
    return cast("Metric", _module(name).evaluate)


def own_options(name: str) -> tuple[str, ...]:
    """The options of the command line that a metric has beside those of all metrics."""
    return cast("tuple[str, ...]", getattr(_module(name), "OPTIONS", ()))


def default_sequences(name: str) -> int:
    """The number of sequences that a metric measures by default."""
    return cast("int", getattr(_module(name), "SEQUENCES", Request.sequences))


def _module(name: str) -> Any:
    if name not in metric_names():
        raise InputError(f"there is no metric '{name}'", hint=nearest(name, metric_names()))
    return importlib.import_module(f"{__name__}.{name}")


def describe(name: str) -> str:
    """The first paragraph of a metric's docstring, parsed from the source: help must not import torch."""
    tree = ast.parse(pkgutil.get_data(__name__, f"{name}.py") or b"")
    return " ".join((ast.get_docstring(tree) or "").partition("\n\n")[0].split())
