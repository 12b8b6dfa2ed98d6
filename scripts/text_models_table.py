"""Turns the records of a run into its line in OUT.json, and the lines of many runs into tables (scripts/text_models.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from resumable import mean_text
from text_models_worker import FACTS, MEASURES, METRICS, family

BASELINES = {  # what the others of a recipe file are compared with
    **dict.fromkeys(("text-50m", "film-reviews"), "baseline"),
    **dict.fromkeys(("text-attention", "text-attention-long", "text-attention-retrofit"), "softmax"),
    "attention-ablations": "multi-token",
}
FAULTS = {"Z is unused": "unused", "Z copies": "copying", "Z from the prior": "prior Z misleads"}  # training's warnings
MISSING = "not measured yet"

Run = Mapping[str, Any]
Value = Callable[[Run], float | None]


def record(found: Mapping[str, Run]) -> dict[str, Any]:
    """A run's line in OUT.json, made from the records in its folder."""
    facts = dict(found[FACTS])
    wanted = facts.pop("wanted")
    measured = {name: COMPACT.get(name, _benchmark)(found[name]) for name in wanted if name in found}
    return {**facts, "missing": [name for name in wanted if name not in found], **measured}


def _likelihood(found: Run) -> dict[str, Any]:
    facts = {name: found[name] for name in ("sequences", "tokens", "proposal")}
    bound = {one["samples"]: _round(one["nll"]["nats_per_token"]) for one in found["bound"]}
    return facts | _costs(found, ("nll", "elbo", "ce_posterior", "kl", "ce_prior")) | ({"bound": bound} if bound else {})


def _by_label(found: Run) -> dict[str, Any]:
    labels = {
        one["label"]: {"windows": one["sequences"], "bits_per_byte": _round(one["nll"]["bits_per_byte"])}
        | _costs(one, ("nll", "ce_posterior", "kl", "ce_prior"))
        for one in found["labels"]
    }
    return {"draws": found["draws"], "labels": labels, "left_out": found["left_out"]}


def _persistence(found: Run) -> dict[str, Any]:
    kl = {"kl": [_round(one["value"]) for one in found["kl"]], "kl_all": [_round(one) for one in found["kl_all"]]}
    return {"sequences": found["sequences"], "tokens": _estimate(found["tokens"]), "total": _estimate(found["total"])} | kl


def _probe(found: Run) -> dict[str, Any]:
    factors = (found["intervention"] or {"factors": []})["factors"]
    information = {one["factor"]: {name: _estimate(one[name]) for name in ("information", "shuffled", "entropy")} for one in factors}
    names, read = ("factor", "source", "probe"), ("bits", "accuracy")
    decoded = [{name: one[name] for name in names} | {name: _estimate(one[name]) for name in read} for one in found["decoding"]]
    return {"information": information, "decoding": decoded, "verdict": found["verdict"]["label"], "notes": found["notes"]}


def _codes(found: Run) -> dict[str, Any]:
    names = ("share", "prior")
    values = {one["value"]: {"bits": one["bits"]} | {name: _estimate(one[name]) for name in names} for one in found["codes"]}
    return {"label": found["label"], "texts": found["texts"], "values": values, "notes": found["notes"]}


def _benchmark(found: Run) -> dict[str, Any]:
    """The record's only benchmark. grids: the mean score in each row and column."""
    (one,) = found["tasks"]
    facts = {name: one[name] for name in ("items", "metric", "chance", "truncated")}
    grids = [
        {name: grid[name] for name in ("title", "rows", "columns")}
        | {"scores": [[None if score is None else _round(score["value"]) for score in row] for row in grid["scores"]]}
        for grid in one["grids"]
    ]
    scores = {name: _estimate(score) for name, score in one["scores"].items()}
    return {"steps": found["steps"], "draws": found["draws"], **facts, "scores": scores} | ({"grids": grids} if grids else {})


COMPACT = {"likelihood": _likelihood, "by_label": _by_label, "persistence": _persistence, "probe": _probe, "codes": _codes}


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def _estimate(found: Run | None) -> list[float | None] | None:
    return None if found is None else [_round(found[name]) for name in ("value", "low", "high")]


def _costs(found: Run, names: Sequence[str]) -> dict[str, list[float | None]]:
    """Costs in nats per token; a baseline has only some of them."""
    ends = ("nats_per_token", "low", "high")
    return {name: [_round(found[name][end]) for end in ends] for name in names if found[name] is not None}


def table(runs: Mapping[str, Run], recipes: Sequence[str]) -> Iterator[list[str]]:
    """The heading, and a row for each recipe of a file with means over its runs. Runs with other settings have a row of their own."""
    file, variants = family(recipes[0]), [_variant(recipe) for recipe in recipes]
    own = [run for run in runs.values() if family(run["recipe"]) == file]
    baselines = {_settings(run): run for run in own if _variant(run["recipe"]) == BASELINES[file]}
    arms: dict[str, list[Run]] = {}
    for run in own:
        if _variant(run["recipe"]) in variants:
            other = baselines.get(_settings(run))
            excess = {} if other is None or other is run else {"excess": _difference(run, other)}
            arms.setdefault(", ".join([_variant(run["recipe"]), *run["settings"]]), []).append({**run, **excess})
    shown = columns([run for each in arms.values() for run in each])
    yield [file, "runs", *shown, "training's warning"]
    for arm, each in arms.items():
        yield [arm, str(len(each)), *(_cell([value(run) for run in each], digits) for value, digits in shown.values()), _faults(each)]
    there = {_variant(run["recipe"]) for each in arms.values() for run in each}
    for variant in variants:
        if variant not in there:
            yield [variant, MISSING, *[""] * (len(shown) + 1)]


def _variant(recipe: str) -> str:
    return recipe.rpartition("/")[2]


def _settings(run: Run) -> tuple[str, ...]:
    """The settings and the seed, which a run shares with its baseline."""
    return (*run["settings"], str(run["seed"]))


def columns(runs: Sequence[Run]) -> dict[str, tuple[Value, int]]:
    """The columns in which any of these runs has a value. For each, how to read it from a run, and the decimals shown."""
    costs = {"nll": "nll", "CE, posterior Z": "ce_posterior", "CE, prior Z": "ce_prior", "KL": "kl"}
    found = {name: (_at("likelihood", key), 4) for name, key in costs.items()}
    found = {"nll": found.pop("nll"), "above the baseline": (_at("excess"), 4), **found}
    for label in _keys(runs, "by_label", "labels"):
        found[f"{label}, bits/byte"] = _at("by_label", "labels", label, "bits_per_byte"), 4
    found["persistence, tokens"] = _at("persistence", "tokens"), 1
    for factor in _keys(runs, "probe", "information"):
        found[f"I(Z; {factor}), bits"] = _at("probe", "information", factor, "information"), 3
    found["read from posterior Z, bits"] = _decoded, 3
    for value in _keys(runs, "codes", "values"):
        for name, of in (("codes", "share"), ("prior Z", "prior")):
            found[f"{value}, {name}, %"] = _at("codes", "values", value, of, scale=100), 1
    for name in (name for name in dict.fromkeys(sum(METRICS.values(), ())) if name not in MEASURES):
        found |= _scores(name, [run[name] for run in runs if name in run])
    return {name: column for name, column in found.items() if any(column[0](run) is not None for run in runs)}


def _scores(name: str, found: Sequence[Run]) -> dict[str, tuple[Value, int]]:
    """The columns of a benchmark: score, perplexity and pass@k where it has them; of a grid, the mean over its last column."""
    benchmark, _, temperature = name.partition("-")
    head = f"{benchmark}, T = {temperature}" if temperature else benchmark
    if any("grids" in one for one in found):
        titles = dict.fromkeys((grid["title"], grid["columns"][-1]) for one in found for grid in one["grids"])
        return {", ".join(filter(None, (head, *title, "%"))): (_longest(name, *title), 1) for title in titles}
    metrics = {one["metric"] for one in found}
    scores = dict.fromkeys(score for one in found for score in one["scores"] if score in metrics or score.startswith("pass@"))
    columns = {f"{head} {score}, %": (_at(name, "scores", score, scale=100), 1) for score in scores}
    return columns | {f"{head} perplexity": (_at(name, "scores", "perplexity"), 1)}


def _longest(name: str, title: str, column: str) -> Value:
    """The mean over the last column of a grid, in per cent."""

    def value(run: Run) -> float | None:
        for grid in run.get(name, {}).get("grids", ()):
            if (grid["title"], grid["columns"][-1]) == (title, column):
                scores = [row[-1] for row in grid["scores"] if row[-1] is not None]
                return 100 * sum(scores) / len(scores) if scores else None
        return None

    return value


def _at(*path: str, scale: float = 1) -> Value:
    """Reads the value at a path of a run's line; of an estimate, the value without its interval."""

    def value(run: Run) -> float | None:
        found: Any = run
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        found = found[0] if isinstance(found, list) else found
        return None if found is None else scale * found

    return value


def _keys(runs: Sequence[Run], *path: str) -> list[str]:
    """All keys of the tables at a path."""
    tables = [run.get(path[0], {}).get(path[1], {}) for run in runs]
    return list(dict.fromkeys(key for one in tables for key in one))


def _decoded(run: Run) -> float | None:
    """The most bits of a label that any probe reads from the posterior's Z."""
    bits = [one["bits"][0] for one in run.get("probe", {}).get("decoding", ()) if one["source"] == "Z" and one["bits"][0] is not None]
    return max(bits, default=None)


def _difference(run: Run, other: Run) -> float | None:
    """How much more the run costs than its baseline, if both were measured on the same windows."""
    if any(_at("likelihood", name)(run) != _at("likelihood", name)(other) for name in ("sequences", "tokens")):
        return None
    a, b = (_at("likelihood", "nll")(one) for one in (run, other))
    return None if a is None or b is None else a - b


def _cell(values: Sequence[float | None], digits: int) -> str:
    """A mean over runs. The number of runs stands in parentheses if some have no value."""
    measured = sum(value is not None for value in values)
    return mean_text(values, digits, half=True) + (f" ({measured})" if 0 < measured < len(values) else "")


def _faults(runs: Sequence[Run]) -> str:
    """How many runs ended with each of training's warnings: `unused in 1`."""
    if runs[0]["kind"] != "free":
        return "–"
    counts = {words: sum(run["fault"].startswith(begin) for run in runs) for begin, words in FAULTS.items()}
    return ", ".join(f"{words} in {count}" for words, count in counts.items() if count) or "none"
