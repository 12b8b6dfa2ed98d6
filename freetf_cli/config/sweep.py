"""Many runs of a recipe: its variants, a grid of settings and several seeds, each run with a name of its own."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from freetf_cli.config.files import expand
from freetf_cli.config.layers import parse_setting
from freetf_cli.errors import InputError

MOST_RUNS = 10_000
LONGEST_NAME = 120  # characters; a file system's limit is 255 bytes


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep. settings: `table.key=value`, as `--set` takes them."""

    name: str
    recipe: str
    settings: tuple[str, ...]


def plan_sweep(recipe: str, settings: Sequence[str] = (), seeds: Sequence[int] | None = None) -> list[PlannedRun]:
    """Every combination of the recipe's variants, the values of each setting (`latent.kappa=0.25,0.5`), and the seeds.

    A run's name depends on its own recipe, settings and seed only: a larger sweep into the same folder finds the runs of a smaller one.
    """
    recipes, choices = expand(recipe), [_choices(text) for text in settings]
    keys = [text.partition("=")[0].strip() for text in settings] + ([] if seeds is None else ["train.seed"])
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        hint = "--seeds sets it too" if twice == "train.seed" and seeds is not None else f"give all its values at once: --set {twice}=A,B"
        raise InputError(f"--set {twice} is given twice: every run would have the last value", hint=hint)
    choices += [] if seeds is None else [[f"train.seed={seed}" for seed in seeds]]
    if len(recipes) * math.prod(map(len, choices)) > MOST_RUNS:
        raise InputError(f"the sweep has more than {MOST_RUNS:,} runs")
    return [PlannedRun(_name(one, chosen), one, chosen) for one in recipes for chosen in itertools.product(*choices)]


def parse_seeds(text: str) -> list[int]:
    """`0..4` or `0,1,2` or both, `0..2,7`, as numbers; `0..4` includes 4."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,10})(?:\.\.(\d{1,10}))?\s*", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last or last - first >= MOST_RUNS or last >= 1 << 32:
            what = f"--seeds: the range {part.strip()} is empty" if found and first > last else f"--seeds takes numbers, not '{text}'"
            raise InputError(what, hint="for example --seeds 0..4, or --seeds 0,1,2")
        seeds += range(first, last + 1)
    return seeds


def split_values(text: str) -> list[str]:
    """The TOML values of a list without brackets: split at commas that are in no list, table or string."""
    values, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        depth += 0 if quote else (char in "[{") - (char in "]}")
        if char == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += char
    return [value.strip() for value in values]


def _choices(setting: str) -> list[str]:
    """`train.lr=1e-3,1e-4` as one setting for each value."""
    parse_setting(setting)  # InputError if it is none
    key, _, values = setting.partition("=")
    return [f"{key.strip()}={value}" for value in split_values(values)]


def _name(recipe: str, settings: Sequence[str]) -> str:
    """`figure4-8th-kappa0.25-s0`: the recipe, each setting by its key's last word, the seed."""
    file = re.fullmatch(r"(?:.*/)?([^/]+)\.toml((?:/[^/]+)?)", recipe)
    words = [(file[1] + file[2] if file else recipe.strip("./")).replace("/", "-")]
    parts = [setting.partition("=") for setting in settings]
    last = [key.rpartition(".")[2] for key, _, _ in parts]
    for (key, _, value), short in zip(parts, last, strict=True):
        words.append(f"s{value}" if key == "train.seed" else f"{short if last.count(short) == 1 else key}{_plain(value)}")
    name = "-".join(words)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 7]}_{_hash(name)}"


def _plain(value: str) -> str:
    """A value as part of a file name; a hash tells apart those that only differ in other characters."""
    plain = re.sub(r"[^\w.+-]+", "_", value.strip("\"'")).strip("_")
    return plain if plain == value.strip("\"'") else f"{plain[:40]}_{_hash(value)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
