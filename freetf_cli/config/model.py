"""The table `[model]`, and `[model.multi_token]` within it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from freetf_cli.config.table import ConfigTable, NotNegative, Positive, Rate, known, rule

Sides = Literal["both", "pre", "post", "none"]
ATTENTION_KINDS = {  # name: class in freetf_cli.model.attention
    "softmax": "softmax.Attention",
    "multi-token": "multi_token.MultiToken",
    "differential": "differential.Differential",
    "talking-heads": "talking_heads.TalkingHeads",
}
AttentionKind = Annotated[
    str, AfterValidator(known("kind of attention", list(ATTENTION_KINDS))), Field(json_schema_extra={"enum": list(ATTENTION_KINDS)})
]


class MultiTokenConfig(ConfigTable):
    """Multi-Token Attention (arXiv 2504.00927): options of `model.attention = "multi-token"`."""

    kq: Sides = Field("both", description="key-query convolution before the softmax, after it, or on both sides")
    mix: Sides = Field("both", description="mixing of the attention weights of several heads, before or after the softmax")
    c_q: Positive = Field(6, description="kernel size of the convolution in queries: the current one and those before it")
    c_k: Positive = Field(11, description="kernel size of the convolution in keys, around the current one")
    c_h: Positive | None = Field(None, description="heads per group that are mixed; default: all")
    form: Literal["factorised", "full"] = Field(
        "factorised", description="convolution, then mixing; or, where a side has both, one kernel over queries, keys and heads"
    )
    mask: Literal["double", "exact"] = Field(
        "double",
        description="keys that the convolution before the softmax reads: up to the query that scored them, or up to the current one",
    )
    norm: Literal["gate", "depth", "plain", "none"] = Field("gate", description="RMSNorm of each head: with a gate, scaled by depth, plain")
    kq_layers: list[NotNegative] | None = Field(
        None,
        description="blocks, from 0, that have the convolution; default: 2, 6, 10, …, or the last multi-token block where none of these is",
    )
    init: Literal["identity", "zero", "constant", "random"] = Field(
        "identity",
        description="first values of convolution kernels: the identity, 0, 0.3 everywhere, or normal with deviation fan_in^-1/2;"
        " mixes start as the identity",
    )
    cache: Literal["queries", "rows"] = Field(
        "queries",
        description="what decoding keeps of earlier positions: queries, to recompute their rows, or the rows themselves (mask = double)",
    )

    @rule("form", "kq", "mix")
    def _full_form_has_both(self) -> str | None:
        sides = {self.kq, self.mix}
        if self.form != "full" or sides in ({"pre"}, {"post"}) or ("both" in sides and "none" not in sides):
            return None
        return (
            "model.multi_token.form = 'full' joins a convolution and a mix on the same side of the softmax;"
            f" kq = '{self.kq}' and mix = '{self.mix}' share no side"
        )

    @rule("cache", "mask", "kq")
    def _rows_can_be_cached(self) -> str | None:
        if self.cache != "rows" or self.mask != "exact" or self.kq not in ("pre", "both"):
            return None
        return "model.multi_token.cache = 'rows' needs mask = 'double': with 'exact', an old row scores new keys"


class ModelConfig(ConfigTable):
    """The decoder, shared by a baseline and its Free Transformer."""

    layers: Positive = Field(le=1024, description="number of blocks, L; even for a Free Transformer")
    width: Positive = Field(le=1 << 17, description="model width, D")
    heads: Positive = Field(description="query heads")
    kv_heads: Positive | None = Field(None, description="key/value heads (grouped-query attention); default: heads")
    ffn: Positive | None = Field(None, le=1 << 20, description="SwiGLU hidden width; default: 8/3 of the width, rounded up to 32")
    vocab: Positive | None = Field(None, le=1 << 24, description="vocabulary size; default: the tokenizer's")
    context: Positive | None = Field(None, le=1 << 24, description="input positions per row, T; default: the task's row length")
    tie_embeddings: bool = Field(True, description="lm_head shares the weights of the embedding table")
    rope_theta: Rate = Field(10_000.0, description="base of the rotary embedding")
    norm_eps: Rate = Field(1e-5, description="epsilon of RMSNorm")
    attention: AttentionKind = Field("softmax", description="kind of attention")
    attention_layers: list[NotNegative] | None = Field(
        None, description="blocks, from 0, that have this kind; the others have softmax attention. Default: all"
    )
    multi_token: MultiTokenConfig | None = Field(None, description="options of multi-token attention, below")
    document_mask: bool | None = Field(
        None,
        description="hide documents packed into one row from each other; default: false for softmax attention, true for the other kinds",
    )
    separator: NotNegative | None = Field(
        None, description="token that starts a document, for the document mask; default: the tokenizer's, for packed rows"
    )

    @classmethod
    def completed(cls, given: Any) -> Any:
        """Multi-token attention has its options, with their defaults if none is named."""
        if isinstance(given, Mapping) and given.get("attention") == "multi-token" and given.get("multi_token") is None:
            return {**given, "multi_token": {}}
        return given

    @classmethod
    def superseded(cls, base: Mapping[str, Any], over: Mapping[str, Any]) -> set[str]:
        """Naming a kind of attention drops the options of another."""
        kind = over.get("attention", "multi-token")
        return {"multi_token", "attention_layers"} if kind == "softmax" else set() if kind == "multi-token" else {"multi_token"}

    def attention_of(self, index: int) -> str:
        """The kind of attention of block `index`, from 0."""
        return self.attention if self.attention_layers is None or index in self.attention_layers else "softmax"

    def convolves(self, index: int) -> bool:
        """Whether block `index`, which has multi-token attention, has the key-query convolution."""
        if self.multi_token is not None and self.multi_token.kq_layers is not None:
            return index in self.multi_token.kq_layers
        blocks = [block for block in range(self.layers) if self.attention_of(block) == "multi-token"]
        return index in ([block for block in blocks if block % 4 == 2] or blocks[-1:])

    @property
    def masks_documents(self) -> bool:
        """Whether documents packed into one row are hidden from each other."""
        return self.attention != "softmax" if self.document_mask is None else self.document_mask

    @property
    def key_heads(self) -> int:
        """Key/value heads."""
        return self.kv_heads or self.heads

    @property
    def hidden(self) -> int:
        """Hidden width of the SwiGLU."""
        return self.ffn or -(-8 * self.width // 3 // 32) * 32

    @property
    def head_width(self) -> int:
        """Width of a head, model.width / model.heads."""
        return self.width // self.heads

    @rule("heads", "width")
    def _head_width_is_whole_and_even(self) -> str | None:
        if self.width % self.heads:
            return f"model.heads = {self.heads} does not divide model.width = {self.width}"
        if self.head_width % 2:
            return f"the head width, model.width / model.heads = {self.head_width}, must be even for rotary embeddings"
        return None

    @rule("kv_heads", "heads")
    def _kv_heads_divide_the_heads(self) -> str | None:
        return f"model.kv_heads = {self.kv_heads} does not divide model.heads = {self.heads}" if self.heads % self.key_heads else None

    @rule("attention", "multi_token")
    def _options_fit_the_attention(self) -> str | None:
        if self.multi_token is None or self.attention == "multi-token":
            return None
        return f"[model.multi_token] belongs to model.attention = 'multi-token', not '{self.attention}'"

    @rule("attention", "heads", "kv_heads")
    def _differential_heads_are_pairs(self) -> str | None:
        for name, count in (("heads", self.heads), ("kv_heads", self.kv_heads)):
            if self.attention == "differential" and count and count % 2:
                return f"model.{name} = {count} is odd: differential attention takes heads in pairs"
        return None

    @rule("attention_layers", "attention", "layers")
    def _attention_layers_exist(self) -> str | None:
        if self.attention_layers is not None and self.attention == "softmax":
            return "model.attention_layers names the blocks of another model.attention than 'softmax'"
        return _check_blocks("model.attention_layers", self.attention_layers, self.layers)

    @rule("multi_token.kq_layers", "attention_layers", "layers")
    def _convolutions_are_in_multi_token_blocks(self) -> str | None:
        if self.multi_token is None or self.multi_token.kq_layers is None:
            return None
        blocks, among = self.multi_token.kq_layers, self.attention_layers
        if strangers := sorted(set(blocks) - set(range(self.layers) if among is None else among)):
            return f"model.multi_token.kq_layers names block {strangers[0]}, which has no multi-token attention"
        return _check_blocks("model.multi_token.kq_layers", blocks, self.layers)

    @rule("multi_token.c_h", "heads")
    def _groups_divide_the_heads(self) -> str | None:
        group = self.multi_token.c_h if self.multi_token else None
        return f"model.multi_token.c_h = {group} does not divide model.heads = {self.heads}" if group and self.heads % group else None

    @rule("multi_token.c_q", "multi_token.kq", "context")
    def _queries_of_the_kernel_fit(self) -> str | None:
        return self._kernel_fits("c_q", self.multi_token.c_q) if self.multi_token else None

    @rule("multi_token.c_k", "multi_token.kq", "context")
    def _keys_of_the_kernel_fit(self) -> str | None:
        return self._kernel_fits("c_k", self.multi_token.c_k) if self.multi_token else None

    def _kernel_fits(self, name: str, size: int) -> str | None:
        if self.multi_token is None or self.multi_token.kq == "none" or self.context is None or size <= self.context:
            return None
        return f"model.multi_token.{name} = {size} is more than model.context = {self.context}"

    @rule("separator", "document_mask", "attention", "vocab")
    def _separator_is_a_token(self) -> str | None:
        if self.separator is None:
            return None
        if not self.masks_documents:
            return "model.separator needs model.document_mask = true"
        outside = self.vocab is not None and self.separator >= self.vocab
        return f"model.separator = {self.separator} is not a token of model.vocab = {self.vocab}" if outside else None


def _check_blocks(key: str, numbers: Sequence[int] | None, layers: int) -> str | None:
    """What is wrong with a list of blocks."""
    if numbers is None:
        return None
    if not numbers or len(set(numbers)) < len(numbers):
        return f"{key} names no block, or one twice: leave it out for its default"
    return f"{key} names block {max(numbers)}, but model.layers = {layers} has 0 to {layers - 1}" if max(numbers) >= layers else None
