"""The tables `[train]`, `[eval]` and `[parallel]`: how a run goes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from freetf_cli.config.table import ConfigTable, NotNegative, Positive, Rate, Weight, rule

Choice = Literal["auto", "on", "off"]
Float8 = Literal["off", "tensorwise", "rowwise"]


class EncoderConfig(ConfigTable):
    """How the encoder is updated beside the decoder. The defaults are the paper's: every step updates both, at one learning rate."""

    lr_scale: Rate = Field(1.0, description="learning rate of the encoder, as a multiple of the decoder's (`train.lr`, scheduled)")
    turns: Literal["together", "alternating", "lagging"] = Field(
        "together",
        description="what a step updates: both; in turn the encoder for `steps` steps and the decoder for one; or, as He et al. (arXiv"
        " 1901.05534), in turn while the encoder lags, until I(S; Z) of held-out rows no longer rises, and both from then on",
    )
    steps: Positive = Field(1, description="steps of the encoder before each one of the decoder; lagging: the most of them")
    check_every: Positive = Field(100, description="lagging: training steps between two measurements of I(S; Z)")

    @property
    def is_apart(self) -> bool:
        """Whether anything differs from one update of all parameters."""
        return self.turns != "together" or self.lr_scale != 1.0

    @rule("steps", "turns")
    def _turns_have_steps(self) -> str | None:
        if self.turns != "together" or self.steps == 1:
            return None
        return f"train.encoder.steps = {self.steps} needs train.encoder.turns = 'alternating' or 'lagging'"


class TrainConfig(ConfigTable):
    """Optimisation."""

    steps: Positive = Field(le=1 << 40, description="optimizer steps")
    batch: Positive = Field(le=1 << 24, description="sequences per step")
    lr: Rate = Field(description="peak learning rate of AdamW")
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="final learning rate as a share of lr (cosine schedule)")
    warmup: NotNegative = Field(0, description="steps of linear warm-up")
    grad_accum_steps: Positive = Field(1, description="number of parts that a batch is split into, with one forward pass each")
    weight_decay: Weight = Field(0.1, description="for matrices only, not for norms, embeddings or the latent table")
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="decay of AdamW's mean gradient")
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.95, description="decay of AdamW's mean squared gradient")
    eps: Rate = Field(1e-8, description="epsilon of AdamW")
    grad_clip: Weight = Field(1.0, description="largest gradient norm; 0: no clipping")
    seed: NotNegative = Field(0, lt=1 << 32, description="seed of weights, data order and latent noise")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on CUDA, fp32 elsewhere")
    float8: Float8 = Field(
        "off",
        description="8-bit floating point in the blocks' wide linear layers, with one scale per tensor, or one per row and column;"
        " in training only; needs torchao and a recent GPU",
    )
    compile: Choice = Field("auto", description="torch.compile; auto: on CUDA")
    cuda_graph: Choice = Field("auto", description="replay a step as one CUDA graph; auto: on CUDA")
    attention_checkpointing: Choice = Field(
        "auto",
        description="recompute the attention weights of multi-token and talking-heads attention in the backward pass: slower, less memory;"
        " auto: if all of the model's attention weights are 2²⁸ numbers or more",
    )
    activation_checkpointing: Literal["none", "full", "selective", "budget"] = Field(
        "none",
        description="what the backward pass recomputes in the blocks: nothing; all but a block's input; all but attention and every"
        " second matrix product; or what torch.compile chooses to stay within half of the memory",
    )
    deterministic: bool = Field(False, description="CUDA: use deterministic kernels only")
    log_every: Positive = Field(10, description="steps between lines of metrics.jsonl")
    save_every: NotNegative = Field(0, description="steps between checkpoints; 0: at evaluations")
    keep_last: Positive = Field(1, description="number of newest checkpoints to keep, beside the best")
    keep_every: NotNegative = Field(0, description="keep a checkpoint of every so many steps for good; 0: none")
    skip_limit: NotNegative = Field(2, description="consecutive steps that may be skipped for a loss or gradient that is not finite")
    encoder: EncoderConfig = Field(default_factory=EncoderConfig, description="updates of the encoder, below")

    @rule("grad_accum_steps", "batch")
    def _parts_divide_the_batch(self) -> str | None:
        if self.batch % self.grad_accum_steps == 0:
            return None
        return f"train.grad_accum_steps = {self.grad_accum_steps} does not divide train.batch = {self.batch}"


class EvalConfig(ConfigTable):
    """Evaluation on the held-out split, and the samples that the report shows."""

    every: NotNegative = Field(0, description="steps between evaluations; 0: at the end only")
    sequences: Positive = Field(512, description="held-out sequences, the same each time")
    split: str = Field("val", description="name of the held-out split; of a task, `val` or `test`")
    samples: NotNegative = Field(4, description="sequences in each group of samples kept with the run")

    @rule("split")
    def _split_is_held_out(self) -> str | None:
        return "eval.split = 'train' is what the model learns from: name a held-out split, such as 'val'" if self.split == "train" else None


class ParallelConfig(ConfigTable):
    """How the work is spread over threads and processes."""

    threads: NotNegative = Field(0, description="CPU threads of torch; 0: its own choice")
    processes: Positive = Field(1, description="processes that train together, each on its part of every batch; on CUDA one per device")
    mode: Literal["none", "ddp", "fsdp", "hsdp"] | None = Field(
        None,
        description="what each process holds: everything (ddp), a shard of weights, gradients and moments (fsdp), or a shard within groups"
        " of parallel.shard processes that are copies of each other (hsdp); by default none for one process, ddp for several",
    )
    shard: Positive | None = Field(None, description="hsdp: processes that share one copy of the model, as many as a machine has")
    reshard_after_forward: bool = Field(True, description="fsdp, hsdp: free a block's weights between its forward and its backward")
    cpu_offload: bool = Field(False, description="fsdp, hsdp: keep weights, gradients and moments in the host's memory; slow")

    @property
    def engine(self) -> Literal["none", "ddp", "fsdp", "hsdp"]:
        """The mode, with its default resolved."""
        return self.mode or ("none" if self.processes == 1 else "ddp")

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds only a shard of the model. A run of one process holds all of it in every mode."""
        return self.processes > 1 and self.engine in ("fsdp", "hsdp")

    def shards(self, processes: int) -> int:
        """The number of parts into which the model is split."""
        return (self.shard or processes) if self.engine == "hsdp" else processes if self.is_sharded else 1

    @rule("mode", "processes")
    def _several_need_an_engine(self) -> str | None:
        if self.mode != "none" or self.processes == 1:
            return None
        return f"parallel.mode = 'none' with {self.processes} processes: they would train {self.processes} unrelated models"

    @rule("shard", "mode", "processes")
    def _shards_divide_the_processes(self) -> str | None:
        if self.shard is None:
            return "parallel.mode = 'hsdp' needs parallel.shard, the processes that share one copy" if self.mode == "hsdp" else None
        if self.engine != "hsdp":
            return f"parallel.shard is for parallel.mode = 'hsdp', not '{self.engine}'"
        if self.processes % self.shard:
            return f"parallel.shard = {self.shard} does not divide parallel.processes = {self.processes}"
        return None

    @rule("reshard_after_forward", "mode", "processes")
    def _resharding_needs_shards(self) -> str | None:
        if self.reshard_after_forward or self.engine in ("fsdp", "hsdp"):
            return None
        return f"parallel.reshard_after_forward = false is for fsdp and hsdp, not '{self.engine}'"

    @rule("cpu_offload", "mode", "processes")
    def _offload_needs_shards(self) -> str | None:
        if not self.cpu_offload or self.is_sharded:
            return None
        return f"parallel.cpu_offload is for fsdp and hsdp with several processes, not '{self.engine}' with {self.processes}"
