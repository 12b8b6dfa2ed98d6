"""Makes a run from a Hugging Face folder: its weights as checkpoint 0, its tokenizer, and a recipe for further training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from freetf_cli import __version__
from freetf_cli.data import tokenizer as tokenizers
from freetf_cli.data.tokenizer import FILE, Tokenizer
from freetf_cli.errors import InputError
from freetf_cli.exchange.check import compare_logits, has_transformers
from freetf_cli.exchange.folder import Folder, read_folder, read_json
from freetf_cli.exchange.huggingface import start_processor
from freetf_cli.records import DataFacts
from freetf_cli.records.exchange import ImportResult
from freetf_cli.runs.checkpoint import save_checkpoint
from freetf_cli.runs.folder import RunFolder, now
from freetf_cli.runs.lock import lock_run


def import_folder(source: Path, out: Path, *, separator_token: str | None = None, argv: Sequence[str] = ()) -> ImportResult:
    """Make a run from a folder. separator_token: the special token that begins and ends documents; default: the folder's bos or eos token.

    Everything is read, and the logits are compared if transformers is installed, before anything is written. Raises InputError if the
    decoder does not support the model, CheckFailed if the logits differ, and FreetfError if another process is training this run.
    """
    RunFolder.check_path(out)
    with lock_run(out):
        return _import_folder(source, out, separator_token, argv)


def _import_folder(source: Path, out: Path, separator_token: str | None, argv: Sequence[str]) -> ImportResult:
    folder = read_folder(source)
    tokenizer = read_tokenizer(folder, separator_token)
    recipe, vocabulary = folder.recipe, folder.recipe.model.vocab or 0
    if tokenizer.vocab_size > vocabulary:
        raise InputError(f"the tokenizer has {tokenizer.vocab_size} tokens, and the model only {vocabulary}", str(source / FILE))
    model = folder.model()
    logits = compare_logits(model, tokenizer, source) if has_transformers() else None
    name = source.resolve().name
    facts = DataFacts(f"imported: {name}", None, vocabulary, recipe.model.context or 0, None, None, sha256="")
    run = RunFolder.create(out, recipe, again=True)  # again: allow the folder of an import that was killed before its checkpoint
    state = {"step": 0, "tokens": 0, "recipe": recipe.model_dump(exclude_none=True), "data": asdict(facts), "data_folder": None}
    save_checkpoint(run.checkpoint(0), dict(model.named_parameters()), None, state, tokenizer)
    about = {"schema_version": 1, "recipe": name, "argv": list(argv), "freetf": __version__, "started": now(), "data": asdict(facts)}
    run.update_manifest(**about, tokenizer_sha256=tokenizer.sha256, imported=dict(folder.config), status="imported")
    return ImportResult(
        run=str(out),
        folder=str(source),
        checkpoint=str(run.checkpoint(0)),
        kind=recipe.kind,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        tokenizer=f"{tokenizer.name}, {tokenizer.vocab_size:,} tokens",
        separator=_separator_name(source, tokenizer),
        logits=logits,
        notes=_notes(folder, tokenizer),
    )


def read_tokenizer(folder: Folder, separator_token: str | None) -> Tokenizer:
    """The folder's tokenizer, with its bos or eos token, or `separator_token`, as the separator.

    The post-processor that export adds is removed, so that an exported tokenizer comes back byte for byte.
    """
    path = folder.path / FILE
    if not path.is_file():
        raise InputError(f"the folder has no {FILE}", str(folder.path), "save it with one of transformers' fast tokenizers")
    tokenizer = tokenizers.load(path)
    if tokenizer.separator is not None:
        if separator_token:
            tokenizer.separated_by(separator_token)  # raises InputError
        tree = json.loads(tokenizer.json)
        if tree.get("post_processor") == start_processor(tokenizer.separator):
            tokenizer = tokenizers.from_json(json.dumps(tree | {"post_processor": None}, ensure_ascii=False, indent=2))
        return tokenizer
    token = separator_token or _start_token(folder)
    return tokenizer if token is None else tokenizer.separated_by(token)


def _start_token(folder: Folder) -> str | None:
    """The folder's bos_token, or else its eos_token, if it is a special token of the tokenizer."""
    special = {str(one["content"]) for one in _added_tokens(folder.path) if one.get("special")}
    return next((token for token in _named_tokens(folder.path) if token in special), None)


def _named_tokens(path: Path) -> list[str]:
    """bos_token and eos_token of tokenizer_config.json."""
    file = path / "tokenizer_config.json"
    settings: Mapping[str, Any] = read_json(file) if file.is_file() else {}
    found = [settings.get(key) for key in ("bos_token", "eos_token")]
    return [str(token["content"] if isinstance(token, dict) else token) for token in found if token]


def _separator_name(source: Path, tokenizer: Tokenizer) -> str | None:
    """How the folder spells the separator."""
    if tokenizer.separator is None:
        return None
    return next((str(one["content"]) for one in _added_tokens(source) if one["id"] == tokenizer.separator), None)


def _added_tokens(path: Path) -> list[dict[str, Any]]:
    """`added_tokens` of tokenizer.json, a file that has been validated already."""
    found: list[dict[str, Any]] = json.loads((path / FILE).read_text("utf-8")).get("added_tokens") or []
    return found


def _notes(folder: Folder, tokenizer: Tokenizer) -> list[str]:
    notes = tokenizer.notes()
    if folder.dtypes - {"F32"}:
        notes.append(f"the weights were {', '.join(sorted(folder.dtypes))} and were converted to float32, as all runs have")
    tokens = list(dict.fromkeys(_named_tokens(folder.path)))
    if len(tokens) == 2 and (begin := _separator_name(folder.path, tokenizer)) in tokens:
        other = next(token for token in tokens if token != begin)
        notes.append(f"texts begin and end with {begin}, although the folder also names {other}; choose with --separator-token")
    return notes
