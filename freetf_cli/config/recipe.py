"""What a recipe says: its tables and keys with their types, defaults and meanings, which docs/recipes.md shows.

recipe = load_recipe("letters-free", overrides=["latent.kappa=0.25"])  # of recipe_file
recipe.latent.kappa                                                    # bits per token
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from freetf_cli.config.rules import faults
from freetf_cli.tasks import task_names

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[task_names()]  # a Literal, so that errors and the JSON Schema list the tasks


class Part(BaseModel):
    """A table of a recipe: immutable, strict about types, no unknown keys, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    TABLE: ClassVar[str] = ""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        """The rules between keys, `recipe_rules`."""
        if self.TABLE and (broken := faults(dict(_settings(self.TABLE, self)))):
            raise ValueError("; ".join(fault.message for fault in broken))
        return self


class DataConfig(Part):
    """Where the sequences come from: a synthetic `task` made in memory, or a prepared folder `dir`."""

    TABLE: ClassVar[str] = "data"

    task: TaskName | None = Field(None, description="synthetic task, generated in memory")
    params: dict[str, int | float | str] = Field(default_factory=dict, description="the task's parameters")
    dir: str | None = Field(None, description="folder made by `freetf prepare` or `freetf gen-synthetic`")
    rows: Literal["auto", "documents", "packed"] = Field(
        "auto", description="a document a row, or windows over the packed stream; auto: documents for tasks, packed for text"
    )


Sides = Literal["both", "pre", "post", "none"]


class MultiTokenConfig(Part):
    """Multi-Token Attention (arXiv 2504.00927), of `model.attention = "multi-token"`."""

    TABLE: ClassVar[str] = "model.multi_token"

    kq: Sides = Field("both", description="where the key-query convolution is: before the softmax, after it, on both sides")
    mix: Sides = Field("both", description="where the heads' maps are mixed")
    c_q: Positive = Field(6, description="queries in the convolution's kernel: the current one and those before it")
    c_k: Positive = Field(11, description="keys in the convolution's kernel, around the current one")
    c_h: Positive | None = Field(None, description="heads in a group that are mixed; default: all")
    form: Literal["factorised", "full"] = Field(
        "factorised", description="convolution, then mixing; or, where a side has both, one kernel over queries, keys and heads"
    )
    mask: Literal["double", "exact"] = Field(
        "double",
        description="keys that the convolution before the softmax reads: up to the query that scored them, or up to the current one",
    )
    norm: Literal["gate", "depth", "plain", "none"] = Field("gate", description="RMSNorm of each head: with a gate, scaled by depth, plain")
    kq_layers: list[NotNegative] | None = Field(
        None, description="blocks, from 0, that have the convolution; default: 2, 6, 10, …, or the last where none of those is multi-token"
    )
    cache: Literal["queries", "rows"] = Field(
        "queries", description="what decoding keeps of earlier positions: queries, to make their rows again, or the rows (mask = double)"
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
    tie_embeddings: bool = Field(True, description="lm_head shares the embedding table's weights")
    rope_theta: Rate = Field(10_000.0, description="base of the rotary embedding")
    norm_eps: Rate = Field(1e-5, description="epsilon of RMSNorm")
    attention: Literal["softmax", "multi-token", "differential", "talking-heads"] = Field("softmax", description="kind of attention")
    attention_layers: list[NotNegative] | None = Field(
        None, description="blocks, from 0, that have this kind; the others have softmax attention. Default: all"
    )
    multi_token: MultiTokenConfig | None = Field(None, description="options of multi-token attention, below")
    document_mask: bool | None = Field(
        None, description="hide documents packed in one row from each other; default: false for softmax attention, true for the other kinds"
    )
    separator: NotNegative | None = Field(
        None, description="token that begins a document, where they are kept apart; default: the tokenizer's, for packed rows"
    )

    @model_validator(mode="before")
    @classmethod
    def _with_options(cls, given: Any) -> Any:
        return with_options(given)

    def attention_of(self, index: int) -> str:
        """The kind of attention of block `index`, from 0."""
        return self.attention if self.attention_layers is None or index in self.attention_layers else "softmax"

    def convolves(self, index: int) -> bool:
        """Whether block `index`, of multi-token attention, has the key-query convolution."""
        if self.multi_token is not None and self.multi_token.kq_layers is not None:
            return index in self.multi_token.kq_layers
        blocks = [block for block in range(self.layers) if self.attention_of(block) == "multi-token"]
        return index in ([block for block in blocks if block % 4 == 2] or blocks[-1:])

    @property
    def masks_documents(self) -> bool:
        """Whether documents packed in one row are hidden from each other."""
        return self.attention != "softmax" if self.document_mask is None else self.document_mask

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
    float8: bool = Field(
        False, description="the product behind that gradient in 8-bit numbers on a GPU that has them: faster, and off by some 4 %"
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
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="the cosine's end, as a share of lr")
    warmup: NotNegative = Field(0, description="steps of linear warm-up")
    grad_accum_steps: Positive = Field(1, description="parts that a batch is split into, one forward each")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.1, description="for matrices only; never for norms, embeddings, or the latent table"
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="decay of AdamW's mean gradient")
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.95, description="decay of AdamW's mean squared gradient")
    eps: Rate = Field(1e-8, description="epsilon of AdamW")
    grad_clip: Annotated[float, Field(ge=0)] = Field(1.0, description="largest gradient norm; 0: no clipping")
    seed: NotNegative = Field(0, lt=1 << 32, description="of weights, data order and latent noise")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on CUDA, fp32 elsewhere")
    float8: bool = Field(False, description="wide linear layers of the blocks multiply in 8-bit numbers; needs torchao and a newer GPU")
    compile: Literal["auto", "on", "off"] = Field("auto", description="torch.compile; auto: on CUDA")
    cuda_graph: Literal["auto", "on", "off"] = Field("auto", description="replay a step as one CUDA graph; auto: on CUDA")
    attention_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="make the maps of multi-token and talking-heads attention once more in the backward, and keep none: slower, and less"
        " memory; auto: where all maps of the model have 2²⁸ numbers or more",
    )
    deterministic: bool = Field(False, description="CUDA: only deterministic kernels")
    log_every: Positive = Field(10, description="steps between lines of metrics.jsonl")
    save_every: NotNegative = Field(0, description="steps between checkpoints; 0: at evaluations")
    keep_last: Positive = Field(1, description="newest checkpoints kept, beside the best")
    keep_every: NotNegative = Field(0, description="checkpoints of every so many steps are kept for good; 0: none")
    skip_limit: NotNegative = Field(
        2, description="steps in a row that may be skipped, their loss or gradient being not finite, before the run fails"
    )


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
    processes: Positive = Field(1, description="that train together, each on its part of every batch; on CUDA one a device")


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
    def rows_at_once(self) -> int:
        """Sequences that a process has in one forward of training."""
        return self.train.batch // self.train.grad_accum_steps // self.parallel.processes

    @property
    def kind(self) -> Literal["baseline", "free"]:
        return "free" if self.latent else "baseline"

    @model_validator(mode="after")
    def _rules_between_tables(self) -> Self:
        if broken := faults(flat(self)):
            raise ValueError("; ".join(fault.message for fault in broken))
        return self


# --- reading ---------------------------------------------------------------------------------------------------------


def flat(recipe: Recipe) -> dict[str, Any]:
    """The recipe's settings as `{"train.lr": 0.001, …}`; a table within a table is `model.multi_token.c_q`."""
    tables = ((name, getattr(recipe, name)) for name in Recipe.model_fields)
    return {key: value for name, table in tables if isinstance(table, Part) for key, value in _settings(name, table)}


def _settings(table: str, part: Part) -> Iterator[tuple[str, Any]]:
    """Each key with its table's name before it, and its value; those of a table within it too."""
    for name in type(part).model_fields:
        value = getattr(part, name)
        if isinstance(value, Part):
            yield from _settings(f"{table}.{name}", value)
        else:
            yield f"{table}.{name}", value


def with_options(model: Any) -> Any:
    """A `[model]` as given, and the table of its kind of attention where it has one."""
    if isinstance(model, Mapping) and model.get("attention") == "multi-token" and model.get("multi_token") is None:
        return {**model, "multi_token": {}}
    return model


def part_types() -> dict[str, type[Part]]:
    """The tables of a recipe file, by name."""
    return {
        "data": DataConfig,
        "model": ModelConfig,
        "model.multi_token": MultiTokenConfig,
        "latent": LatentConfig,
        "train": TrainConfig,
        "eval": EvalConfig,
        "parallel": ParallelConfig,
    }
