"""Summarises a run for `freetf show` and the HTML report, from the run's folder alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from freetf_cli.errors import FreetfError, InputError
from freetf_cli.evaluation.probe.agreement import group_agreement
from freetf_cli.records import DataFacts
from freetf_cli.records.run import RunSummary
from freetf_cli.records.samples import SampleGroups
from freetf_cli.runs.folder import RunFolder
from freetf_cli.runs.lock import is_locked
from freetf_cli.runs.plan import plan_run
from freetf_cli.tasks import spans_by_text

POLL = 1.0  # seconds between two looks at a run that is watched


def summarise(path: Path) -> RunSummary:
    """Summarise a run; InputError if the path is not a run folder."""
    run = RunFolder.open(path)
    recipe, manifest = run.recipe(), run.manifest()
    device = str((manifest.get("device") or {}).get("device") or "cpu")
    bf16 = recipe.train.precision == "bf16" or (recipe.train.precision == "auto" and device == "cuda")
    facts = data_facts(manifest, run)
    samples = sample_groups(run.last_samples(), facts)
    return RunSummary(
        run=str(path),
        kind=recipe.kind,
        status=run_status(manifest, path),
        recipe=recipe.model_dump(exclude_none=True),
        facts=facts,
        plan=plan_run(recipe, path.name, bf16, device),
        metrics=run.metrics(),
        checkpoints=run.checkpoint_infos(),
        samples=samples,
        agreement=group_agreement([group for shown in samples if shown.shared for group in shown.groups], facts),
        manifest=manifest,
    )


def watch(path: Path) -> Iterator[RunSummary]:
    """A summary now, and one whenever the run has changed, until it ends. InputError if the path is not a run folder."""
    RunFolder.open(path)
    seen = None
    while True:
        now = _trace(path)
        if now != seen and (not is_locked(path) or (path / "manifest.json").is_file()):  # a run that begins has no manifest yet
            try:
                summary = summarise(path)
            except (FreetfError, OSError):
                if not is_locked(path):
                    raise
                now = None  # the training deletes a checkpoint at this moment: look again
            else:
                yield summary
                if summary.status != "running":
                    return
        seen = now
        time.sleep(POLL)


def _trace(path: Path) -> object:
    """A value that changes when the run does."""
    files = [file for file in (path / "metrics.jsonl", path / "manifest.json") if file.is_file()]
    folders = [sorted(one.name for one in (path / name).glob("step-*")) for name in ("checkpoints", "samples")]
    return [(file.stat().st_mtime_ns, file.stat().st_size) for file in files], folders, is_locked(path)


def run_status(manifest: Mapping[str, Any], run: Path) -> str:
    """ "running", "done", "stopped" or "failed", as the process recorded; "interrupted" if it ended without a record, as by a kill."""
    recorded = str(manifest.get("status", "running"))  # a run that begins has no manifest yet
    return "interrupted" if recorded == "running" and not is_locked(run) else recorded


def sample_groups(samples: Mapping[str, Sequence[dict[str, Any]]], facts: DataFacts) -> list[SampleGroups]:
    """The saved samples by group, as in the paper's Figure 4: independent Z, then shared Z."""
    found = []
    for name in ("independent", "shared"):
        groups: dict[int, list[str]] = {}
        for record in samples.get(name, ()):
            groups.setdefault(int(record["group"]), []).append(str(record["text"]))
        if groups:
            spans = spans_by_text(facts.task, facts.params, chain.from_iterable(groups.values()))
            found.append(SampleGroups("", name == "shared", list(groups.values()), str(samples[name][0]["prompt"]), spans))
    return found


def data_facts(manifest: Mapping[str, Any], run: RunFolder) -> DataFacts:
    """The facts of a run's data; InputError if its manifest lacks them."""
    try:
        return DataFacts.read(manifest["data"])
    except (KeyError, TypeError, AttributeError):
        raise InputError("the run's manifest does not describe its data", str(run.path / "manifest.json")) from None
