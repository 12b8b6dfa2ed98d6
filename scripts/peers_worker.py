"""One worker process of scripts/peers.py: a training step or generation of freetf, or of another project at the same shape.

A task is a setting of speed_worker.py with the keys `peer` (a key of PEERS, or freetf), `free` (whether it has a latent), `folder` (a clone
of a peer that is no package) and `parts` (of a batch, one forward and backward each). The shape is the recipe's. Commands and answers are
those of speed_worker.py; the answer to `end` has facts about what ran. Other projects are imported, never copied.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from speed_worker import CUDA, DEVICE, Made, Work, recipe_of, sample, serve, train_step
from torch import Tensor, nn

from freetf_cli.bench.generation import read_bytes
from freetf_cli.bench.timing import Effort, machine
from freetf_cli.config.recipe import Recipe
from freetf_cli.device import autocast_dtype
from freetf_cli.model.decoder import EMBEDDING_STD, Decoder
from freetf_cli.training.memory import plan_on
from freetf_cli.training.optimizer import make_optimizer
from freetf_cli.training.start import resolve
from freetf_cli.training.step import autocast

PROMPT = 2  # tokens before those that are generated, as in speed_worker.py


@dataclass
class Peer:
    """A model of another project. loss: of inputs and targets [B, T], the mean in nats per token, with the KL that counts.

    differs: where its computation is not that of freetf's model of the same shape.
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    differs: list[str] = field(default_factory=list)


def main(task: dict[str, Any]) -> None:
    serve(task, WORKS)


def rates(task: dict[str, Any]) -> tuple[Work, Callable[[], Any]]:
    """The rates of a large matrix product and a large copy, as `freetf bench` measures them."""
    found = machine(DEVICE, "auto", Effort(2, 2) if task["smoke"] else Effort(20, 5))
    return lambda: None, lambda: {"dtype": found.precision, "ceiling": found.ceiling, "bandwidth": found.bandwidth}


def complete_recipe(task: dict[str, Any]) -> Recipe:
    recipe: Recipe = recipe_of(task)
    return recipe if recipe.model.vocab and recipe.model.context else resolve(recipe)[0]


# Training steps


def step(task: dict[str, Any]) -> tuple[Work, Callable[[], Any]]:
    """A training step on the same random tokens each time."""
    recipe = complete_recipe(task)
    if task["peer"] == "freetf":
        work, ce = train_step(task)
        plan, tokens = plan_on(recipe, DEVICE), recipe.train.batch * (recipe.model.context or 1)
        facts = {"tokens": tokens, "parameters": plan.parameters, "flops": plan.train_flops_per_token * tokens}
        return work, lambda: facts | {"loss": ce()}
    peer = MODELS[task["peer"]](recipe, task)
    return peer_step(peer, recipe, task["parts"])


def peer_step(peer: Peer, recipe: Recipe, parts: int) -> tuple[Work, Callable[[], Any]]:
    """The step of a peer with freetf's optimizer, precision and clipping."""
    config, model = recipe.train, peer.model.to(DEVICE).train()
    optimizer = make_optimizer(model, config, DEVICE)
    parameters = list(model.parameters())
    loss = torch.compile(peer.loss) if CUDA and config.compile != "off" else peer.loss
    tokens_BT = torch.randint(recipe.model.vocab or 2, (config.batch, (recipe.model.context or 1) + 1))
    rows_BT = tokens_BT.pin_memory() if CUDA else tokens_BT
    last = torch.zeros((), device=DEVICE)

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        last.zero_()
        for part_BT in rows_BT.to(DEVICE, non_blocking=True).chunk(parts):
            with autocast(config, DEVICE):
                part = loss(part_BT[:, :-1].contiguous(), part_BT[:, 1:].contiguous()) / parts
            part.backward()
            last.add_(part.detach())
        if config.grad_clip:
            nn.utils.clip_grad_norm_(parameters, config.grad_clip)
        optimizer.step()

    def facts() -> dict[str, Any]:
        tokens, count = tokens_BT[:, 1:].numel(), sum(each.numel() for each in parameters)
        return {"tokens": tokens, "parameters": count, "loss": float(last), "differs": peer.differs}

    return work, facts


def mean_ce(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())


def nanogpt(recipe: Recipe, task: dict[str, Any]) -> Peer:
    shape, module = recipe.model, imported(task["folder"], "model")
    config = module.GPTConfig(
        shape.context, shape.vocab, n_layer=shape.layers, n_head=shape.heads, n_embd=shape.width, dropout=0.0, bias=False
    )
    model = module.GPT(config)
    differs = ["learned positions instead of rotary ones", "LayerNorm instead of RMSNorm"]
    if shape.key_heads != shape.heads:
        differs.append(f"{shape.heads} key/value heads instead of {shape.key_heads}")
    differs.append(f"GELU of {4 * shape.width} instead of SwiGLU of {shape.hidden}")
    return Peer(model, lambda inputs_BT, targets_BT: model(inputs_BT, targets_BT)[1], differs)


def litgpt(recipe: Recipe, task: dict[str, Any]) -> Peer:
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    shape = recipe.model
    config = Config(
        block_size=shape.context,
        n_layer=shape.layers,
        n_embd=shape.width,
        n_head=shape.heads,
        n_query_groups=shape.key_heads,
        vocab_size=shape.vocab,
        padded_vocab_size=shape.vocab,
        norm_class_name="RMSNorm",
        norm_eps=shape.norm_eps,
        mlp_class_name="LLaMAMLP",
        intermediate_size=shape.hidden,
        parallel_residual=False,
        rotary_percentage=1.0,
        rope_base=int(shape.rope_theta),
        bias=False,
    )
    model = GPT(config)
    model.apply(model._init_weights)
    if shape.tie_embeddings:
        model.transformer.wte.weight = model.lm_head.weight
    return Peer(model, lambda inputs_BT, targets_BT: chunked_cross_entropy(model(inputs_BT), targets_BT, chunk_size=0))


def transformers(recipe: Recipe, task: dict[str, Any]) -> Peer:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = recipe.model
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=shape.tie_embeddings,
        attn_implementation="sdpa",
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    return Peer(model, lambda inputs_BT, targets_BT: mean_ce(model(input_ids=inputs_BT).logits, targets_BT), ["norms in float32"])


def x_transformers(recipe: Recipe, task: dict[str, Any]) -> Peer:
    from x_transformers import Decoder as Layers
    from x_transformers import TransformerWrapper

    shape, width = recipe.model, recipe.model.head_width
    options: dict[str, Any] = {"attn_flash": True, "rotary_emb_dim": width, "ff_glu": True, "ff_swish": True, "ff_no_bias": True}
    options |= {"ff_mult": shape.hidden / shape.width, "attn_kv_heads": shape.key_heads}
    differs = ["a bias in the first layer of SwiGLU"]
    if recipe.latent is not None:
        return x_transformers_free(recipe, options, differs)
    layers = Layers(
        dim=shape.width, depth=shape.layers, heads=shape.heads, attn_dim_head=width, rotary_pos_emb=True, use_rmsnorm=True, **options
    )
    model = TransformerWrapper(num_tokens=shape.vocab, max_seq_len=shape.context, attn_layers=layers, tie_embedding=shape.tie_embeddings)
    return Peer(model, lambda inputs_BT, targets_BT: mean_ce(model(inputs_BT), targets_BT), differs)


def x_transformers_free(recipe: Recipe, options: dict[str, Any], differs: list[str]) -> Peer:
    from x_transformers.free_transformer import FreeTransformer

    shape, bits = recipe.model, recipe.latent.bits  # type: ignore[union-attr]
    model = FreeTransformer(
        num_tokens=shape.vocab,
        dim=shape.width,
        dec_head_depth=shape.layers // 2,
        dec_tail_depth=shape.layers - shape.layers // 2,
        max_seq_len=shape.context,
        attn_dim_head=shape.head_width,
        heads=shape.heads,
        latent_bits=bits,
        **options,
    )
    if shape.tie_embeddings:
        model.token_unembed.weight = model.token_emb.weight
        nn.init.normal_(model.token_emb.weight, std=EMBEDDING_STD)  # its own deviation, 1, would make logits of 8 and more
    differs = [*differs, f"product of a one-hot vector of {2**bits} numbers instead of a look-up"]
    if (pooled := recipe.latent.objective.free_bits) != "token":  # type: ignore[union-attr]
        differs.append(f"free bits per token, not per {pooled}")

    def loss(inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return model(torch.cat((inputs_BT, targets_BT[:, -1:]), 1))  # it shifts by itself

    return Peer(model, loss, differs)


MODELS: dict[str, Callable[[Recipe, dict[str, Any]], Peer]] = {
    "nanogpt": nanogpt,
    "litgpt": litgpt,
    "transformers": transformers,
    "x-transformers": x_transformers,
}

# Generation


def generation(task: dict[str, Any]) -> tuple[Work, Callable[[], Any]]:
    """Generation with random weights after a prompt of two tokens, at temperature 1 from all tokens."""
    if task["peer"] == "gpt-fast":
        return gpt_fast(task)
    work, digest = sample(task)
    model = next(cell.cell_contents for cell in work.__closure__ or () if isinstance(cell.cell_contents, Decoder))  # type: ignore[attr-defined]
    count, tokens = sum(each.numel() for each in model.parameters()), task["sequences"] * task["new_tokens"]
    facts = {"tokens": tokens, "parameters": count, "bytes": read_bytes(model) * task["new_tokens"]}
    return work, lambda: facts | {"digest": digest()}


def gpt_fast(task: dict[str, Any]) -> tuple[Work, Callable[[], Any]]:
    recipe = complete_recipe(task)
    shape = recipe.model
    sys.modules["tokenizer"] = ModuleType("tokenizer")  # its own imports two packages, of which nothing is used here
    sys.modules["tokenizer"].get_tokenizer = None  # type: ignore[attr-defined]
    module, generate = imported(task["folder"], "model"), import_module("generate")
    arguments = module.ModelArgs(
        block_size=shape.context,
        vocab_size=shape.vocab,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_local_heads=shape.key_heads,
        dim=shape.width,
        intermediate_size=shape.hidden,
        rope_base=shape.rope_theta,
        norm_eps=shape.norm_eps,
    )
    model = module.Transformer(arguments).to(DEVICE, autocast_dtype(recipe.train.precision, DEVICE) or torch.float32).eval()
    if CUDA:
        generate.decode_one_token = torch.compile(generate.decode_one_token, mode="reduce-overhead", fullgraph=True)
    prompt_T = torch.randint(shape.vocab or 2, (PROMPT,), device=DEVICE, dtype=torch.int)
    options = {"interactive": False, "draft_model": None, "temperature": 1.0, "top_k": None}

    def work() -> Tensor:
        tokens_BT: Tensor = generate.generate(model, prompt_T, task["new_tokens"], task["sequences"], **options)[0]
        return tokens_BT

    differs = ["one prompt for all sequences", "tokens stay on the device", "lm_head has weights of its own"]
    count, tokens = sum(each.numel() for each in model.parameters()), task["sequences"] * task["new_tokens"]
    return work, lambda: {"tokens": tokens, "parameters": count, "differs": differs}


def imported(folder: str, name: str) -> ModuleType:
    """A module at the top of a clone."""
    sys.path.insert(0, folder)
    return import_module(name)


WORKS: dict[str, Made] = {"step": step, "sample": generation, "machine": rates}

if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
