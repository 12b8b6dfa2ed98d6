"""The start of a run: the recipe completed from its data, the model with its first weights, and the manifest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from freetf_cli import __version__
from freetf_cli.config.recipe import Recipe, flat
from freetf_cli.data.batches import DataSource, open_data
from freetf_cli.data.rows import TRAIN, PackedRows
from freetf_cli.device import describe
from freetf_cli.errors import InputError, InputErrors
from freetf_cli.generation.sampling import prompt_tokens
from freetf_cli.latent.build import build_model, constants, initialise_model
from freetf_cli.model.attention.materialised import set_attention_checkpointing
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.weights import fill
from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders, load_weights
from freetf_cli.runs.folder import RunFolder, now
from freetf_cli.training.float8 import use_float8
from freetf_cli.training.loop import Loop
from freetf_cli.training.parallel import Engine, Replicated, Sharded, checkpoint_activations
from freetf_cli.training.schedule import learning_rate
from freetf_cli.training.world import World


def resolve(recipe: Recipe, resume: Checkpoint | None = None) -> tuple[Recipe, DataSource]:
    """Open the recipe's data, and fill in what only the data knows: vocabulary, context and document separator.

    A vocabulary that is too small for the tokenizer is replaced by the tokenizer's. resume: of the run whose data may lie elsewhere.
    """
    data = recipe.data
    if resume is not None and data.dir is not None:
        data = data.model_copy(update={"dir": resume.data_folder(data.dir)})
    source = open_data(data, context=recipe.model.context, seed=recipe.train.seed)
    vocabulary = max(recipe.model.vocab or 0, source.tokenizer.vocab_size)
    for split in (TRAIN, recipe.eval.split):
        source.rows.size(split)  # InputError if the data lacks it: now, not after hours of training
    if recipe.eval.samples and (prompt := len(prompt_tokens(source.tokenizer, source.prompt(recipe.train.seed, 0)))) > source.context:
        what = f"model.context = {source.context} is too short for samples: their prompt alone has {prompt} tokens"
        raise InputError(what, hint=f"model.context = {prompt} or more, or eval.samples = 0")
    separator = recipe.model.separator
    if separator is None and recipe.model.masks_documents and isinstance(source.rows, PackedRows):
        separator = source.tokenizer.separator
        if separator is None:
            raise InputError("packed documents cannot be masked: the data has no separator", hint="model.document_mask = false")
    known = {"vocab": vocabulary, "context": source.context, "separator": separator}
    resolved = recipe.model_copy(update={"model": recipe.model.model_copy(update=known)})
    if broken := list(resolved.broken()):  # rules about a context that the recipe did not give
        raise InputErrors([InputError(one.message, hint="context and vocabulary are those of the data") for one in broken])
    return resolved, source


OTHER_FOLDER = "choose another -o, or delete the folder"


def check_same_run(recipe: Recipe, source: DataSource, checkpoint: Checkpoint, *, longer: bool = False) -> None:
    """Raise InputError if data, tokenizer or recipe are not those of the checkpoint's run. longer: allow more steps, see `extension`."""
    where, hint = str(checkpoint.folder), "use --init-from to start a new run from its weights"
    if checkpoint.state["data"]["sha256"] != source.facts.sha256:
        raise InputError("the data is not what the run was trained on (its hash differs)", where, hint)
    if checkpoint.tokenizer().sha256 != source.tokenizer.sha256:
        raise InputError("the checkpoint's tokenizer is not the data's (its hash differs)", str(checkpoint.folder / "tokenizer.json"))
    _refuse_changes(recipe, checkpoint.recipe, where, hint, longer=longer)


def start_over(path: Path, recipe: Recipe, source: DataSource, warn: Callable[[str], None]) -> None:
    """If the folder has a run that was killed before its first checkpoint, warn that its records are dropped.

    Raises InputError if data or recipe are not those of that run.
    """
    if not (path / "recipe.toml").is_file() or checkpoint_folders(path):
        return
    run, hint = RunFolder.open(path), OTHER_FOLDER
    facts = run.manifest().get("data")  # none if it was killed before it recorded its start
    if isinstance(facts, dict) and facts.get("sha256") != source.facts.sha256:
        raise InputError("the data is not what the run was started on (its hash differs)", str(path), hint)
    _refuse_changes(recipe, run.recipe(), str(path), hint)
    steps = len({line.step for line in run.metrics()})
    dropped = f"; {steps:,} recorded step{'s are' if steps > 1 else ' is'} dropped" if steps else ""
    warn(f"the run in {path} has no checkpoint yet, and starts at step 1{dropped}")


def _refuse_changes(recipe: Recipe, before: Recipe, where: str, hint: str, *, longer: bool | None = None) -> None:
    """Raise InputError if a run's recipe was changed in a setting that affects its weights.

    longer: whether more steps are allowed; None: no, and no option allows them.
    """
    ours, theirs = flat(recipe), flat(before)
    memory = ("attention_checkpointing", "activation_checkpointing", "grad_accum_steps")  # what the hint of an error may suggest
    changeable = ("keep_", "log_every", "save_every", *memory)
    free = ("data.dir", "eval.every", "eval.samples", "eval.sequences", "parallel.", *(f"train.{name}" for name in changeable))
    changed = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key) and not key.startswith(free))
    grows = recipe.train.steps > before.train.steps
    if grows and longer:
        changed.remove("train.steps")
    if changed == ["train.steps"] and longer is not None:
        hint = f"--set train.steps={recipe.train.steps} makes the run longer" if grows else "a run can only be made longer"
    if changed:
        named = ", ".join(f"{key} is {ours.get(key)!r}, was {theirs.get(key)!r}" for key in changed)
        raise InputError(f"the recipe is not the run's: {named}", where, hint)


def extension(recipe: Recipe, checkpoint: Checkpoint) -> str:
    """A sentence that says what a larger `train.steps` changes in a resumed run; empty if it is unchanged.

    Everything remains a function of (recipe, step): from the next step on, rates and weights are those of the longer run at that step.
    """
    before, now, step = checkpoint.recipe.train, recipe.train, checkpoint.step
    if now.steps == before.steps:
        return ""
    was, then, last = (f"{learning_rate(at, of):.3g}" for at, of in ((step - 1, before), (step, now), (now.steps - 1, now)))
    scheduled = recipe.latent is not None and bool(recipe.latent.objective.schedule)
    names = "train.lr and latent.objective.schedule" if scheduled else "train.lr"
    return (
        f"the run of {before.steps:,} steps goes on from step {step:,} to {now.steps:,}, with {names} as in a run of {now.steps:,} steps: "
        f"the learning rate was {was}, is {then} at the next step, and ends at {last}"
    )


def check_init_from(run: RunFolder, init_from: Path | None, hint: str) -> None:
    """Raise InputError if a run did not start from the weights that --init-from names; None: from new ones.

    If it names a run, that run may since have saved newer checkpoints or deleted the one that was used.
    """
    manifest = run.manifest()
    was = None if manifest.get("init_from") is None else Path(str(manifest["init_from"]))
    named = None if init_from is None else Path(os.path.realpath(init_from))
    known = (None,) if was is None else (was, was.parent.parent)
    if "init_from" in manifest and named not in known:  # not in it: killed before the start was recorded
        raise InputError(f"the run started from {was or 'new weights'}, not from {init_from or 'new ones'}", str(run.path), hint)


def make_engine(recipe: Recipe, device: torch.device, world: World, init_from: Checkpoint | None, resume: Checkpoint | None) -> Engine:
    """The model on the engine of `parallel.mode`, with the weights of a checkpoint or freshly initialised ones.

    Shards of a run that is resumed are not set yet: `Loop.restore` loads them with their moments.
    """
    if not recipe.parallel.is_sharded:
        model = prepared(make_model(recipe, device, init_from, resume), recipe)
        return Engine(model, recipe.train, device) if world.size == 1 else Replicated(model, recipe.train, device, world)
    with torch.device("meta"):
        model = build_model(recipe.model, recipe.latent)
    set_attention_checkpointing(model, recipe.train.attention_checkpointing)
    engine = Sharded(prepared(model.train(), recipe), recipe, device, world)
    with torch.no_grad():
        for name, values in constants(recipe.model, recipe.latent).items() if resume is None else ():
            fill(engine.sharded[name], lambda rows, values=values: values[rows.start : rows.stop])  # type: ignore[misc]
        if resume is None:
            initialise_model(model, recipe.train.seed)
    if init_from is not None and resume is None:
        from freetf_cli.runs.sharded import load_sharded

        _check_additions(load_sharded(init_from, engine.sharded, partial=True), init_from)
    return engine


def prepared(model: Decoder, recipe: Recipe) -> Decoder:
    """The model after `train.float8` and `train.activation_checkpointing` have been applied to it."""
    use_float8(model, recipe.train.float8)
    checkpoint_activations(model, recipe.train)
    return model


def make_model(recipe: Recipe, device: torch.device, init_from: Checkpoint | None, resume: Checkpoint | None) -> Decoder:
    """The model to train, with the weights of a checkpoint or freshly initialised ones."""
    if resume is not None:
        model = resume.model(device)
    else:
        model = build_model(recipe.model, recipe.latent)
        initialise_model(model, recipe.train.seed)
        if init_from is not None:
            _check_additions(load_weights(model, init_from.weights, torch.device("cpu"), partial=True), init_from)
    set_attention_checkpointing(model, recipe.train.attention_checkpointing)
    return model.to(device).train()


def _check_additions(missing: Sequence[str], init_from: Checkpoint) -> None:
    """InputError unless the weights that a checkpoint lacks are those of a latent, or of a kind of attention."""
    additions = r"latent\.|blocks\.\d+\.attention\.(pre|post|norm|lambdas)\b"
    if other := [name for name in missing if not re.match(additions, name)]:  # a deeper model would silently start half random
        raise InputError(f"the weights do not fit the model: {other[0]} is missing", str(init_from.folder))


def unlike_its_start(recipe: Recipe, init_from: Recipe) -> str | None:
    """Why a model computes a different function from the model its weights come from; None if it does not. Both recipes are resolved.

    Every setting of the architecture counts, except those that this module names.
    """
    before = _readings(init_from)
    before["multi_token.init"] = [None if one else "identity" for one in _convolving(init_from)]  # a trained kernel stays as it is
    changes = _changes("model", _readings(recipe), before)
    if recipe.latent is not None and init_from.latent is not None:
        changes += _changes("latent", recipe.architecture["latent"], init_from.architecture["latent"])
    elif recipe.latent is not None and recipe.latent.table_std:
        std = recipe.latent.table_std
        changes.append(f"latent.table_std is {std:g}, so that Z changes the logits at once; with 0 it does not until it is trained")
    return f"the model does not compute what the model of --init-from computes: {'; '.join(changes)}" if changes else None


# Kinds of attention that compute what softmax attention does until their own parameters are trained.
START_AS_SOFTMAX = {"softmax", "talking-heads", "multi-token"}
# A position computes the same whatever the context is, and whatever decoding keeps. The others change the shapes of parameters, which are
# then refused, or add parameters that start as the identity.
WITHOUT_EFFECT = {"context", *(f"multi_token.{name}" for name in ("cache", "kq", "mix", "c_q", "c_k", "c_h", "form", "kq_layers"))}


def _readings(recipe: Recipe) -> dict[str, Any]:
    """The settings of [model] that decide what the forward pass computes from given weights, with their defaults resolved.

    Those that can differ between blocks are lists, and None is a block where the setting means nothing.
    """
    model = recipe.model
    options = [model.multi_token if model.attention_of(index) == "multi-token" else None for index in range(model.layers)]
    kinds = [model.attention_of(index) for index in range(model.layers)]
    found = {name: value for name, value in flat(model).items() if name not in WITHOUT_EFFECT | {"attention_layers"}}
    masks_documents = model.masks_documents and model.separator is not None
    return found | {
        "kv_heads": model.key_heads,
        "ffn": model.hidden,
        "attention": ["softmax" if kind in START_AS_SOFTMAX else kind for kind in kinds],
        "multi_token.norm": ["none" if each is None else each.norm for each in options],
        "multi_token.init": [
            each.init if each is not None and convolves else "identity"
            for each, convolves in zip(options, _convolving(recipe), strict=True)
        ],
        "multi_token.mask": [
            each.mask if each is not None and each.kq in ("pre", "both") and model.convolves(index) else None
            for index, each in enumerate(options)
        ],
        "document_mask": masks_documents,
        "separator": [model.separator if masks_documents else None],  # means something only where both mask
    }


def _convolving(recipe: Recipe) -> list[bool]:
    """Whether each block has a convolution over attention weights."""
    model, options = recipe.model, recipe.model.multi_token
    return [
        options is not None and options.kq != "none" and model.attention_of(index) == "multi-token" and model.convolves(index)
        for index in range(model.layers)
    ]


def _changes(table: str, now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """`table.key was value` for each setting that differs; of a list, the first block, unless all differ."""
    found = []
    for key, value in now.items():
        was, place = before.get(key), ""
        if isinstance(value, list) and isinstance(was, list):
            blocks = [block for block, pair in enumerate(zip(value, was, strict=False)) if pair[0] != pair[1] and None not in pair]
            if not blocks:
                continue
            value, was, place = value[blocks[0]], was[blocks[0]], f" in block {blocks[0]}" if len(blocks) < len(value) else ""
        if value != was:
            found.append(f"{table}.{key} was {_toml(was)}{place}")
    return found


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else repr(value)


def record_start(loop: Loop, name: str, argv: Sequence[str], init_from: Checkpoint | None, resume: Checkpoint | None) -> None:
    """Write the manifest of a new run; to the manifest of a resumed run, add how it continued."""
    source, before = loop.source, {} if resume is None else loop.folder.manifest()
    entries = {
        "schema_version": 1,
        "recipe": name,
        "argv": list(argv),
        "freetf": __version__,
        "packages": {name: metadata.version(name) for name in ("torch", "numpy", "safetensors", "tokenizers")},
        "git": _git_state(),
        "started": now(),
        "seed": loop.config.seed,
        "device": describe(loop.device),
        "data": asdict(source.facts),
        "tokenizer_sha256": source.tokenizer.sha256,
        "init_from": init_from and str(init_from.folder.resolve()),
        "processes": loop.world.size,
    }
    resumed = list(before.get("resumed", []))
    if resume is not None:
        kept = {name: entries[name] for name in ("started", "argv", "device", "packages", "git", "processes")}
        longer = {} if loop.config.steps == resume.recipe.train.steps else {"steps_before": resume.recipe.train.steps}
        resumed.append({"step": resume.step, **longer, **kept})
    loop.folder.update_manifest(**{**entries, **before, "resumed": resumed, "status": "running"})


def _git_state() -> dict[str, Any] | None:
    """Commit of the current folder, and whether files have changed since; None outside a repository."""
    words = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]  # the commit's hash, never a tag
    try:
        found = subprocess.run(words, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": found.removesuffix("-dirty"), "changed": found.endswith("-dirty")}


def current_argv() -> list[str]:
    """The command line of this process, without the program's folder."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
