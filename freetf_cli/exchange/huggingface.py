"""Writes a run as a folder that Hugging Face transformers 4.57 and newer can load.

    DIR/config.json  generation_config.json  tokenizer.json  tokenizer_config.json
        README.md                          the model card
        model.safetensors                  or, above 5 GB, model-00001-of-00003.safetensors … and model.safetensors.index.json
        modeling_free_transformer.py       only for a Free model: its code, which `auto_map` names

The folder gets its name only after its logits have been compared with the run's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import as_file, files
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freetf_cli import durable
from freetf_cli.data.tokenizer import SEPARATOR, Tokenizer
from freetf_cli.data.writer import refuse_existing
from freetf_cli.exchange.card import model_card
from freetf_cli.exchange.check import compare_logits
from freetf_cli.exchange.llama import INDEX, WEIGHTS, check_exportable, hf_config, hf_name, special_ids
from freetf_cli.model.decoder import Decoder
from freetf_cli.records import Metrics
from freetf_cli.records.exchange import ExportResult
from freetf_cli.runs.checkpoint import Checkpoint
from freetf_cli.runs.tensors import Tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 5_000_000_000  # the most bytes in one weight file
CODE = "modeling_free_transformer.py"


def export(
    checkpoint: Checkpoint,
    model: Decoder,
    out: Path,
    *,
    manifest: Mapping[str, Any] | None = None,  # the run's, for the model card
    held_out: Metrics | None = None,  # at the checkpoint's step, for the model card
    shard_bytes: int = SHARD_BYTES,
) -> ExportResult:
    """Write a checkpoint as a Hugging Face folder, and compare the folder's logits with those of `model`, the checkpoint's model.

    Raises InputError if the model cannot be exported or `out` exists. Raises CheckFailed, and leaves no folder, if the logits differ.
    """
    check_exportable(checkpoint.recipe)
    refuse_existing(out)
    tokenizer, free = checkpoint.tokenizer(), checkpoint.recipe.latent is not None
    with new_folder(out) as folder:
        parameters, shards = _write_weights(Tensors(checkpoint.weights), folder, shard_bytes, _full_tables(model))
        _write_json(folder / "config.json", hf_config(checkpoint.recipe, tokenizer))
        _write_json(folder / "generation_config.json", special_ids(tokenizer))
        _write_tokenizer(folder, tokenizer, checkpoint.recipe.model.context)
        if free:
            with as_file(files(__package__) / CODE) as code:
                shutil.copyfile(code, folder / CODE)
        (folder / "README.md").write_text(model_card(checkpoint, manifest or {}, held_out, parameters), encoding="utf-8")
        logits = compare_logits(model, tokenizer, folder)
        for path in folder.iterdir():
            path.chmod(0o644)  # safetensors writes 0600
            durable.flush(path)
        size = sum(path.stat().st_size for path in folder.iterdir())
    return ExportResult(
        str(out), str(checkpoint.folder), checkpoint.recipe.kind, parameters, size, shards, logits, _notes(checkpoint, tokenizer)
    )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `out` at the end of the block. After an error, neither is left."""
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed process left
    try:
        temporary.mkdir(parents=True)
        yield temporary
        durable.flush(temporary)
        durable.move(temporary, out)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        durable.name_path(error, out)
        raise


def _full_tables(model: Decoder) -> dict[str, Tensor]:
    """A post-sampler of low order as the full table that the folder's code has, by the name of its weights."""
    from freetf_cli.latent.low_order import LowOrderTable, full_table

    return {f"{name}.weight": full_table(part).detach().cpu() for name, part in model.named_modules() if isinstance(part, LowOrderTable)}


def _write_weights(tensors: Tensors, folder: Path, shard_bytes: int, instead: Mapping[str, Tensor]) -> tuple[int, int]:
    """Write all weights under their names in transformers, one file in memory at a time. Returns the numbers of parameters and of files.

    instead: tensors to write in the place of the checkpoint's, by the same names.
    """
    import torch

    sizes = {name: 4 * prod(instead[name].shape if name in instead else shape) for name, shape in tensors.shapes.items()}
    shards = split_shards(sizes, shard_bytes)
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        found = {name: instead[name] if name in instead else tensors.whole(name, torch.device("cpu")) for name in names}
        write_tensors({hf_name(name): tensor for name, tensor in found.items()}, folder / file)
        places |= {hf_name(name): file for name in names}
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(places.items()))})
    return sum(sizes.values()) // 4, len(shards)


def split_shards(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """The names in order, in groups of at most `most` bytes. A tensor larger than that gets a group of its own."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if shards[-1] and held + size > most:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, context: int | None) -> None:
    """Write tokenizer.json and its settings. The class named there is one that both transformers 4 and 5 know."""
    (folder / "tokenizer.json").write_text(with_start(tokenizer), encoding="utf-8")
    special = {} if tokenizer.separator is None else dict.fromkeys(("bos_token", "eos_token", "pad_token"), SEPARATOR)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "padding_side": "left"}
    inputs = {"model_max_length": context, "model_input_names": ["input_ids", "attention_mask"]}  # generate takes no token_type_ids
    _write_json(folder / "tokenizer_config.json", settings | inputs | special)


def with_start(tokenizer: Tokenizer) -> str:
    """tokenizer.json with a post-processor that puts the separator before a text, as freetf does with a prompt.

    A tokenizer that already has a post-processor keeps it.
    """
    tree = json.loads(tokenizer.json)
    if tokenizer.separator is None or tree.get("post_processor") is not None:
        return tokenizer.json
    return json.dumps(tree | {"post_processor": start_processor(tokenizer.separator)}, ensure_ascii=False, indent=2)


def start_processor(separator: int) -> dict[str, Any]:
    """The `post_processor` of tokenizer.json that puts the separator before a text."""
    start = {"SpecialToken": {"id": SEPARATOR, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    special = {SEPARATOR: {"id": SEPARATOR, "ids": [separator], "tokens": [SEPARATOR]}}
    return {"type": "TemplateProcessing", "single": [start, first], "pair": [start, first, second], "special_tokens": special}


def _notes(checkpoint: Checkpoint, tokenizer: Tokenizer) -> list[str]:
    """How the exported model behaves differently from the run."""
    notes = []
    if checkpoint.recipe.model.separator is not None:
        notes.append(
            "documents packed into one row were hidden from each other in training; the exported model sees all of its context:"
            " give it one document at a time"
        )
    if tokenizer.separator is None:
        notes.append("the tokenizer has no separator, so no token ends a text: pass max_new_tokens to generate")
    return notes


def _write_json(path: Path, tree: Mapping[str, Any] | Sequence[Any]) -> None:
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
