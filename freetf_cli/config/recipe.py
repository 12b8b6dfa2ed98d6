"""A whole recipe: its tables, and the rules between them.

recipe = load_recipe("letters-free", overrides=["latent.kappa=0.25"])  # of config.files
recipe.latent.kappa                                                    # bits per token
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from freetf_cli.config.data import DataConfig as DataConfig
from freetf_cli.config.latent import ARCHITECTURE
from freetf_cli.config.latent import LatentConfig as LatentConfig
from freetf_cli.config.latent import NumericsConfig as NumericsConfig
from freetf_cli.config.latent import ObjectiveConfig as ObjectiveConfig
from freetf_cli.config.model import ModelConfig as ModelConfig
from freetf_cli.config.model import MultiTokenConfig as MultiTokenConfig
from freetf_cli.config.table import ConfigTable, rule, table_of
from freetf_cli.config.train import EncoderConfig as EncoderConfig
from freetf_cli.config.train import EvalConfig as EvalConfig
from freetf_cli.config.train import ParallelConfig as ParallelConfig
from freetf_cli.config.train import TrainConfig as TrainConfig

TASK_SPLITS = ("val", "test")  # held out


class Recipe(ConfigTable):
    """Everything that decides a run."""

    description: str = ""
    data: DataConfig
    model: ModelConfig
    latent: LatentConfig | None = None
    train: TrainConfig
    eval: EvalConfig = Field(default_factory=EvalConfig)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)

    @property
    def rows_at_once(self) -> int:
        """Sequences of one process in one forward pass of training."""
        return self.train.batch // self.train.grad_accum_steps // self.parallel.processes

    @property
    def kind(self) -> Literal["baseline", "free"]:
        return "free" if self.latent else "baseline"

    @property
    def architecture(self) -> dict[str, Any]:
        """The fields of `[model]` and `[latent]` that decide the weights' shapes and the forward pass, the default depth resolved."""
        found: dict[str, Any] = {"model": self.model.model_dump(), "latent": None}
        if self.latent is not None:
            found["latent"] = {**self.latent.model_dump(include=ARCHITECTURE), "depth": self.latent.depth or self.model.layers // 2}
        return found

    @rule("model.layers", "latent.depth", "latent.bits")
    def _half_the_layers_is_whole(self) -> str | None:
        if self.latent is None or self.latent.depth is not None or self.model.layers % 2 == 0:
            return None
        return f"model.layers = {self.model.layers} is odd: set latent.depth, the number of blocks before Z is injected"

    @rule("latent.depth", "model.layers")
    def _depth_is_within_the_model(self) -> str | None:
        if self.latent is None or self.latent.depth is None or self.latent.depth < self.model.layers:
            return None
        return f"latent.depth = {self.latent.depth} must be less than model.layers = {self.model.layers}"

    @rule("eval.split", "data.task")
    def _task_has_the_split(self) -> str | None:
        if self.data.task is None or self.eval.split in ("train", *TASK_SPLITS):  # EvalConfig refuses train
            return None
        return f"eval.split = '{self.eval.split}' is none of a task's held-out splits, 'val' and 'test'"

    @rule("parallel.processes", "train.grad_accum_steps", "train.batch")
    def _processes_divide_the_batch(self) -> str | None:
        parts, processes = self.train.grad_accum_steps, self.parallel.processes
        if processes == 1 or self.train.batch % (processes * parts) == 0:
            return None
        return f"parallel.processes = {processes} times train.grad_accum_steps = {parts} does not divide train.batch = {self.train.batch}"

    @rule("latent.objective.mismatch", "latent.objective.schedule", "train.batch", "train.grad_accum_steps")
    def _mismatch_has_pairs(self) -> str | None:
        if self.latent is None or not self.latent.objective.has_mismatch or self.train.batch > self.train.grad_accum_steps:
            return None
        return "latent.objective.mismatch compares sequences: train.batch / train.grad_accum_steps must be at least 2"

    @rule("latent.objective.credit_from", "train.batch", "train.grad_accum_steps", "parallel.processes", "model.context")
    def _credit_has_two_halves(self) -> str | None:
        first = 0 if self.latent is None else self.latent.objective.credit_from
        if first and self.rows_at_once < 2:
            return "latent.objective.credit_from halves the sequences: each process must have at least 2 of them in a forward pass"
        if first and self.model.context is not None and first >= self.model.context:
            return f"latent.objective.credit_from = {first} leaves no target of model.context = {self.model.context}: no credit for Z"
        return None

    @rule("train.encoder.turns", "train.encoder.lr_scale", "latent.kappa")
    def _there_is_an_encoder(self) -> str | None:
        if self.latent is not None or not self.train.encoder.is_apart:
            return None
        return "train.encoder is about the encoder of a Free Transformer: this recipe is a baseline, without [latent]"

    @rule("train.encoder.turns", "parallel.processes")
    def _one_process_measures_the_lag(self) -> str | None:
        if self.train.encoder.turns != "lagging" or self.parallel.processes == 1:
            return None
        return "train.encoder.turns = 'lagging' measures held-out rows during training, in one process only: parallel.processes = 1"

    @rule("data.teacherless", "latent.kappa")
    def _the_encoder_sees_the_row(self) -> str | None:
        if self.latent is None or not self.data.teacherless:
            return None
        return "data.teacherless is for baselines: it would hide the row from the encoder too, and Z could tell nothing of it"

    @rule("latent.every", "latent.kind", "model.document_mask", "model.separator")
    def _a_shared_z_is_of_one_document(self) -> str | None:
        if self.latent is None or self.model.separator is None or (self.latent.every == 1 and self.latent.kind != "plan"):
            return None
        what = "latent.kind = 'plan'" if self.latent.kind == "plan" else f"latent.every = {self.latent.every!r}"
        return f"{what}: documents of a row that do not see each other (model.document_mask) cannot share a Z"

    @rule("train.encoder.steps", "train.encoder.turns", "train.steps")
    def _the_decoder_has_a_turn(self) -> str | None:
        encoder = self.train.encoder
        if encoder.turns != "alternating" or encoder.steps < self.train.steps:
            return None
        return f"train.encoder.steps = {encoder.steps} leaves no step for the decoder: train.steps = {self.train.steps}"


def flat(table: ConfigTable, within: str = "") -> dict[str, Any]:
    """The settings as `{"train.lr": 0.001, "data.params.noise": 0.1, …}`, without the description. An absent table has none."""
    found: dict[str, Any] = {}
    for key, value in table:
        if isinstance(value, ConfigTable):
            found |= flat(value, f"{within}{key}.")
        elif isinstance(value, dict):
            found |= {f"{within}{key}.{name}": item for name, item in value.items()}
        elif key != "description" and table_of(type(table).model_fields[key]) is None:
            found[f"{within}{key}"] = value
    return found


def table_types(table: type[ConfigTable] = Recipe, within: str = "") -> dict[str, type[ConfigTable]]:
    """The tables of a recipe by name, `model.multi_token` after `model`."""
    found: dict[str, type[ConfigTable]] = {}
    for name, field in table.model_fields.items():
        if inner := table_of(field):
            found |= {f"{within}{name}": inner, **table_types(inner, f"{within}{name}.")}
    return found
