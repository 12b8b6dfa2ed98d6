"""Attention, SwiGLU and the whole baseline against independent references."""

import pytest
import torch

from freetf_cli.config.recipe import ModelConfig
from freetf_cli.kernels import rotary_tables, rotate
from freetf_cli.latent.build import initialise_model
from freetf_cli.model.attention.softmax import Attention
from freetf_cli.model.block import SwiGLU
from freetf_cli.model.context import Context
from freetf_cli.model.decoder import Decoder


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_query_attention_against_a_loop(kv_heads: int) -> None:
    torch.manual_seed(0)
    attention = Attention(ModelConfig(layers=2, width=16, heads=4, kv_heads=kv_heads, vocab=5)).double()
    q_in, kv_in = torch.randn(2, 6, 16).double(), torch.randn(2, 6, 16).double()
    tables = tuple(t.double() for t in rotary_tables(torch.arange(6), 4, 10_000.0))
    ctx = Context((tables[0], tables[1]), torch.arange(6), 6)
    got = attention(q_in, kv_in, ctx)
    for b in range(2):
        heads = []
        for m in range(4):
            g = m // (4 // kv_heads)
            q = rotate((q_in[b] @ attention.q.weight[4 * m : 4 * m + 4].T)[None, :, None], tables)[0, :, 0]
            k = rotate((kv_in[b] @ attention.k.weight[4 * g : 4 * g + 4].T)[None, :, None], tables)[0, :, 0]
            v = kv_in[b] @ attention.v.weight[4 * g : 4 * g + 4].T
            rows = [torch.softmax(q[i] @ k[: i + 1].T / 2.0, -1) @ v[: i + 1] for i in range(6)]
            heads.append(torch.stack(rows))
        assert torch.allclose(got[b], torch.cat(heads, -1) @ attention.out.weight.T, atol=1e-12)


def test_swiglu_formula() -> None:
    torch.manual_seed(0)
    layer, x = SwiGLU(6, 10).double(), torch.randn(3, 6).double()
    gate, up = x @ layer.gate.weight.T, x @ layer.up.weight.T
    assert torch.allclose(layer(x), (gate / (1 + torch.exp(-gate)) * up) @ layer.down.weight.T, atol=1e-12)


@pytest.mark.parametrize(("tied", "kv_heads"), [(True, 2), (False, 4)])
def test_baseline_logits_equal_transformers_llama(tied: bool, kv_heads: int) -> None:
    transformers = pytest.importorskip("transformers")
    config = ModelConfig(
        layers=3, width=32, heads=4, kv_heads=kv_heads, ffn=48, vocab=50, tie_embeddings=tied, rope_theta=5000.0, norm_eps=1e-6
    )
    ours = Decoder(config)
    initialise_model(ours, 0)
    for parameter in ours.parameters():  # norms too: ones would hide a missing weight
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.2)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            rms_norm_eps=1e-6,
            tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        )
    )
    theirs.load_state_dict(llama_names(ours), strict=not tied)
    ours, theirs = ours.double().eval(), theirs.double().eval()
    tokens = torch.randint(0, 50, (2, 12))
    with torch.no_grad():
        want = theirs(tokens).logits
        assert want.std() > 0.1
        assert (ours(tokens).logits - want).abs().max() < 1e-5 * want.abs().max()  # rotary angles are float32 on both sides


def llama_names(model: Decoder) -> dict[str, torch.Tensor]:
    """Our parameters under the names of a Llama."""
    names = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "lm_head.weight": "lm_head.weight"}
    parts = {
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attention.q": "self_attn.q_proj",
        "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj",
        "attention.out": "self_attn.o_proj",
        "ffn.gate": "mlp.gate_proj",
        "ffn.up": "mlp.up_proj",
        "ffn.down": "mlp.down_proj",
    }
    out = {}
    for name, value in model.state_dict().items():
        if name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            name_there = f"model.layers.{index}.{parts[rest.removesuffix('.weight')]}.weight"
        else:
            name_there = names[name]
        out[name_there] = value
    if model.config.tie_embeddings:
        out["lm_head.weight"] = model.embedding.weight
    return out
