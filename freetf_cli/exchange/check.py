"""Compares the logits of a model with those of its Hugging Face folder, on the same tokens."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.errors import CheckFailed
from freetf_cli.exchange.folder import read_folder, read_json
from freetf_cli.exchange.llama import FREE, LLAMA
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.exchange import LogitCheck
from freetf_cli.streams import keyed

TOLERANCE = 1e-4  # relative to the largest logit; float32 rounding causes about 1e-6
ROWS, POSITIONS = 3, 64


@torch.inference_mode()
def compare_logits(model: Decoder, tokenizer: Tokenizer, folder: Path) -> LogitCheck:
    """Compare the model's logits on random tokens with the folder's; for a Free model, those given a random Z, and the posterior's.

    transformers computes the folder's logits if it is installed; otherwise freetf reads the weights back and computes them itself.
    Raises CheckFailed if they differ by more than rounding.
    """
    tokens_BT = _tokens(model, tokenizer)
    z_BT = None if model.latent is None else _codes(model, tokens_BT.shape)
    ours = _ours(model, tokens_BT, z_BT)
    if not has_transformers():
        by, theirs = "reading the weights back (transformers is not installed)", _ours(read_folder(folder).model(), tokens_BT.cpu(), z_BT)
    else:
        by, theirs = _by_transformers(folder, tokens_BT.cpu(), None if z_BT is None else z_BT.cpu())
    greatest = max(float((one.cpu().float() - other.float()).abs().max()) for one, other in zip(ours, theirs, strict=True))
    largest = float(ours[0].abs().max())
    if not greatest <= TOLERANCE * max(1.0, largest):
        raise CheckFailed(f"the logits differ by {greatest:.3g}, of logits up to {largest:.3g} (computed by {by})", str(folder))
    return LogitCheck(by, greatest, largest, tokens_BT.numel())


def has_transformers() -> bool:
    """Whether the extra `hf` is installed."""
    return importlib.util.find_spec("transformers") is not None


def _tokens(model: Decoder, tokenizer: Tokenizer) -> Tensor:
    """Random tokens [B, T]. If there is a separator, each row begins with it and contains no other."""
    length = min(model.config.context or POSITIONS, POSITIONS)
    tokens = keyed(0, "export").integers(0, tokenizer.vocab_size - (tokenizer.separator is not None), (ROWS, length))
    if tokenizer.separator is not None:
        tokens[tokens >= tokenizer.separator] += 1
        tokens[:, 0] = tokenizer.separator
    return torch.from_numpy(tokens).to(model.embedding.weight.device)


def _codes(model: Decoder, shape: torch.Size) -> Tensor:
    assert model.latent is not None
    rows, length = shape
    drawn = [torch.from_numpy(model.latent.prior(keyed(0, "export z", row), length)) for row in range(rows)]
    return torch.stack(drawn).to(model.embedding.weight.device)


def _ours(model: Decoder, tokens_BT: Tensor, z_BT: Tensor | None) -> list[Tensor]:
    """The decoder's logits and, for a Free model, the posterior's bit logits."""
    device = model.embedding.weight.device
    tokens_BT = tokens_BT.to(device)
    logits = model(tokens_BT, None if z_BT is None else z_BT.to(device)).logits
    if model.latent is None:
        return [logits]
    from freetf_cli.latent.binary import bit_logits

    ctx = model.context(tokens_BT)
    return [logits, bit_logits(model.infer_latent(model.lower(tokens_BT, ctx), tokens_BT, ctx))]


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress progress bars and log messages: transformers imports torchao, which logs warnings about its build."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    from transformers.utils import logging as theirs

    shown = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(before)
        if shown:
            theirs.enable_progress_bar()


@_quiet()
def _by_transformers(folder: Path, tokens_BT: Tensor, z_BT: Tensor | None) -> tuple[str, list[Tensor]]:
    """The name and version of transformers, and its logits.

    No code from the folder runs: a Free model is loaded with the package's own copy of the modelling code.
    """
    import transformers

    kind = read_json(folder / "config.json").get("model_type")
    model: Any = {LLAMA: transformers.LlamaForCausalLM, "mistral": transformers.MistralForCausalLM}.get(str(kind))
    if kind == FREE:
        from freetf_cli.exchange.modeling_free_transformer import FreeTransformerForCausalLM as model
    theirs = model.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True).eval()
    logits = [theirs(tokens_BT).logits] if z_BT is None else [theirs(tokens_BT, z=z_BT).logits, theirs.bit_logits(tokens_BT)]
    return f"transformers {transformers.__version__}", logits
