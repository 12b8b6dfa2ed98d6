"""Translates between freetf and Hugging Face: names of files and weights, and keys of config.json.

Without Z the decoder computes the same function as transformers' Llama: pre-norm blocks, grouped queries, SwiGLU, no biases, and
rotary pairs (e, e + E/2). The names of the latent's weights are those of `modeling_free_transformer.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from freetf_cli.config.recipe import LatentConfig, Recipe
from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.errors import InputError

LLAMA, FREE = "llama", "free_transformer"  # `model_type` in config.json
LLAMA_STYLE = (LLAMA, "mistral")  # mistral: Llama with sliding windows, which later Mistral models do not use
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OUTER = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "lm_head.weight": "lm_head.weight"}
INNER = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}


def hf_name(name: str) -> str:
    """`blocks.3.attention.q.weight` as `model.layers.3.self_attn.q_proj.weight`."""
    if name in OUTER:
        return OUTER[name]
    if found := re.fullmatch(r"(latent\.encoder\.block|(?:latent\.encoder\.)?blocks\.\d+)\.(.+)\.weight", name):
        block = found[1].replace("blocks.", "layers.").removeprefix("latent.")
        return f"model.{block}.{INNER[found[2]]}.weight"
    return f"model.{name.removeprefix('latent.')}"


def own_names(names: Iterable[str]) -> dict[str, str]:
    """Maps each weight's name in a Hugging Face folder to its name in the decoder. names: the decoder's."""
    return {hf_name(name): name for name in names}


def check_exportable(recipe: Recipe) -> None:
    """Raise InputError if neither Llama nor the exported modelling code can represent the model."""
    kinds = {recipe.model.attention_of(index) for index in range(recipe.model.layers)} - {"softmax"}
    if kinds:
        raise InputError(f"a model with {', '.join(sorted(kinds))} attention cannot be exported: only softmax attention can")
    if recipe.latent is not None and recipe.latent.kind != "binary":
        raise InputError(f"a latent of kind '{recipe.latent.kind}' cannot be exported: only the binary one can")
    if recipe.latent is not None and recipe.latent.every != 1:
        raise InputError(f"a model whose tokens share a Z (latent.every = {recipe.latent.every}) cannot be exported")
    if recipe.latent is not None and recipe.latent.beyond == "nothing":
        raise InputError("a model with latent.beyond = 'nothing' cannot be exported: the exported code reads a Z at every position")


def hf_config(recipe: Recipe, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of config.json for a resolved recipe."""
    model, latent, special = recipe.model, recipe.latent, special_ids(tokenizer)
    name = "LlamaForCausalLM" if latent is None else "FreeTransformerForCausalLM"
    config: dict[str, Any] = {"architectures": [name], "model_type": LLAMA if latent is None else FREE}
    if latent is not None:
        module = "modeling_free_transformer"
        config["auto_map"] = {"AutoConfig": f"{module}.FreeTransformerConfig", "AutoModelForCausalLM": f"{module}.{name}"}
    config |= {
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "intermediate_size": model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.key_heads,
        "head_dim": model.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm_eps,
        # transformers 5 reads the first; transformers 4 and older servers read the second, and would silently use 10,000 without it
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "rope_theta": model.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": model.tie_embeddings,
        "torch_dtype": "float32",
        "use_cache": True,
        **special,
    }
    return config if latent is None else config | latent_keys(recipe, latent)


def latent_keys(recipe: Recipe, latent: LatentConfig) -> dict[str, Any]:
    """The keys of config.json that only a Free Transformer has. Only training uses kappa; it is kept for further training."""
    return {
        "latent_bits": latent.bits,
        "latent_depth": recipe.architecture["latent"]["depth"],
        "latent_window": latent.window,
        "latent_encoder": latent.encoder,
        "latent_kappa": latent.kappa,
    }


def special_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    """The separator as bos, eos and padding token. None without a separator: omitted keys would default to Llama's ids 1 and 2."""
    return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.separator)


def own_tables(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The tables [model] and [latent] of a recipe, from config.json. Raises InputError for what freetf does not support."""
    check_importable(config, where)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    model = {
        "layers": config.get("num_hidden_layers"),
        "width": config.get("hidden_size"),
        "heads": config.get("num_attention_heads"),
        "kv_heads": config.get("num_key_value_heads") or config.get("num_attention_heads"),
        "ffn": config.get("intermediate_size"),
        "vocab": config.get("vocab_size"),
        "context": config.get("max_position_embeddings"),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_theta": rope.get("rope_theta", config.get("rope_theta", 10_000.0)),
        "tie_embeddings": config.get("tie_word_embeddings", False),
    }
    if missing := [key for key, value in model.items() if value is None]:
        raise InputError(f"config.json does not give the model's {missing[0]}", where)
    if config["model_type"] != FREE:
        return {"model": model}
    names = ("bits", "depth", "window", "encoder", "kappa")
    return {"model": model, "latent": {name: value for name in names if (value := config.get(f"latent_{name}")) is not None}}


def check_importable(config: Mapping[str, Any], where: str) -> None:
    """Raise InputError for an architecture or a setting that the decoder does not support."""
    kind = config.get("model_type")
    if kind not in (*LLAMA_STYLE, FREE):
        known = f"models of type {', '.join(LLAMA_STYLE)} and {FREE}"
        raise InputError(f"model_type {kind!r:.40} is another architecture than freetf's decoder", where, f"import takes {known}")
    ropes = [table for key in ("rope_scaling", "rope_parameters") if isinstance(table := config.get(key), Mapping)]
    scaled = [kind for table in ropes if (kind := table.get("rope_type", table.get("type", "default"))) != "default"]
    parts = [table.get("partial_rotary_factor", 1) for table in [*ropes, config]]
    window, context = config.get("sliding_window"), config.get("max_position_embeddings") or 0
    layers = set(config.get("layer_types") or []) - {"full_attention"}
    rules = [
        (scaled, f"RoPE scaling of type '{''.join(map(str, scaled[:1]))}': freetf's rotary embedding is not scaled"),
        (any(part != 1 for part in parts), "a partial rotary embedding: freetf rotates the whole of each head"),
        (config.get("attention_bias"), "biases in the attention (attention_bias): freetf's layers have none"),
        (config.get("mlp_bias"), "biases in the feed-forward part (mlp_bias): freetf's layers have none"),
        (kind != LLAMA and window and window < context, f"sliding-window attention of {window} positions: freetf attends to all of them"),
        (layers, f"layers of type {', '.join(sorted(map(str, layers)))}: freetf has full attention in every block"),
        (config.get("hidden_act", "silu") not in ("silu", "swish"), f"the activation '{config.get('hidden_act')}': freetf has SwiGLU"),
        (config.get("quantization_config"), "quantised weights: save the model in float32, bfloat16 or float16"),
    ]
    for broken, what in rules:
        if broken:
            raise InputError(f"the model has {what}" if not what.startswith("quantised") else what, where)
