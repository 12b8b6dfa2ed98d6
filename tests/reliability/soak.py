"""`make soak`: every trial in full; writes docs/results/reliability.json and the table of docs/reliability.md.

    python -m tests.reliability.soak [NAME…]

Takes a quarter of an hour on two cores. Trials that need strace, root or a GPU are left out without them, and the table says so.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tests.reliability.trials import SOAK_ONLY, TRIALS

ROOT = Path(__file__).resolve().parents[2]
RESULT, PAGE = ROOT / "docs" / "results" / "reliability.json", ROOT / "docs" / "reliability.md"
MARKS = "<!-- soak: generated -->", "<!-- end of soak -->"
NUMBERS = {
    "kills": 50,
    "saves": 66,
    "overwrites": 11,
    "system_calls": 21,
    "streams": 24,
    "damaged": 200,
    "fallback": 20,
    "hostile": 69,
    "disk": 20,
}
NUMBERS |= {
    "small_disk": 10,
    "signals": 32,
    "starters": 50,
    "faults": 40,
    "ranks": 30,
    "hung": 5,
    "launched": 30,
    "outputs": 175,
    "listeners": 20,
}
NUMBERS |= {"inputs": 99, "readonly": 14, "processes": 5, "gpu": 20}
FUZZ = 1000


def trial(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.reliability.trials", name, str(NUMBERS[name]), folder]
        begun = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
    if done.returncode:
        return {"trials": 0, "passed": 0, "failures": [done.stderr[-500:]]}
    return {**json.loads(done.stdout.splitlines()[-1].replace(folder, "FOLDER")), "seconds": round(time.perf_counter() - begun)}


def fuzzed() -> dict[str, Any]:
    """Run tests/reliability/test_fuzz.py with many examples."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/reliability/test_fuzz.py"]
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**environment(), "FUZZ": str(FUZZ)})
    passed = done.stdout.splitlines()[-1].split(" passed")[0].split()[-1] if " passed" in done.stdout else "0"
    failed = [] if done.returncode == 0 else [done.stdout[-500:]]
    return {"trials": int(passed) + len(failed), "passed": int(passed), "failures": failed, "seconds": round(time.perf_counter() - begun)}


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def table(found: dict[str, Any]) -> str:
    left_out = ", ".join(found["left_out"]) or "nothing"
    about = f"{found['date']}, {found['system']}, Python {found['python']}, torch {found['torch']}; left out: {left_out}."
    lines = [about, "", "| trial | what | passed | control: what is removed | passed without it |", "|---|---|---|---|---|"]
    for name, row in found["trials"].items():
        work = {**TRIALS, **SOAK_ONLY}.get(name)
        what = (
            work.__doc__
            if work
            else f"{FUZZ} examples each of mutated checkpoints, recipes, data and codes, and {FUZZ // 20} lifetimes of a run"
        ).strip()
        control = row.get("control")
        against = f"{control['what']} | {control['passed']} of {control['trials']}" if control else " | "
        made = f" ({row['device']}, {row['date']}, torch {row['torch']})" if "date" in row else ""
        lines.append(f"| `{name}` | {' '.join(what.split()).rstrip('.')}{made} | {row['passed']} of {row['trials']} | {against} |")
    return "\n".join(lines)


def main(*names: str) -> int:
    left_out = {} if shutil.which("strace") else {"system_calls": "no strace"}
    if os.geteuid() != 0 or sys.platform != "linux":
        left_out["small_disk"] = "mounting needs root"
    before = json.loads(RESULT.read_text(encoding="utf-8"))["trials"] if RESULT.is_file() else {}
    if not torch.cuda.is_available():
        left_out["gpu"] = "no GPU"
    rows = dict(before) if names else {name: row for name, row in before.items() if name == "gpu"}  # its row says on which GPU it ran
    for name in (*NUMBERS, "fuzz"):
        if name in left_out or (names and name not in names):
            continue
        rows[name] = fuzzed() if name == "fuzz" else trial(name)
        print(f"{name}: {rows[name]['passed']} of {rows[name]['trials']}", *rows[name]["failures"], sep="\n  ", flush=True)
    rows = {name: rows[name] for name in (*NUMBERS, "fuzz") if name in rows}
    left_out = {name: why for name, why in left_out.items() if name not in rows}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "system": platform.system()}
    found = {"date": datetime.now(UTC).date().isoformat(), **versions, "left_out": left_out, "trials": rows}
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    head, tail = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    PAGE.write_text(f"{head}{MARKS[0]}\n\n{table(found)}\n\n{MARKS[1]}{tail}", encoding="utf-8")
    good = all(row["passed"] == row["trials"] > 0 and not row.get("control", {}).get("passed") for row in rows.values())
    return int(not good)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
