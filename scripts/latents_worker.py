"""One run of scripts/latents.py: `python latents_worker.py [--sequences N --groups N --count N] RECIPE RUN OPTIONS-OF-TRAIN…`.

It trains the run, or resumes it, measures its last checkpoint, and writes RUN/measured.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from resumable import MEASURED, facts, silent, train

from freetf_cli.device import resolve_device
from freetf_cli.durable import write_durably
from freetf_cli.errors import InputError
from freetf_cli.evaluation.probe.measure import ProbeSpec, probe_latent
from freetf_cli.evaluation.run_data import open_split
from freetf_cli.records import to_json
from freetf_cli.records.curves import split_metrics
from freetf_cli.runs.checkpoint import open_model
from freetf_cli.runs.folder import RunFolder


def measure(recipe: str, run: Path, device: str, spec: ProbeSpec) -> dict[str, Any]:
    """The record of a finished run: its size, times, costs in bits per sequence, and what Z decides."""
    checkpoint, model = open_model(run, resolve_device(device), print)
    source, split = open_split(checkpoint, None, None)
    folder = RunFolder.open(run)
    held_out = split_metrics(folder.metrics())[1][-1]
    unit = source.facts.unit(held_out)
    found = facts(recipe, run, checkpoint, model) | {
        "ce": unit.bits(held_out.ce),
        "kl": unit.bits(held_out.kl),
        "excess": None if unit.floor is None else unit.nelbo(held_out) - unit.floor,
        "lagged_until": folder.manifest().get("encoder_lagged", {}).get("steps"),
        "information": {},
        "valid": None,
        "refused": "",  # why probe-latent cannot measure this latent
    }
    try:
        probe = json.loads(to_json(probe_latent(checkpoint, model, source, replace(spec, split=split), run=run.name, stage=silent)))
    except InputError as error:
        return found | {"refused": str(error)}
    intervention = probe["intervention"]
    information = {one["factor"]: one["information"] for one in intervention["factors"]}
    return found | {"information": information, "valid": intervention["valid"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("sequences", "groups", "count"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("recipe")
    parser.add_argument("run", type=Path)
    parser.add_argument("options", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    device = train(options.recipe, options.run, options.options)
    spec = ProbeSpec("", options.sequences or 2048, options.groups, options.count)
    write_durably(options.run / MEASURED, json.dumps(measure(options.recipe, options.run, device, spec)))


if __name__ == "__main__":
    main()
