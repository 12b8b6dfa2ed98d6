"""The Free Transformer (Fleuret, arXiv 2510.17558) as a model of Hugging Face transformers, versions 4.57 and newer.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model.generate(**tokenizer(prompt, return_tensors="pt"), z_seed=0, max_new_tokens=50)

The model is a decoder of L blocks. In block `latent_depth`, keys and values are computed from x + r, where r is the row of a table that
the code Z_t of position t selects. Codes have `latent_bits` bits and are drawn from a uniform prior before generation starts; those of the
prompt may be inferred by the encoder, one non-causal block. freetf copies this file into the folders that it exports. It needs only torch
and transformers.

Shapes: B sequences, T positions, S cached and new positions, D width, H bits, M query heads, K key/value heads, E head width.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast


class FreeTransformerConfig(PretrainedConfig):
    """The decoder's sizes, with the names that Llama has for them, and the latent's.

    latent_bits: H. latent_depth: number of blocks below the injection of Z. latent_window: number of first positions whose Z the encoder
    infers; None for all. latent_encoder: "shared" reads the hidden states after the lower blocks, "full" has its own blocks over the
    embeddings. latent_kappa: free bits per token in training.
    """

    model_type = "free_transformer"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 257,
        hidden_size: int = 64,
        intermediate_size: int = 192,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 4,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        max_position_embeddings: int = 256,
        rms_norm_eps: float = 1e-5,
        rope_theta: float = 10_000.0,
        use_cache: bool = True,
        initializer_range: float = 0.02,
        latent_bits: int = 16,
        latent_depth: int | None = None,
        latent_window: int | None = None,
        latent_encoder: str = "shared",
        latent_kappa: float | None = None,
        tie_word_embeddings: bool = True,
        **others: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.max_position_embeddings, self.rms_norm_eps, self.rope_theta = max_position_embeddings, rms_norm_eps, rope_theta
        self.use_cache, self.initializer_range = use_cache, initializer_range
        self.latent_bits, self.latent_depth = latent_bits, latent_depth or num_hidden_layers // 2
        self.latent_window, self.latent_encoder, self.latent_kappa = latent_window, latent_encoder, latent_kappa
        super().__init__(tie_word_embeddings=tie_word_embeddings, **others)


class Positions:
    """Rotary tables and masks that the blocks of one forward pass share.

    index_T: indices into Z and the cache. start: number of positions already in the cache. padding_BS: 1 for a token, 0 for padding; None
    if there is no padding. mask: a full mask from the caller.
    """

    def __init__(
        self,
        config: FreeTransformerConfig,
        index_T: Tensor,
        position_ids: Tensor,
        start: int | Tensor,
        padding_BS: Tensor | None,
        mask: Tensor | None,
        causal: bool,
    ) -> None:
        # recomputed in each pass: non-persistent buffers hold garbage after loading via the meta device
        steps = torch.arange(0, config.head_dim, 2, device=position_ids.device, dtype=torch.float32)
        angles = position_ids.to(torch.float32)[..., None] * config.rope_theta ** (-steps / config.head_dim)
        self.cos, self.sin = angles.cos()[:, :, None], angles.sin()[:, :, None]  # [B, T, 1, E/2]
        self.index_T, self.start, self.padding_BS, self.mask, self.causal = index_T, start, padding_BS, mask, causal

    def rotate(self, x_BTME: Tensor) -> Tensor:
        """Rotate each pair (e, e + E/2) of each head by the angle of its position."""
        a, b = x_BTME.chunk(2, dim=-1)
        cos, sin = self.cos.to(x_BTME.dtype), self.sin.to(x_BTME.dtype)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def visible(self, length: int, keys: int, device: torch.device) -> Tensor | None:
        """The keys that each query attends to: bool [T, S] or [B, 1, T, S], or the caller's mask. None if no explicit mask is needed."""
        if self.mask is not None:
            return self.mask[..., :keys]
        if self.padding_BS is None and isinstance(self.start, int) and (not self.causal or length in (1, keys)):
            return None
        key_S, query_T1 = torch.arange(keys, device=device), self.index_T[:, None]
        own_TS = key_S == query_T1  # also within padding, where a query without any key would give NaN
        seen_TS = key_S <= query_T1 if self.causal else torch.ones_like(own_TS)
        if self.padding_BS is None:
            return seen_TS
        real_BS = F.pad(self.padding_BS.bool(), (0, keys - self.padding_BS.shape[1]))
        return (seen_TS & real_BS[:, None, None]) | own_TS


class Attention(nn.Module):
    """Grouped-query softmax attention; queries and keys/values may come from different streams."""

    def __init__(self, config: FreeTransformerConfig, index: int | None) -> None:
        super().__init__()
        self.index, self.head_dim = index, config.head_dim
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, q_BTD: Tensor, kv_BTD: Tensor, at: Positions, cache: Cache | None) -> Tensor:
        flat = self.q_proj(q_BTD), self.k_proj(kv_BTD), self.v_proj(kv_BTD)
        q_BTME, k_BTKE, v_BTKE = (part.unflatten(-1, (-1, self.head_dim)) for part in flat)
        q_BMTE, k_BKSE, v_BKSE = (part.transpose(1, 2) for part in (at.rotate(q_BTME), at.rotate(k_BTKE), v_BTKE))
        if cache is not None and self.index is not None:
            k_BKSE, v_BKSE = cache.update(k_BKSE, v_BKSE, self.index, {"cache_position": at.index_T})  # transformers 4 reads cache_position
        q_BMTE = q_BMTE.expand(len(k_BKSE), -1, -1, -1)
        length, keys, grouped = q_BMTE.shape[2], k_BKSE.shape[2], q_BMTE.shape[1] != k_BKSE.shape[1]
        mask = at.visible(length, keys, q_BMTE.device)
        causal = at.causal and mask is None and length == keys
        y_BMTE = F.scaled_dot_product_attention(q_BMTE, k_BKSE, v_BKSE, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        return self.o_proj(y_BMTE.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: FreeTransformerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Block(nn.Module):
    """A pre-norm block with the weight names of a Llama layer. index: its position in the decoder; None in the encoder."""

    def __init__(self, config: FreeTransformerConfig, index: int | None = None) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, index)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x_BTD: Tensor, at: Positions, kv_BTD: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        q_BTD = self.input_layernorm(x_BTD)
        source_BTD = q_BTD if kv_BTD is None else self.input_layernorm(kv_BTD)
        x_BTD = x_BTD + self.self_attn(q_BTD, source_BTD, at, cache)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Encoder(nn.Module):
    """One non-causal block whose queries are a learned vector ζ, then RMSNorm and a linear layer. "full" has its own blocks below."""

    def __init__(self, config: FreeTransformerConfig) -> None:
        super().__init__()
        self.zeta = nn.Parameter(torch.zeros(config.hidden_size))
        self.block = Block(config)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.to_bit_logits = nn.Linear(config.hidden_size, config.latent_bits, bias=False)
        own = config.latent_depth if config.latent_encoder == "full" else 0
        self.layers = nn.ModuleList(Block(config) for _ in range(own))

    def forward(self, x_BTD: Tensor, at: Positions) -> Tensor:
        for layer in self.layers:
            x_BTD = layer(x_BTD, at)
        zeta_1TD = self.zeta.to(x_BTD.dtype).expand(1, x_BTD.shape[1], -1)
        return self.to_bit_logits(self.norm(self.block(zeta_1TD, at, x_BTD)))


class FreeTransformer(nn.Module):
    """Embedding, blocks, and final norm. Z is injected into the block at `latent_depth`."""

    def __init__(self, config: FreeTransformerConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.encoder = Encoder(config)
        self.post_sampler = nn.Embedding(2**config.latent_bits, config.hidden_size)
        self.depth = config.latent_depth

    def forward(self, x_BTD: Tensor, z_BT: Tensor, at: Positions, cache: Cache | None) -> Tensor:
        for index, layer in enumerate(self.layers):
            kv_BTD = x_BTD + self.post_sampler(z_BT) if index == self.depth else None
            x_BTD = layer(x_BTD, at, kv_BTD, cache)
        return self.norm(x_BTD)


class FreeTransformerForCausalLM(PreTrainedModel, GenerationMixin):
    """A Free Transformer with a language-model head. Z is an explicit argument; `generate` draws it once per generation."""

    config_class = FreeTransformerConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    _supports_cache_class = True
    _supports_static_cache = True
    _can_compile_fullgraph = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: FreeTransformerConfig) -> None:
        super().__init__(config)
        self.model = FreeTransformer(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding) and not getattr(module.weight, "_is_hf_initialized", False):
            nn.init.normal_(module.weight, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        z: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Any:
        """Logits given Z.

        z: a code in [0, 2^H) for each position, cached ones included, int64 [B, S]; codes beyond these are ignored. labels: as in other
        causal models; the loss is the mean of −log P(token | Z), in nats. Raises ValueError if z is missing: it has no sensible default.
        """
        if z is None:
            raise ValueError("a Free Transformer needs z: codes from model.draw_z(rows, length) or model.infer_z(input_ids)")
        x_BTD = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        start = 0 if past_key_values is None else past_key_values.get_seq_length()
        index_T = start + torch.arange(x_BTD.shape[1], device=x_BTD.device)
        if isinstance(start, int) and z.shape[1] < start + x_BTD.shape[1]:
            raise ValueError(f"z has codes for {z.shape[1]} positions, and position {z.shape[1]} needs one")
        at = self._positions(index_T, start, attention_mask, position_ids)
        z_BT = z.to(x_BTD.device).index_select(1, index_T).expand(len(x_BTD), -1)
        hidden_BTD = self.model(x_BTD, z_BT, at, past_key_values)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden_BTD[:, kept])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The arguments of one step. transformers 4 adds cache_position, which the cache gives; 5 warns about models that accept it."""
        found = super().prepare_inputs_for_generation(*args, **kwargs)
        found.pop("cache_position", None)
        return found

    def bit_logits(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The posterior of Z given a whole text, as the logit of each bit at each position, [B, T, H]."""
        index_T = torch.arange(input_ids.shape[1], device=input_ids.device)
        at = self._positions(index_T, 0, attention_mask, None)
        x_BTD = self.model.embed_tokens(input_ids)
        if self.config.latent_encoder == "shared":
            for layer in self.model.layers[: self.model.depth]:
                x_BTD = layer(x_BTD, at)
        logits_BTH = self.model.encoder(x_BTD, self._positions(index_T, 0, attention_mask, None, causal=False))
        if self.config.latent_window is not None:
            inferred_BT = self._token_positions(index_T, attention_mask) < self.config.latent_window
            logits_BTH = logits_BTH * inferred_BT[..., None]
        return logits_BTH

    @torch.no_grad()
    def infer_z(self, input_ids: Tensor, attention_mask: Tensor | None = None, z_seed: int | None = None) -> Tensor:
        """Codes drawn from the posterior given a whole text, [B, T]."""
        probabilities_BTH = torch.sigmoid(self.bit_logits(input_ids, attention_mask).float())
        rows, length, bits = probabilities_BTH.shape
        noise = [torch.rand(length, bits, generator=generator) for generator in _generators(z_seed, rows, "posterior")]
        bits_BTH = torch.stack(noise).to(probabilities_BTH.device) < probabilities_BTH
        return (bits_BTH * 2 ** torch.arange(bits, device=bits_BTH.device)).sum(-1)

    def draw_z(self, rows: int, length: int, z_seed: int | None = None) -> Tensor:
        """Codes drawn from the prior, int64 [rows, length]. A given row and position has the same code for any `rows` and `length`."""
        codes = 2**self.config.latent_bits
        drawn = [torch.randint(codes, (length,), generator=generator) for generator in _generators(z_seed, rows, "prior")]
        return torch.stack(drawn).to(self.device)

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        z: Tensor | list[list[int]] | None = None,
        z_seed: int | None = None,
        prompt_z: Literal["posterior", "prior"] | None = None,
        **options: Any,
    ) -> Any:
        """Continue prompts. Z is drawn, or given, once per generation; other arguments are those of transformers.

        z: codes [B, S], or [1, S] for all sequences, one for each position that is read: one fewer than the result has tokens. z_seed:
        seeds the draw of Z; by default torch's global generator is used. prompt_z: whether the encoder infers the prompt's Z ("posterior",
        the default) or it is drawn from the prior. With z nothing is drawn, and z_seed or prompt_z is a ValueError. With
        `num_return_sequences`, each sequence has its own Z, in greedy search too. The beams of a beam search share one Z, so that their
        scores can be compared.
        """
        if prompt_z not in (None, "posterior", "prior"):
            raise ValueError(f"prompt_z is 'posterior' or 'prior', not {prompt_z!r}")
        if z is not None and (z_seed is not None or prompt_z is not None):
            name = "prompt_z" if z_seed is None else "z_seed"
            raise ValueError(f"z gives the codes of the prompt and of its continuation: leave out {name}, or z")
        z = None if z is None else self._checked(z)
        prompt = inputs if inputs is not None else options.pop("input_ids", None)
        config = generation_config if generation_config is not None else self.generation_config

        def setting(name: str) -> Any:
            return options.get(name, getattr(config, name, None))

        if prompt is None:
            if setting("bos_token_id") is None:
                raise ValueError("generate needs a prompt: this model has no token that begins a text")
            prompt = torch.full((1, 1), setting("bos_token_id"), device=self.device)
        several = setting("num_return_sequences") or 1
        if several > 1 and (setting("num_beams") or 1) == 1:
            rows = {name: value for name, value in options.items() if isinstance(value, Tensor) and len(value) == len(prompt)}
            options |= {name: value.repeat_interleave(several, 0) for name, value in rows.items()}
            if z is not None and len(z) == len(prompt):
                z = z.repeat_interleave(several, 0)
            prompt = prompt.repeat_interleave(several, 0)
            options["num_return_sequences"] = 1
        if z is None:
            length = max(prompt.shape[1] + (setting("max_new_tokens") or 20), setting("max_length") or 0)  # 20: transformers' default
            z = self.draw_z(len(prompt), length, z_seed)
            if prompt_z != "prior":
                z[:, : prompt.shape[1]] = self.infer_z(prompt, options.get("attention_mask"), z_seed)
        if len(z) not in (1, len(prompt)):
            raise ValueError(f"z has {len(z)} rows, for {len(prompt)} sequences")
        z = z.to(prompt.device).expand(len(prompt), -1)
        return super().generate(prompt, generation_config=generation_config, z=z, **options)

    def _checked(self, z: Tensor | list[list[int]]) -> Tensor:
        """Given codes as a tensor. ValueError if they are not codes of this model: on a GPU, a wrong one would end the process."""
        codes, largest = torch.as_tensor(z), 2**self.config.latent_bits - 1
        if codes.dim() != 2 or codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"z is whole numbers [sequences, positions], not {codes.dtype} {list(codes.shape)}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) <= largest:
            raise ValueError(f"z has a code outside 0 … {largest}")
        return codes.long()

    def _positions(
        self, index_T: Tensor, start: int | Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, causal: bool = True
    ) -> Positions:
        """attention_mask: [B, S], 0 in padding, or the full mask [B, 1, T, S] that transformers makes for a static cache."""
        whole = attention_mask if attention_mask is not None and attention_mask.dim() == 4 else None
        padding_BS = None if whole is not None else attention_mask
        if padding_BS is not None and not torch.compiler.is_compiling() and bool(padding_BS.all()):
            padding_BS = None
        if position_ids is None:
            position_ids = self._token_positions(index_T, padding_BS)
        return Positions(self.config, index_T, position_ids.reshape(-1, len(index_T)), start, padding_BS, whole, causal)

    @staticmethod
    def _token_positions(index_T: Tensor, padding_BS: Tensor | None) -> Tensor:
        """Positions counted from each sequence's first token, [1, T] or [B, T]; 0 within left padding."""
        if padding_BS is None:
            return index_T[None]
        return (padding_BS.long().cumsum(-1) - 1).clamp(min=0).index_select(1, index_T)


def _generators(seed: int | None, rows: int, purpose: str) -> list[torch.Generator]:
    """A generator for each row. Without a seed, one is drawn from torch's global generator."""
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    keys = [hashlib.sha256(f"{purpose}/{seed}/{row}".encode()).digest() for row in range(rows)]
    return [torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1) for key in keys]
