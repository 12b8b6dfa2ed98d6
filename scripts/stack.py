"""Many small Free Transformers trained as one: every weight has a leading axis R, one model a slice. For searches, not for use.

    python scripts/stack.py cuda RUNS.jsonl CONFIGS.json

CONFIGS.json is a list of settings over DEFAULT; those that shape the computation (SHAPE) must agree within a stack, of $R models at most
(16). A *path* is a number, or points [share of the run, value] that are joined in equal ratios where both are above zero, else by a
line. Each model appends a line to RUNS.jsonl: CE, KL, curve, and information by intervention from the prior, with the library's own
sampler and estimator.

Why: at D = 128 a model's kernels are too small for a GPU, and several processes do not share one well (docs/performance.md).
The forward is that of freetf_cli/model, written with batched products; `--check` holds it against the library's, in float64.

Axes: R models, B sequences, T positions, N = B · T, D width, H bits, C codes.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freetf_cli.config.recipe import LatentConfig, ModelConfig, TrainConfig
from freetf_cli.data.prepare import task_tokenizer
from freetf_cli.evaluation.probe.information import mutual_information
from freetf_cli.generation.sampling import SampleSpec, generate
from freetf_cli.latent.binary import kl_per_token, logit_gradient, sample_codes, twice_drawn
from freetf_cli.model.attention.softmax import rotary_tables, rotate
from freetf_cli.model.free_transformer import FreeTransformer, build_model, initialise_model
from freetf_cli.tasks.factors import UNREAD, encode
from freetf_cli.tasks.letters import Letters
from freetf_cli.training.objective import LossSums, loss_function
from freetf_cli.training.schedule import latent_weights, learning_rate

LN2 = math.log(2)
DEFAULT: dict[str, Any] = (
    {"length": 64, "target": 8, "letters": 26, "noise": 1 / 16, "layers": 8, "width": 128, "heads": 4, "bits": 16, "depth": None}
    | {"batch": 128, "steps": 4000, "lr": 2e-3, "warmup": 200, "lr_final": 0.05, "wd": 0.1, "clip": 1.0, "beta2": 0.95, "rope": 10_000.0}
    | {"encoder_lr": 1.0, "table_lr": 1.0, "table_std": 1.5, "table_init": "bits", "seed": 0, "kappa": 0.125, "M": 128, "N": 48}
    # paths: κ (bits), prices below and above it, share pooled, weight of the mismatch, positions whose Z is inferred, price of KL beyond
    | {"kappa_path": None, "slope": 0.0, "above": 1.0, "pooled": 0.0, "mismatch": 0.0, "window": 1e9, "quiet": 0.0}
    | {"head": 0, "kappa_head": 1.0}  # the first so many positions have a κ of their own
    # block: tokens whose codes the mismatch takes together, 0: a sequence; within: of the first so many tokens, 0: of all
    | {"block": 0, "within": 0}
    | {"heun": 0.0}  # share of Heun's gradient
    # the encoder of a token sees so many tokens ahead of it, 0: all; that of the first so many sees all
    | {"ahead": 0, "plan": 0}
    # share of the sequences whose Z is inferred for w tokens only, w between two ends, all ratios alike; what follows is as from the prior
    | {"trim": 0.0, "trim_from": 2.0, "trim_to": 2.0}
)
SHAPE = (
    "length",
    "target",
    "letters",
    "layers",
    "width",
    "heads",
    "bits",
    "depth",
    "batch",
    "steps",
    "lr",
    "warmup",
    "lr_final",
    "wd",
    "clip",
)
SHAPE += ("beta2", "rope", "encoder_lr", "table_lr", "block", "within", "ahead", "plan")
PATHS = (
    "kappa_path",
    "slope",
    "above",
    "pooled",
    "mismatch",
    "window",
    "quiet",
    "head",
    "kappa_head",
    "heun",
    "trim",
    "trim_from",
    "trim_to",
)


def path(points: Any, share: float) -> float:
    """A path's value at a share of the run."""
    if not isinstance(points, list):
        return float(points)
    if share <= points[0][0]:
        return float(points[0][1])
    for (begin, a), (end, b) in pairwise(points):
        if share <= end:
            part = (share - begin) / (end - begin)
            return float(a * (b / a) ** part if min(a, b) > 0 else a + (b - a) * part)
    return float(points[-1][1])


def drawer(task: Letters, device: torch.device, seed: int) -> Any:
    """A function that makes rows of letters on the device, [rows, tokens]."""
    generator = torch.Generator(device=device).manual_seed(seed)
    places = torch.arange(task.length, device=device)

    def draw(rows: int) -> Tensor:
        letter, start = (torch.randint(n, (rows, 1), generator=generator, device=device) for n in (task.letters, task.places))
        hidden = torch.rand(rows, task.length, generator=generator, device=device) < task.noise
        line = torch.where((places >= start) & (places < start + task.target), letter, task.letters)
        head = torch.cat((letter, torch.full_like(letter, task.letters + 2)), 1)
        return torch.cat((head, torch.where(hidden, task.letters + 1, line)), 1)

    return draw


class MapperGradient(torch.autograd.Function):
    """The library's, model by model."""

    @staticmethod
    def forward(ctx: Any, r_RND: Tensor, logits_RNH: Tensor, table_RCD: Tensor, drawn_RN: Tensor, heun_R: Tensor) -> Tensor:
        ctx.save_for_backward(logits_RNH, table_RCD, drawn_RN, heun_R)
        return r_RND.view_as(r_RND)

    @staticmethod
    def backward(ctx: Any, dr_RND: Tensor) -> Any:
        logits_RNH, table_RCD, drawn_RN, heun_R = ctx.saved_tensors
        dl_RNH = torch.stack([logit_gradient(*each) for each in zip(dr_RND, logits_RNH, table_RCD, strict=True)])
        factor_RNH = 1 + heun_R[:, None, None] * (1 / twice_drawn(drawn_RN, logits_RNH) - 1)
        return dr_RND, (dl_RNH * factor_RNH).to(dl_RNH.dtype), None, None, None


class Stack:
    """R models of one shape."""

    def __init__(self, configs: list[dict[str, Any]], device: torch.device) -> None:
        self.configs, self.device, first = configs, device, configs[0]
        self.task = Letters({key: first[key] for key in ("length", "target", "letters", "noise")})
        self.tokenizer = task_tokenizer(self.task)
        self.model = ModelConfig(
            **{key: first[key] for key in ("layers", "width", "heads")},
            vocab=self.tokenizer.vocab_size,
            context=self.task.row_tokens - 1,
            rope_theta=first["rope"],
        )
        self.models = [self._fresh(config) for config in configs]
        named = [dict(model.named_parameters()) for model in self.models]
        self.weights = {name: nn.Parameter(torch.stack([each[name].data for each in named]).to(device)) for name in named[0]}
        self.rotary = rotary_tables(torch.arange(self.task.row_tokens - 1, device=device), self.model.head_width, self.model.rope_theta)
        self.depth = first["depth"] or first["layers"] // 2
        places = torch.arange(self.task.row_tokens - 1, device=device)
        seen_TT = (places <= places[:, None] + first["ahead"]) | (places[:, None] < first["plan"])
        self.seen = seen_TT if first["ahead"] else None

    def _fresh(self, config: dict[str, Any]) -> FreeTransformer:
        window = path(config["window"], 1.0)
        latent = LatentConfig(
            **{key: config[key] for key in ("kappa", "bits", "depth", "table_init", "table_std")},
            gradient="heun" if path(config["heun"], 1.0) else "paper",
            window=int(window) if window < self.task.row_tokens - 1 else None,
        )
        model = build_model(self.model, latent)
        initialise_model(model, config["seed"])
        assert isinstance(model, FreeTransformer)
        return model

    @torch.no_grad()
    def unstacked(self) -> list[FreeTransformer]:
        """The library's models with the weights as they are now."""
        for number, model in enumerate(self.models):
            for name, parameter in model.named_parameters():
                parameter.copy_(self.weights[name][number].to(parameter))
        return self.models

    def loss(self, tokens_RBT1: Tensor, noise_RNH: Tensor, paths_RP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """CE, KL and penalty of every model, [R] nats a batch. paths_RP: PATHS, κ in nats."""
        models, sequences, longer = tokens_RBT1.shape
        length, width, bits = longer - 1, self.model.width, noise_RNH.shape[-1]
        x_RND = self._rows("embedding.weight", tokens_RBT1[..., :-1].flatten(1))
        for index in range(self.depth):
            x_RND = self._block(f"blocks.{index}.", x_RND)
        zeta_RND = self.weights["encoder.zeta"][:, None].expand(models, sequences * length, width)
        y_RND = self._block("encoder.block.", zeta_RND, x_RND, seen=self.seen, causal=False)
        y_RND = self._norm("encoder.norm.weight", y_RND)
        logits_RNH = self._linear(y_RND, "encoder.readout.weight")
        beyond_RT = kl_per_token(logits_RNH.float()).view(models, sequences, length).sum(1)
        inferred_RT = torch.arange(length, device=y_RND.device) < paths_RP[:, 5, None]
        inferred_RBT = inferred_RT[:, None] & (torch.arange(length, device=y_RND.device) < trimmed(paths_RP, sequences)[..., None])
        logits_RNH = logits_RNH * inferred_RBT.view(models, -1, 1).to(logits_RNH)
        codes_RN = sample_codes(logits_RNH.detach(), noise_RNH)
        r_RND = self._rows("post_sampler.weight", codes_RN)
        r_RND = MapperGradient.apply(r_RND, logits_RNH, self.weights["post_sampler.weight"], codes_RN, paths_RP[:, 9])
        targets_RN = tokens_RBT1[..., 1:].flatten(1)
        ce_RB = self._upper(x_RND, r_RND, targets_RN)
        logits_RBTH = logits_RNH.float().view(models, sequences, length, bits)
        kl_RBT = kl_per_token(logits_RBTH)
        extra = (
            paths_RP[:, 6] * (beyond_RT * ~inferred_RT).sum(1)
            + penalty(kl_RBT, paths_RP)
            + paths_RP[:, 4] * sequences * mismatch(logits_RBTH[:, :, : self.configs[0]["within"] or length], self.configs[0]["block"])
        )
        return ce_RB.sum(1), kl_RBT.sum((1, 2)), extra

    def _upper(self, x_RND: Tensor, r_RND: Tensor, targets_RN: Tensor) -> Tensor:
        """CE of every sequence, [R, B] nats."""
        x_RND = self._block(f"blocks.{self.depth}.", x_RND, x_RND + r_RND)
        for index in range(self.depth + 1, self.model.layers):
            x_RND = self._block(f"blocks.{index}.", x_RND)
        out_RNV = self._linear(self._norm("norm.weight", x_RND), "embedding.weight").float()
        ce = F.cross_entropy(out_RNV.flatten(0, 1), targets_RN.flatten(), reduction="none")
        return ce.view(len(x_RND), -1, self.task.row_tokens - 1).sum(2)

    def _linear(self, x_RND: Tensor, *names: str) -> Tensor:
        return torch.bmm(x_RND, torch.cat([self.weights[name] for name in names], 1).transpose(1, 2))

    def _rows(self, name: str, ids_RN: Tensor) -> Tensor:
        table_RCD = self.weights[name]
        first_R1 = torch.arange(len(table_RCD), device=ids_RN.device)[:, None] * table_RCD.shape[1]
        return F.embedding((ids_RN + first_R1).flatten(), table_RCD.flatten(0, 1)).view(*ids_RN.shape, -1)

    def _norm(self, name: str, x_RND: Tensor) -> Tensor:
        return F.rms_norm(x_RND.float(), x_RND.shape[-1:], eps=self.model.norm_eps) * self.weights[name][:, None]

    def _block(
        self, pre: str, x_RND: Tensor, keys_from: Tensor | None = None, *, causal: bool = True, seen: Tensor | None = None
    ) -> Tensor:
        models, tokens, width = x_RND.shape
        length, names = self.task.row_tokens - 1, [f"{pre}attention.{name}.weight" for name in "qkv"]
        q_RND = self._norm(pre + "attention_norm.weight", x_RND)
        kv_RND = q_RND if keys_from is None else self._norm(pre + "attention_norm.weight", keys_from)
        q, k, v = (
            self._linear(s, name).view(-1, length, self.model.heads, self.model.head_width)
            for s, name in zip((q_RND, kv_RND, kv_RND), names, strict=True)
        )
        q, k, v = (part.transpose(1, 2) for part in (rotate(q, self.rotary), rotate(k, self.rotary), v))
        y = F.scaled_dot_product_attention(q, k, v, seen, is_causal=causal).transpose(1, 2).reshape(models, tokens, width)
        x_RND = x_RND + self._linear(y, pre + "attention.out.weight")
        gate, up = self._linear(self._norm(pre + "ffn_norm.weight", x_RND), pre + "ffn.gate.weight", pre + "ffn.up.weight").chunk(2, -1)
        return x_RND + self._linear(F.silu(gate) * up, pre + "ffn.down.weight")


def trimmed(paths_RP: Tensor, sequences: int) -> Tensor:
    """For how many tokens Z is inferred, [R, B]. The rows of a batch are alike, so that a row's number may decide."""
    share_R1, low_R1, high_R1 = (column[:, None] for column in paths_RP.T[10:13])
    place_B = torch.arange(sequences, device=paths_RP.device) * 0.6180339887 % 1.0
    width_RB = low_R1 * (high_R1 / low_R1) ** (place_B / share_R1.clamp(min=1e-6))
    return torch.where(place_B < share_R1, width_RB.round(), 1e9)


def penalty(kl_RBT: Tensor, paths_RP: Tensor) -> Tensor:
    """Prices of the KL below and above κ, by token and pooled, [R]."""
    kappa, slope, above, pooled = (column[:, None, None] for column in paths_RP.T[:4])
    head, kappa_head = (column[:, None, None] for column in paths_RP.T[7:9])
    kappa = torch.where(torch.arange(kl_RBT.shape[2], device=kl_RBT.device) < head, kappa_head, kappa)
    token = above * F.relu(kl_RBT - kappa) + slope * torch.minimum(kl_RBT, kappa)
    sums_RB1, budget = kl_RBT.sum(-1, keepdim=True), kappa.sum(-1, keepdim=True)
    sequence = above * F.relu(sums_RB1 - budget) + slope * torch.minimum(sums_RB1, budget)
    return ((1 - pooled) * token).sum((1, 2)) + (pooled * sequence).sum((1, 2))


def mismatch(logits_RBTH: Tensor, block: int) -> Tensor:
    """`latent.aggregate_mismatch` of every model, [R]; with a block, the sum of those of so many tokens."""
    a, b = torch.tanh(logits_RBTH / 2).chunk(2, 1)
    alike_RbbT = torch.log1p((a[:, :, None] * b[:, None]).clamp(min=-1 + 1e-6)).sum(-1)
    blocks_RbbK = torch.stack([part.sum(-1) for part in alike_RbbT.split(block or alike_RbbT.shape[-1], -1)], -1)
    return F.relu(torch.logsumexp(blocks_RbbK.flatten(1, 2), 1) - 2 * math.log(a.shape[1])).sum(-1)


def train(stack: Stack) -> list[list[list[float]]]:
    """Train all of them; each one's curve, [step, CE, KL] in bits a sequence."""
    first, device, weights = stack.configs[0], stack.device, stack.weights
    cuda, steps, sequences, bits = device.type == "cuda", first["steps"], first["batch"], first["bits"]
    models, length = len(stack.configs), stack.task.row_tokens - 1
    tokens = torch.zeros(models, sequences, length + 1, dtype=torch.int64, device=device)
    noise, paths = torch.zeros(models, sequences * length, bits, device=device), torch.zeros(models, len(PATHS), device=device)
    optimizer, seen = _optimizer(weights, first, device), torch.zeros(2, models, device=device)
    loss = torch.compile(stack.loss, dynamic=False) if cuda else stack.loss
    schedule = TrainConfig(**{key: first[key] for key in ("steps", "batch", "lr", "warmup", "lr_final")})

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            ce, kl, extra = loss(tokens, noise, paths)
        ((ce + extra).sum() / (sequences * length)).backward()
        norm_R = torch.stack([weight.grad.flatten(1).square().sum(1) for weight in weights.values()]).sum(0).sqrt()
        for weight in weights.values():
            weight.grad.mul_((first["clip"] / norm_R.clamp(min=first["clip"])).view(-1, *[1] * (weight.dim() - 1)))
        optimizer.step()
        seen.copy_(torch.stack((ce.detach(), kl.detach())) / (sequences * LN2))

    draw, generator = drawer(stack.task, device, 1000), torch.Generator(device=device).manual_seed(1)
    curves: list[list[list[float]]] = [[] for _ in stack.configs]
    graph, side = None, torch.cuda.Stream() if cuda else None
    for step in range(steps):
        paths.copy_(torch.tensor([_paths(config, step / steps) for config in stack.configs]))
        for group in optimizer.param_groups:
            rate = group["scale"] * learning_rate(step, schedule)
            group["lr"].fill_(rate) if cuda else group.update(lr=rate)
        tokens.copy_(draw(models * sequences).view(tokens.shape))
        noise.copy_(torch.rand(noise.shape, generator=generator, device=device))
        if side is not None and step < 3:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                update()
            torch.cuda.current_stream().wait_stream(side)
        elif cuda:
            if graph is None:
                optimizer.zero_grad(set_to_none=True)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    update()
            graph.replay()
        else:
            update()
        if (step + 1) % max(1, steps // 24) == 0:
            for curve, ce, kl in zip(curves, *seen.tolist(), strict=True):
                curve.append([step + 1, round(ce, 2), round(kl, 2)])
    return curves


def _optimizer(weights: dict[str, nn.Parameter], first: dict[str, Any], device: torch.device) -> torch.optim.AdamW:
    groups = []
    for name, weight in weights.items():
        kept = weight.dim() < 3 or name in ("embedding.weight", "post_sampler.weight")
        scale = first["encoder_lr"] if name.startswith("encoder") else first["table_lr"] if name.startswith("post") else 1.0
        rate = torch.tensor(first["lr"], device=device) if device.type == "cuda" else first["lr"]
        groups.append({"params": [weight], "weight_decay": 0.0 if kept else first["wd"], "scale": scale, "lr": rate})
    return torch.optim.AdamW(groups, betas=(0.9, first["beta2"]), fused=True, capturable=device.type == "cuda")


def _paths(config: dict[str, Any], share: float) -> list[float]:
    found = {name: path(config[name], share) for name in PATHS if config[name] is not None}
    found["kappa_path"] = found.get("kappa_path", config["kappa"]) * LN2
    found["kappa_head"] *= LN2
    return [found[name] for name in PATHS]


@torch.no_grad()
def held_out(stack: Stack) -> tuple[list[float], list[float]]:
    """CE and KL of every model with Z from the posterior, bits a sequence, over 1,024 sequences."""
    first, models = stack.configs[0], len(stack.configs)
    length, batch = stack.task.row_tokens - 1, first["batch"]
    draw, generator = drawer(stack.task, stack.device, 77), torch.Generator(device=stack.device).manual_seed(5)
    paths = torch.tensor([_paths({**config, "trim": 0.0}, 1.0) for config in stack.configs], device=stack.device)
    total = torch.zeros(2, models, device=stack.device)
    for _ in range(rounds := -(-1024 // batch)):
        tokens = draw(models * batch).view(models, batch, -1)
        noise = torch.rand(models, batch * length, first["bits"], generator=generator, device=stack.device)
        total += torch.stack(stack.loss(tokens, noise, paths)[:2])
    ce_R, kl_R = (total / (rounds * batch * LN2)).tolist()
    return ce_R, kl_R


@torch.no_grad()
def measured(model: FreeTransformer, stack: Stack, config: dict[str, Any], ce: float, kl: float) -> tuple[dict[str, Any], Any, Any]:
    """Facts of a model; positions and marks of samples with Z from the prior, for `information`."""
    task, length = stack.task, stack.task.row_tokens - 1
    spec = SampleSpec(total=length + 1, groups=config["M"], count=config["N"], z="shared", prompt_z="prior", seed=1)
    texts = [sample.text for sample in generate(model, stack.tokenizer, [task.prompt(0, 0)], spec)]
    readings, shape = task.read_all(texts), (config["M"], config["N"])
    found = encode(task.factors, [reading.factors for reading in readings])
    positions, marks = found["position"].reshape(shape), found["noise"].reshape(*shape, -1)
    counts = np.bincount(positions[positions != UNREAD], minlength=task.places)
    share = counts[counts > 0] / counts.sum()
    facts = {"ce": ce, "kl": kl, "efficiency": (task.floor_bits - ce) / max(kl, 0.01)}
    facts |= {"valid": float(np.mean([reading.valid for reading in readings])), "marks": float(marks.mean())}
    facts |= {"position_entropy": float(-(share * np.log2(share)).sum())}
    return {key: round(value, 4) for key, value in facts.items()}, positions, marks


def information(positions: Any, marks: Any, places: int) -> tuple[float, float]:
    """I(Z; position) and I(Z; noise), bits."""
    return mutual_information(positions, places, 0).information.value, mutual_information(marks, 2, 0).information.value


def check() -> None:
    """The stack's loss and gradients against the library's, one model with free bits per token, one pooled, for both gradients."""
    torch.set_default_dtype(torch.float64)
    small = {"length": 10, "target": 3, "letters": 4, "layers": 4, "width": 16, "heads": 2, "bits": 5, "batch": 6, "kappa": 0.5}
    small |= {"slope": 0.3, "mismatch": 0.7}
    for gradient, window, over in (("paper", 1e9, "sequence"), ("heun", 4, "token")):
        shared = {**DEFAULT, **small, "heun": float(gradient == "heun"), "window": window, "block": int(over == "token")}
        stack = Stack([{**shared, "seed": pooled, "pooled": float(pooled)} for pooled in (0, 1)], torch.device("cpu"))
        for weight in stack.weights.values():
            weight.data = weight.data.double()
        tokens, noise = drawer(stack.task, stack.device, 0)(12).view(2, 6, -1), torch.rand(2, 66, 5)
        ce, kl, extra = stack.loss(tokens, noise, torch.tensor([_paths(config, 0.0) for config in stack.configs]))
        (ce + extra).sum().backward()
        for number, (model, kind) in enumerate(zip(stack.unstacked(), ("token", "sequence"), strict=True)):
            latent = model.latent.model_copy(update={"free_bits": kind, "slope": 0.3, "mismatch": 0.7, "mismatch_over": over})
            inputs, targets, drawn = tokens[number, :, :-1], tokens[number, :, 1:], noise[number].view(6, 11, 5)
            theirs = LossSums(*loss_function(model.double(), latent)(inputs, targets, drawn, *torch.tensor(latent_weights(0, latent, 1))))
            theirs.objective.backward()
            for ours, library in ((ce, theirs.ce), (kl, theirs.kl), (extra, theirs.penalty)):
                assert torch.allclose(ours[number].float(), library.float(), rtol=1e-5), (number, kind)
            for name, parameter in model.named_parameters():
                ours = stack.weights[name].grad[number].to(parameter)
                assert float((ours - parameter.grad).norm() / parameter.grad.norm()) < 1e-5, (gradient, name)
    settings = {**DEFAULT, "kappa": 1.0, "head": 1, "kappa_head": 2.0}  # KL of 3, 0.5 and 2 bits against 2, 1 and 1
    paths = torch.tensor([_paths({**settings, "pooled": pooled}, 0.0) for pooled in (0.0, 1.0)])
    found = penalty(LN2 * torch.tensor([3.0, 0.5, 2.0]).expand(2, 1, 3), paths) / LN2
    assert torch.allclose(found, torch.tensor([2.0, 1.5])), found
    trims = torch.tensor([_paths({**DEFAULT, "trim": 0.5, "trim_from": 2.0, "trim_to": 8.0}, 0.0)])
    widths = trimmed(trims, 1000)[0]
    assert (widths < 1e9).sum() == 500 and widths.min() == 2 and widths[widths < 1e9].max() == 8
    seen = Stack([{**DEFAULT, **small, "ahead": 1, "plan": 2}], torch.device("cpu")).seen
    assert seen is not None and seen.shape == (11, 11) and bool(seen[:2].all()) and seen[2].tolist() == [True] * 4 + [False] * 7
    print("the same")


def main(device: str, target: str, source: str) -> None:
    configs = [{"k": number, **config} for number, config in enumerate(json.loads(Path(source).read_text(encoding="utf-8")))]
    unknown = {key for config in configs for key in config} - {*DEFAULT, "k", "name"}
    assert not unknown, f"no such settings: {unknown}"
    size, groups = int(os.environ.get("R", "16")), {}
    for config in configs:
        groups.setdefault(json.dumps([{**DEFAULT, **config}[key] for key in SHAPE]), []).append(config)
    began = time.time()
    with multiprocessing.get_context("spawn").Pool(int(os.environ.get("POOL", "8"))) as pool:
        for part in (group[start : start + size] for group in groups.values() for start in range(0, len(group), size)):
            stack = Stack([{**DEFAULT, **config} for config in part], torch.device(device))
            curves, waiting = train(stack), []
            seconds = time.time() - began
            for model, config, given, curve, ce, kl in zip(stack.unstacked(), stack.configs, part, curves, *held_out(stack), strict=True):
                facts, *values = measured(model.to(device), stack, config, ce, kl)
                waiting.append((given, facts, curve, pool.apply_async(information, (*values, stack.task.places))))
                model.cpu()
            for given, facts, curve, bits in waiting:
                position, noise = bits.get()
                line = {"config": given, "position": round(position, 3), "noise": round(noise, 3), **facts, "curve": curve}
                with Path(target).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print({key: value for key, value in line.items() if key != "curve"}, flush=True)
            print(f"{len(part)} models by {seconds:.0f} s", flush=True)
            torch.compiler.reset()


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    check() if sys.argv[1:] == ["--check"] else main(*sys.argv[1:4])
