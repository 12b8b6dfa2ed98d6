"""Recipes: everything that decides a run, in one TOML file, checked before anything is computed.

Later wins: defaults < the recipe that `extends` names < the file < its `[smoke]` overlay (with `--smoke`) < `--set`.
Unknown keys are errors that name the nearest right one, and all errors of a recipe are shown at once.

    recipe = load_recipe("letters-free", overrides=["latent.kappa=0.25"])
    recipe.latent.kappa        # bits per token
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from freetf_cli.errors import InputError, InputErrors, nearest
from freetf_cli.recipe_rules import faults

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]


class Part(BaseModel):
    """A table of a recipe: immutable, strict about types, no unknown keys, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    TABLE: ClassVar[str] = ""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        """The rules between keys, `recipe_rules`."""
        if self.TABLE and (broken := faults({f"{self.TABLE}.{name}": getattr(self, name) for name in type(self).model_fields})):
            raise ValueError("; ".join(fault.message for fault in broken))
        return self


class DataConfig(Part):
    """Where the sequences come from: a synthetic `task` made in memory, or a prepared folder `dir`."""

    TABLE: ClassVar[str] = "data"

    task: Literal["letters", "coins", "reviews", "blocks"] | None = Field(None, description="synthetic task, generated in memory")
    params: dict[str, int | float | str] = Field(default_factory=dict, description="the task's parameters")
    dir: str | None = Field(None, description="folder made by `freetf prepare` or `freetf gen-synthetic`")
    rows: Literal["auto", "documents", "packed"] = Field(
        "auto", description="a document a row, or windows over the packed stream; auto: documents for tasks, packed for text"
    )


class ModelConfig(Part):
    """The decoder, shared by a baseline and its Free Transformer."""

    TABLE: ClassVar[str] = "model"

    layers: Positive = Field(le=1024, description="blocks, L; even for a Free model")
    width: Positive = Field(le=1 << 17, description="model width, D")
    heads: Positive = Field(description="query heads")
    kv_heads: Positive | None = Field(None, description="key/value heads (grouped-query attention); default: heads")
    ffn: Positive | None = Field(None, le=1 << 20, description="SwiGLU hidden width; default: 8/3 of the width, rounded up to 32")
    vocab: Positive | None = Field(None, le=1 << 24, description="vocabulary size; default: the tokenizer's")
    context: Positive | None = Field(None, le=1 << 24, description="input positions a row, T; default: the task's row length")
    tied: bool = Field(True, description="the read-out shares the embedding table")
    rope_base: Rate = Field(10_000.0, description="base of the rotary embedding")
    norm_eps: Rate = Field(1e-5, description="epsilon of RMSNorm")

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def hidden(self) -> int:
        """The SwiGLU's hidden width."""
        return self.ffn or -(-8 * self.width // 3 // 32) * 32

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class LatentConfig(Part):
    """The latent Z of a Free Transformer. A recipe without this table is a baseline."""

    TABLE: ClassVar[str] = "latent"

    kappa: Annotated[float, Field(ge=0)] = Field(description="free bits per token, κ")
    bits: Annotated[int, Field(ge=1, le=24)] = Field(16, description="bits of Z per token, H")
    depth: Positive | None = Field(None, description="blocks before Z is injected; default: layers / 2")
    window: Positive | None = Field(
        None, description="positions, from the first, whose Z is inferred; the Z of later ones is the prior's in training too. Default: all"
    )
    free_bits: Literal["token", "sequence"] = Field(
        "token", description="κ is granted to each token (the paper's equation 5) or pooled over a sequence"
    )
    slope: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="weight of the KL below κ (0: the paper's objective; 1: no free bits, the ELBO)"
    )
    mismatch: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of the aggregate posterior's divergence from the prior (0: the paper's objective)"
    )
    mismatch_over: Literal["sequence", "token"] = Field(
        "sequence", description="that divergence of all of a sequence's bits together, or of each token's, summed"
    )
    schedule: dict[Literal["kappa", "slope", "mismatch"], list[list[float]]] = Field(
        default_factory=dict,
        description="ways to `kappa`, `slope` and `mismatch`: points `[share of the run, value]`, and a last `[share]` where it is reached",
    )
    gradient: Literal["paper", "heun"] = Field(
        "paper", description="estimate of the bits' gradient: the paper's equation 8, or with the slopes at both values of a bit"
    )
    table_init: Literal["bits", "independent"] = Field(
        "bits", description="rows of the post-sampler from H bit directions, or each drawn by itself"
    )
    table_std: Annotated[float, Field(ge=0)] = Field(1.5, description="standard deviation of the post-sampler's entries at the start")
    encoder: Literal["shared", "full"] = Field(
        "shared", description="the encoder reads the decoder's lower half (the paper), or a stack of its own (its Figure 1b)"
    )


class TrainConfig(Part):
    """Optimisation."""

    TABLE: ClassVar[str] = "train"

    steps: Positive = Field(description="optimizer steps")
    batch: Positive = Field(description="sequences a step")
    lr: Rate = Field(description="peak learning rate of AdamW")
    lr_final: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="the cosine's end, as a share of lr")
    warmup: NotNegative = Field(0, description="steps of linear warm-up")
    accumulate: Positive = Field(1, description="parts that a batch is split into, one forward each")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.1, description="for matrices only; never for norms, embeddings, or the latent table"
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="decay of AdamW's mean gradient")
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.95, description="decay of AdamW's mean squared gradient")
    eps: Rate = Field(1e-8, description="epsilon of AdamW")
    clip: Annotated[float, Field(ge=0)] = Field(1.0, description="largest gradient norm; 0: no clipping")
    seed: NotNegative = Field(0, lt=1 << 32, description="of weights, data order and latent noise")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on CUDA, fp32 elsewhere")
    compile: Literal["auto", "on", "off"] = Field("auto", description="torch.compile; auto: on CUDA")
    cuda_graph: Literal["auto", "on", "off"] = Field("auto", description="replay a step as one CUDA graph; auto: on CUDA")
    deterministic: bool = Field(False, description="CUDA: only deterministic kernels")
    log_every: Positive = Field(10, description="steps between lines of metrics.jsonl")
    save_every: NotNegative = Field(0, description="steps between checkpoints; 0: at evaluations")
    keep_last: Positive = Field(1, description="newest checkpoints kept, beside the best")


class EvalConfig(Part):
    """Evaluation on the held-out split, and the samples that the report shows."""

    TABLE: ClassVar[str] = "eval"

    every: NotNegative = Field(0, description="steps between evaluations; 0: at the end only")
    sequences: Positive = Field(512, description="held-out sequences, the same each time")
    split: str = Field("val", description="the held-out split")
    samples: NotNegative = Field(4, description="sequences in each group of samples kept with the run")


class ParallelConfig(Part):
    """How the work is spread."""

    TABLE: ClassVar[str] = "parallel"

    threads: NotNegative = Field(0, description="CPU threads of torch; 0: its own choice")


class Recipe(Part):
    """A whole run, resolved."""

    description: str = ""
    data: DataConfig
    model: ModelConfig
    latent: LatentConfig | None = None
    train: TrainConfig
    eval: EvalConfig = Field(default_factory=EvalConfig)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)

    @property
    def kind(self) -> Literal["baseline", "free"]:
        return "free" if self.latent else "baseline"

    @model_validator(mode="after")
    def _rules_between_tables(self) -> Self:
        if broken := faults(flat(self)):
            raise ValueError("; ".join(fault.message for fault in broken))
        return self


# --- reading ---------------------------------------------------------------------------------------------------------


def recipe_folder() -> Path:
    """The shipped recipes: inside the wheel, or beside the package in a checkout."""
    packaged = Path(str(resources.files("freetf_cli"))) / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parent.parent / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in recipe_folder().glob("*.toml"))


def load_recipe(name: str, *, smoke: bool = False, overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge and check a recipe.

    name: a path to a TOML file, or the name of a shipped recipe. overrides: `table.key=TOML value`, as `--set` takes them.
    Raises InputErrors with every fault of the recipe at once.
    """
    path = find_recipe(name)
    tree = _read_tree(path, seen=())
    overlay = tree.pop("smoke", None)
    if smoke:
        if overlay is None:
            raise InputError("the recipe has no [smoke] overlay", str(path))
        if not isinstance(overlay, Mapping):
            raise InputError("'smoke' must be a table", str(path))
        tree = _merge(tree, overlay)
    for text in overrides:
        tree = _merge(tree, _parse_override(text, tree))
    return check_recipe(tree, where=path, overrides=overrides)


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path if there is one, else a shipped name."""
    path = Path(name)
    if _is_file(path):
        return path
    if path.suffix == ".toml" or "/" in name:
        raise InputError("no such recipe file", name, "`freetf recipe list` shows the shipped ones")
    shipped = recipe_folder() / f"{name}.toml"
    if not _is_file(shipped):
        raise InputError(f"no recipe named '{name}'", hint=nearest(name, shipped_recipes()))
    return shipped


def _is_file(path: Path) -> bool:
    """Path.is_file, where a name that no file can have is no file instead of an error."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def check_recipe(tree: Mapping[str, Any], *, where: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """A Recipe from plain data; raises InputErrors naming file, key and line of each fault, or the override that made it."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        text = Path(where).read_text(encoding="utf-8") if Path(where).is_file() else ""
        found, wrong = [], set()
        for item in error.errors():
            names = [str(name) for name in item["loc"]]
            if item["type"] != "value_error":  # those are rules, which all are asked below
                found.append(_fault(dict(item), _place([names], where, text, overrides)))
                wrong.add(".".join(names))
        for keys, message in faults({key: value for key, value in _with_defaults(tree).items() if key not in wrong}):
            found.append(InputError(message, _place([key.split(".") for key in keys], where, text, overrides)))
        raise InputErrors(found) from None


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML that `load_recipe` reads back to the same recipe."""
    tree = recipe.model_dump(exclude_none=True)
    lines = [f"description = {_toml_value(tree.pop('description'))}"]
    for table, values in tree.items():
        lines += ["", f"[{table}]"]
        lines += [f"{key} = {_toml_value(value)}" for key, value in values.items() if value != {}]
    return "\n".join(lines) + "\n"


def flat(recipe: Recipe) -> dict[str, Any]:
    """The recipe's settings as `{"train.lr": 0.001, …}`."""
    tree = recipe.model_dump(exclude={"description"})
    return {f"{table}.{key}": value for table, values in tree.items() if values is not None for key, value in values.items()}


def differences(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """(key, value in a, value in b) where they differ; a missing setting is None, each of the task's parameters is a key of its own."""
    ours, theirs = _settings(a), _settings(b)
    keys = list(dict.fromkeys([*ours, *theirs]))
    return [(key, ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)]


def _settings(recipe: Recipe) -> dict[str, Any]:
    settings = flat(recipe)
    params = settings.pop("data.params")
    return {**{f"data.params.{key}": value for key, value in params.items()}, **settings}


def _read_tree(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """One file's tables, over those of the recipe that it extends."""
    try:
        tree = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InputError("the recipe is not UTF-8 text", str(path)) from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the recipe is not valid TOML: {error}", str(path)) from None
    except RecursionError:
        raise InputError("the recipe is nested too deeply", str(path)) from None
    except OSError as error:
        raise InputError(f"the recipe cannot be read: {error.strerror}", str(path)) from None
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise InputError("'extends' must name a recipe", str(path))
    beside = path.parent / f"{parent}.toml"
    target = (beside if _is_file(beside) else find_recipe(parent)).resolve()
    if target in (*seen, path.resolve()):
        raise InputError(f"'extends' goes in a circle through '{parent}'", str(path))
    return _merge(_read_tree(target, (*seen, path.resolve())), tree)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, tables key by key, an empty schedule in place of any; naming one source of data drops the other."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and (value or key != "schedule"):
            kept = dict(merged[key])
            if key == "data" and "task" in value:
                kept = {k: v for k, v in kept.items() if k != "dir"}
                if value["task"] != kept.get("task"):
                    kept.pop("params", None)
            if key == "data" and "dir" in value:
                kept = {k: v for k, v in kept.items() if k not in ("task", "params")}
            merged[key] = _merge(kept, value)
        else:
            merged[key] = value
    return merged


def _parse_override(text: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """`train.lr=3e-4` as a tree; the value is TOML, or a plain word."""
    key, equals, raw = text.partition("=")
    names = key.strip().split(".")
    if not equals or len(names) < 2 or not all(names):
        raise InputError(f"--set takes table.key=value, not '{text}'", hint="for example --set train.lr=3e-4")
    if names[0] == "latent" and "latent" not in tree:
        raise InputError(f"--set {key.strip()}: this recipe is a baseline, it has no [latent] table", hint="start from a Free recipe")
    value = _override_value(raw)
    for name in reversed(names):
        value = {name: value}
    return dict(value)


def _override_value(raw: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return raw.strip()
    return parsed["value"] if len(parsed) == 1 else raw.strip()  # a line break in it must not smuggle in other keys


def _place(keys: Sequence[Sequence[str]], where: Path | str, text: str, overrides: Sequence[str]) -> str:
    """Where a fault of some keys comes from: the last `--set` of one of them, or the file and its line."""
    for override in reversed(overrides):
        given = override.partition("=")[0].strip().split(".")
        if any(names and given[: len(names)] == [*names] for names in keys):
            return f"--set {override}"
    line = next((line for names in keys if (line := _line_of(names, text))), None)
    return f"{where}" + (f", line {line}" if line else "")


def _with_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Flat values of a tree that may be wrong in any way, defaults filled in."""
    values = {}
    for table, part in _part_types().items():
        given = tree.get(table)
        if isinstance(given, Mapping):
            for name, field in part.model_fields.items():
                if name in given or not field.is_required():
                    values[f"{table}.{name}"] = given.get(name, field.get_default(call_default_factory=True))
    return values


def _fault(item: Mapping[str, Any], place: str) -> InputError:
    """One pydantic error as a line: what, the place, and a hint."""
    names = [str(name) for name in item["loc"]]
    key = ".".join(names)
    kind, message = item["type"], item["msg"]
    if kind == "extra_forbidden":
        return InputError(f"unknown key '{key}'", place, nearest(names[-1], _known_keys(names[:-1])))
    if kind == "missing":
        return InputError(f"missing key '{key}'", place)
    shown = repr(item.get("input"))
    return InputError(f"{key}: {message[:1].lower()}{message[1:]}, not {shown[:60]}", place)


def _known_keys(table: Sequence[str]) -> Iterator[str]:
    """The keys that a table of the recipe may have."""
    model: Any = Recipe
    for name in table:
        model = _part_types().get(name, model)
    yield from model.model_fields
    if model is Recipe:
        yield from ("extends", "smoke")


def _part_types() -> dict[str, type[Part]]:
    return {
        "data": DataConfig,
        "model": ModelConfig,
        "latent": LatentConfig,
        "train": TrainConfig,
        "eval": EvalConfig,
        "parallel": ParallelConfig,
    }


def _line_of(names: Sequence[str], text: str) -> int | None:
    """The line of a recipe's text where a key stands, by itself or in a table on one line."""
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[([^\]]+)\]", line):
            table = header[1].strip()
            if names == [table]:
                return number
        if assignment := re.match(r"\s*([\w.-]+)\s*=", line):
            path = [*(table.split(".") if table else []), *assignment[1].split(".")]
            if path == list(names[: len(path)]):
                return number
    return None


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = "".join(
            f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else c for c in value.replace("\\", "\\\\").replace('"', '\\"')
        )
        return f'"{escaped}"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml_value(item)}" for key, item in value.items()) + "}"
    return repr(value)
