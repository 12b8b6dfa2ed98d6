"""Time training steps on several GPUs of one machine, each setting in processes of its own, and check them against one process.

    python scripts/parallel.py OUT.json                  # 2 GPUs, 9 minutes at most; a second call goes on where the first ended
    python scripts/parallel.py OUT.json --smoke          # tiny models, 2 processes on a CPU: a test of this script

Every setting trains on random tokens: STEPS timed steps after WARM_UP untimed ones, which compile and capture. A row has the median
step in milliseconds, tokens per second and GPU, the peak of memory beside the one predicted, and the losses of the first steps, which are
equal for every number of processes up to rounding. Results are in docs/distributed.md, raw in docs/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WARM_UP, STEPS = 6, 20


@dataclass(frozen=True)
class Setting:
    """A recipe on a number of processes. rows: sequences per process and step."""

    name: str
    recipe: str
    processes: int
    rows: int
    overrides: list[str] = field(default_factory=list)
    steps: int = STEPS
    profile: bool = False
    memory: bool = False  # what is allocated at the peak
    save: bool = False  # in the background, while steps go on


_2K = ["model.context=2048", "train.grad_accum_steps=1"]
_FSDP, _DDP = ["parallel.mode=fsdp"], ["parallel.mode=ddp"]
_KEPT = [*_FSDP, "parallel.reshard_after_forward=false"]


def _setting(recipe: str, processes: int, rows: int, engine: str, *overrides: str, **options: Any) -> Setting:
    name = f"{recipe.removeprefix('paper-').replace('-', ' ')}, {processes}{engine and ', ' + engine}"
    return Setting(name, recipe, processes, rows, list(overrides), **options)


SETTINGS = [
    _setting("letters-free", 1, 256, "", steps=200),
    _setting("letters-free", 2, 128, "ddp", *_DDP, steps=200),
    _setting("paper-1.5b-free", 2, 16, "ddp", *_2K, *_DDP),
    _setting("paper-1.5b-free", 2, 16, "fsdp, kept", *_2K, *_KEPT),
    _setting("paper-8b-free", 2, 4, "fsdp", *_2K, *_FSDP, steps=10, memory=True, save=True),
    _setting("paper-1.5b-free", 1, 16, "", *_2K),
    _setting("paper-1.5b-free", 2, 16, "fsdp", *_2K, *_FSDP),
    _setting("paper-1.5b-baseline", 2, 16, "fsdp", *_2K, *_FSDP),
    _setting("paper-1.5b-baseline", 2, 16, "fsdp, kept", *_2K, *_KEPT),
    _setting("paper-8b-baseline", 2, 4, "fsdp", *_2K, *_FSDP, steps=10),
]
SETTINGS += [replace(setting, name=f"{setting.name}, profiled", steps=5, profile=True) for setting in SETTINGS if "1.5b" in setting.name]
_TINY = ["model.layers=2", "model.width=32", "model.heads=2", "train.compile=off"]
SMOKE = [
    Setting("letters, 1", "letters-free", 1, 4, [*_TINY, "latent.bits=4"], steps=3),
    Setting("letters, 2, ddp", "letters-free", 2, 2, [*_TINY, *_DDP, "latent.bits=4"], steps=3),
    Setting("letters, 2, fsdp", "letters-free", 2, 2, [*_TINY, *_FSDP, "latent.bits=4"], steps=3, save=True),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", help="settings whose name contains this")
    parser.add_argument("--smoke", action="store_true")
    chosen = parser.parse_args()
    found: dict[str, Any] = json.loads(chosen.out.read_text()) if chosen.out.exists() else {"rows": []}
    began = time.monotonic()
    for setting in SMOKE if chosen.smoke else SETTINGS:
        left = chosen.minutes * 60 - (time.monotonic() - began)
        known = any(row["name"] == setting.name and "error" not in row for row in found["rows"])
        if known or left < 30 or (chosen.only and chosen.only not in setting.name):
            continue
        row = measured(setting, left)
        found["rows"] = [*(each for each in found["rows"] if each["name"] != setting.name), row]
        chosen.out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{time.monotonic() - began:5.0f} s  {setting.name:28}", row.get("error", f"{row.get('median_ms', 0):9.2f} ms"), flush=True)


def measured(setting: Setting, seconds: float) -> dict[str, Any]:
    """The row of a setting; with `error` if its processes fail or take too long."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(setting.processes)]
    began = time.monotonic()
    words += [str(HERE / "parallel_worker.py"), json.dumps(asdict(setting) | {"warm_up": WARM_UP})]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        return {"name": setting.name, "error": f"not done in {seconds:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"name"')]
    if done.returncode or not lines:
        return {"name": setting.name, "error": done.stderr[-3000:]}
    return json.loads(lines[-1]) | {"wall_s": round(time.monotonic() - began, 1)}


if __name__ == "__main__":
    main()
