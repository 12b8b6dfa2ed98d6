"""Reads a Hugging Face folder, of a Llama-style model or an exported Free Transformer, as a freetf model. No code from the folder runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freetf_cli import durable
from freetf_cli.config.files import check_recipe
from freetf_cli.config.recipe import Recipe
from freetf_cli.errors import InputError
from freetf_cli.exchange.llama import INDEX, WEIGHTS, own_names, own_tables
from freetf_cli.latent.build import build_model
from freetf_cli.model.decoder import Decoder
from freetf_cli.runs.tensors import open_tensors, readable

DTYPES = ("F32", "BF16", "F16", "F64")
# Placeholders for the tables that a recipe must have and an imported model lacks. The user replaces them for `freetf train`.
TABLES: Mapping[str, Any] = {"data": {"dir": "unknown"}, "train": {"steps": 1000, "batch": 8, "lr": 1e-5}}


@dataclass(frozen=True)
class Folder:
    """A folder whose architecture the decoder supports. config: its config.json; recipe: with placeholders for data and training."""

    path: Path
    config: Mapping[str, Any]
    recipe: Recipe

    def model(self) -> Decoder:
        """The model on the CPU, in float32 and evaluation mode. Raises InputError if a weight is missing, unknown, or of another shape."""
        with torch.device("meta"):
            model = build_model(self.recipe.model, self.recipe.latent)
        expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        model.load_state_dict(self._weights(expected), assign=True)
        return model.eval()

    @cached_property
    def dtypes(self) -> set[str]:
        """The data types of the weights, such as BF16."""
        return {dtype for _, dtype in self._found.values()}

    @cached_property
    def _found(self) -> dict[str, tuple[Any, str]]:
        """The open file and the data type of each tensor."""
        found: dict[str, tuple[Any, str]] = {}
        for path in self._files():
            with readable(path):
                file = open_tensors(path)
                for name in file.keys():  # noqa: SIM118
                    dtype = file.get_slice(name).get_dtype()
                    if dtype not in DTYPES:
                        raise InputError(f"weights of type {dtype} are not supported: save the model in float32 or bfloat16", str(path))
                    found[name] = file, dtype
        return found

    def _weights(self, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """All weights, under the decoder's names. Shapes are checked before any tensor is read."""
        names = own_names(expected)
        for name, (file, _) in self._found.items():
            if name in names:
                shape = tuple(file.get_slice(name).get_shape())
                if shape != expected[names[name]]:
                    raise InputError(f"{name} has shape {shape}, but config.json implies {expected[names[name]]}", str(self.path))
            elif name.endswith(".bias"):
                raise InputError(f"the model has biases ({name}): freetf's layers have none", str(self.path))
            elif name != "lm_head.weight" and not name.endswith("rotary_emb.inv_freq"):  # tied; computed from config.json
                raise InputError(f"{name} is not a weight of freetf's decoder", str(self.path))
        if missing := [name for name in names if name not in self._found]:
            raise InputError(f"the weights lack {missing[0]}", str(self.path))
        weights = {}
        for name, own in names.items():
            with readable(self.path):
                weights[own] = torch.empty(expected[own]).copy_(self._found[name][0].get_tensor(name))
        return weights

    def _files(self) -> list[Path]:
        """The weight files: those that the index lists, or the single file."""
        index = self.path / INDEX
        if not index.is_file():
            if not (self.path / WEIGHTS).is_file():
                pickled = any(self.path.glob("pytorch_model*.bin"))
                hint = "save it again with transformers' save_pretrained: pickled weights are not read" if pickled else ""
                raise InputError(f"the folder has no {WEIGHTS}", str(self.path), hint)
            return [self.path / WEIGHTS]
        places = read_json(index).get("weight_map")
        names = sorted(set(places.values())) if isinstance(places, dict) and all(isinstance(v, str) for v in places.values()) else []
        wrong = next((name for name in names if not re.fullmatch(r"[\w.-]+\.safetensors", name)), None)
        if not names or wrong:
            raise InputError("the index does not say which files hold the weights", str(index))
        if gone := next((name for name in names if not (self.path / name).is_file()), None):
            raise InputError("a file of weights is missing", str(self.path / gone))
        return [self.path / name for name in names]


def read_folder(path: Path) -> Folder:
    """Read config.json. Raises InputError if the model is not Llama-style, or has a feature that freetf's decoder does not support."""
    if not path.is_dir():
        raise InputError("no such folder", str(path), "a model from the Hugging Face Hub must be downloaded first")
    file = path / "config.json"
    if not file.is_file():
        is_adapter = (path / "adapter_config.json").is_file()
        hint = "merge the adapter into its model and save that" if is_adapter else "import takes a folder that transformers saved"
        raise InputError("the folder has no config.json", str(path), hint)
    config = read_json(file)
    tables = {"description": f"imported from {path.resolve().name}", **TABLES, **own_tables(config, str(file))}
    recipe = check_recipe(tables, where=file)
    if (head := config.get("head_dim") or recipe.model.head_width) != recipe.model.head_width:
        width, heads = recipe.model.width, recipe.model.heads
        raise InputError(f"head_dim = {head}: freetf's heads have hidden_size / num_attention_heads = {width} / {heads}", str(file))
    return Folder(path, config, recipe)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError if the file holds anything else."""
    try:
        tree = json.loads(durable.read_small(path))
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror}", str(path)) from None
    except (ValueError, RecursionError):
        raise InputError("not valid JSON", str(path)) from None
    if not isinstance(tree, dict):
        raise InputError("not a JSON object", str(path))
    return tree
