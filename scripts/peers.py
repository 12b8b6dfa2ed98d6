"""Time freetf beside other projects at the same shapes, in one run: generation, training steps, and Free models over their baselines.

    python scripts/peers.py OUT.json --gpt-fast DIR --nanogpt DIR    # on a GPU, about 30 minutes
    python scripts/peers.py OUT.json --smoke                         # tiny shapes on a CPU, not compiled: a test of this script

litgpt, x-transformers and transformers are packages (`pip install 'freetf[peers]'`). gpt-fast and nanoGPT are not: DIR is a clone, whose
commit is written down. A peer that is missing, or that fails, is a line of the output. Every way of doing a row's work has a process of
its own, which compiles once; the ways then take turns. Where they do not fit into the GPU's memory together, one process runs at a time,
and all are started twice, so that each has rounds early and late. A peer's training step that runs out of memory is tried again in parts.
Rows that OUT.json has are skipped, unless a peer was missing or failed then, so they can be measured in several calls. Results are in
docs/performance.md, raw in docs/results/.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from speed import GPU_GIB, HERE, STEP_124M, Worker, WorkerError, commit_of
from stored import stored

OURS = "freetf"
PACKAGES = ("litgpt", "transformers", "x-transformers")
CLONES = {"gpt-fast": "https://github.com/meta-pytorch/gpt-fast", "nanogpt": "https://github.com/karpathy/nanoGPT"}
PASSES = 2  # starts of each way where only one fits into memory
MOST_PARTS = 4
SHOWN = {"nanogpt": "nanoGPT"}


@dataclass(frozen=True)
class Way:
    """One way to do a row's work. gib: GPU memory that it needs, by estimate. overrides: of the recipe, beside the row's."""

    peer: str
    gib: float
    free: bool = False
    note: str = ""
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return ", ".join([SHOWN.get(self.peer, self.peer), *(["Free"] if self.free else []), *([self.note] if self.note else [])])

    def compared(self) -> dict[str, str]:
        """The ways that its time is divided by: `freetf`, of the same kind, and a Free model's `baseline`."""
        freetf = {"freetf": Way(OURS, 0, self.free).name} if self.peer != OURS else {}
        return freetf | ({"baseline": Way(self.peer, 0).name} if self.free else {})


@dataclass(frozen=True)
class Row:
    """One line of the table. recipe: of the baseline without "-baseline". work: step or sample (peers_worker.py)."""

    name: str
    work: str
    recipe: str
    ways: tuple[Way, ...]
    overrides: tuple[str, ...] = ()
    sequences: int = 1
    new_tokens: int = 64
    smoke: bool = False  # whether the recipe's smoke overlay applies

    def task(self, way: Way) -> dict[str, Any]:
        recipe = f"{self.recipe}-{'free' if way.free else 'baseline'}"
        what = {"work": self.work, "recipe": recipe, "overrides": [*self.overrides, *way.overrides], "peer": way.peer}
        return what | {"sequences": self.sequences, "new_tokens": self.new_tokens, "smoke": self.smoke}


def _both(gib: float, free_gib: float) -> tuple[Way, Way]:
    return Way(OURS, gib), Way(OURS, free_gib, free=True)


def _float8(gib: float) -> Way:
    return Way(OURS, gib, free=True, note="float8 mapper", overrides=("latent.numerics.float8=true",))


_32K = "train.batch=16", "train.grad_accum_steps=1", "model.context=2048"
_X = "x-transformers"
ROWS = [  # the shortest first
    Row("step, letters", "step", "letters", (*_both(5, 5), Way(_X, 5), Way(_X, 30, free=True))),
    Row("generation, letters, 1,000 sequences", "sample", "letters", _both(5, 5), sequences=1000),
    Row("step, 124M, 16 × 1,024", "step", "paper-1.5b", (Way(OURS, 12), Way("nanogpt", 15), Way("litgpt", 15)), STEP_124M),
    Row("generation, 1.5B, 64 sequences", "sample", "paper-1.5b", (*_both(9, 9), Way("gpt-fast", 9)), sequences=64, new_tokens=512),
    Row("generation, 1.5B, 1 sequence", "sample", "paper-1.5b", (*_both(6, 6), Way("gpt-fast", 6)), new_tokens=512),
    Row("Free, 124M, 16 × 1,024", "step", "paper-1.5b", (*_both(12, 13), _float8(13), Way(_X, 16), Way(_X, 60, free=True)), STEP_124M),
    Row("Free, 1.5B, 16 × 2,048", "step", "paper-1.5b", (*_both(96, 101), _float8(101)), _32K),
    Row("step, 1.5B, 16 × 2,048", "step", "paper-1.5b", (Way(OURS, 96), Way("litgpt", 120), Way("transformers", 125)), _32K),
]
TINY = ("model.layers=2", "model.width=64", "model.heads=4", "model.kv_heads=2", "model.ffn=128", "model.vocab=64", "model.context=32")
TINY_STEP = (*TINY, "train.batch=2", "train.grad_accum_steps=1")
TINY_FREE = ("latent.bits=4",)


def rows(smoke: bool) -> list[Row]:
    """The rows of the table; smoke: the same ways at tiny shapes."""
    return [_small(row) for row in ROWS] if smoke else ROWS


def _small(row: Row) -> Row:
    if row.recipe == "letters":
        return replace(row, sequences=min(row.sequences, 4), new_tokens=8, smoke=True)
    ways = tuple(replace(way, overrides=(*way.overrides, *(TINY_FREE if way.free else ()))) for way in row.ways)
    return replace(row, ways=ways, overrides=TINY_STEP, sequences=min(row.sequences, 2), new_tokens=8)


# Measuring


@dataclass(frozen=True)
class Options:
    """rounds: of each way. seconds: at least, of a round. wait: at most, until a worker has compiled."""

    smoke: bool
    scratch: Path
    clones: dict[str, Path | None]
    rounds: int
    seconds: float
    wait: float


class Runner:
    """A worker of one way, from its start to the answer that it has compiled."""

    def __init__(self, task: dict[str, Any], options: Options) -> None:
        self.task, self.options, self.calls = {"parts": 1, "folder": ""} | task, options, 1
        self._start()

    def _start(self) -> None:
        options = self.options
        task = self.task | {"scratch": str(options.scratch)}
        if clone := options.clones.get(self.task["peer"]):
            task["folder"] = str(clone.resolve())
        more = {"TORCHDYNAMO_DISABLE": "1"} if options.smoke else {}
        self.worker = Worker("peers_worker.py", task, HERE.parent, options.scratch / "compiled", more)
        self.deadline = time.monotonic() + options.wait

    def prepare(self) -> None:
        """Wait until it has compiled, then find the calls of a round. A step that is out of memory starts again in twice as many parts."""
        try:
            self.wait()
            self._count()
        except WorkerError as error:
            parts = 2 * self.task["parts"]
            if "OutOfMemory" not in str(error) or self.task["work"] != "step" or self.task["peer"] == OURS or parts > MOST_PARTS:
                raise
            self.worker.close()
            self.task["parts"] = parts
            self._start()
            self.prepare()

    def wait(self) -> None:
        """Read its first answer."""
        while not self.worker.has_answer():
            if time.monotonic() > self.deadline:
                raise WorkerError(f"not ready after {self.options.wait:.0f} s")
            time.sleep(0.05)
        self.warm_up: float = self.worker.read()["warm_up"]

    def _count(self) -> None:
        for _ in range(2):
            self.calls = max(1, math.ceil(self.options.seconds / self.round()))

    def round(self) -> float:
        """Seconds of a call, mean of a round."""
        seconds: float = self.worker.ask(f"run {self.calls}")["seconds"]
        return seconds

    def end(self) -> dict[str, Any]:
        """Memory and facts of the worker, which ends."""
        found = self.worker.ask("end")
        facts: dict[str, Any] = found.pop("check")
        parts = self.task["parts"]
        differs = [*facts.pop("differs", []), *([f"{parts} parts of a batch, because it ran out of memory"] if parts > 1 else [])]
        return {"calls_per_round": self.calls, "warm_up_s": self.warm_up} | found | facts | {"differs": differs}

    def close(self) -> None:
        self.worker.close()


def measure(row: Row, ways: Sequence[Way], options: Options) -> dict[str, dict[str, Any]]:
    """What each way took, with its rounds: those that fit into memory together in turns, others one at a time, PASSES times."""
    together = sum(way.gib for way in ways) <= GPU_GIB
    groups = [list(ways)] if together else [[way] for way in ways] * PASSES
    found: dict[str, dict[str, Any]] = {}
    for group in groups:
        for name, new in _in_turns(row, group, options, options.rounds if together else -(-options.rounds // PASSES)).items():
            if "error" in new or "error" in found.get(name, {}):
                found[name] = {"error": new.get("error") or found[name]["error"]}
            else:
                found[name] = new | {"rounds_ms": found.get(name, {}).get("rounds_ms", []) + new["rounds_ms"], "together": together}
    for timing in found.values():
        if "error" not in timing:
            timing.update(_summary(timing["rounds_ms"], "_ms"))
    return found


def _in_turns(row: Row, ways: Sequence[Way], options: Options, rounds: int) -> dict[str, dict[str, Any]]:
    runners: dict[str, Runner] = {}
    found: dict[str, dict[str, Any]] = {way.name: {"rounds_ms": []} for way in ways}

    def attempt(name: str, *actions: str) -> Any:
        try:
            return [getattr(runners[name], action)() for action in actions][-1]
        except WorkerError as error:
            found[name] = {"error": str(error)}
            runners.pop(name).close()
        return None

    try:
        for way in ways:
            runners[way.name] = Runner(row.task(way), options)
        for name in list(runners):
            attempt(name, "prepare")
        for _ in range(rounds):
            for name in list(runners):
                if (seconds := attempt(name, "round")) is not None:
                    found[name]["rounds_ms"].append(1e3 * seconds)
        for name in list(runners):
            facts = attempt(name, "end")  # before found[name] is read: it may become an error
            found[name].update(facts or {})
    finally:
        for runner in runners.values():
            runner.close()
    return found


def rates(options: Options) -> dict[str, Any]:
    """What a large product (FLOP/s) and a large copy (bytes/s) reach on this machine."""
    runner = Runner({"work": "machine", "peer": OURS, "smoke": options.smoke}, options)
    try:
        runner.wait()
        found: dict[str, Any] = runner.worker.ask("end")["check"]
    finally:
        runner.close()
    return found


def _summary(values: Sequence[float], unit: str = "") -> dict[str, float]:
    return {f"median{unit}": median(values), f"least{unit}": min(values), f"most{unit}": max(values)}


def compare(row: Row, found: Mapping[str, dict[str, Any]]) -> None:
    """Add each way's ratios, of a round's time to the same round of another way: median and range."""
    for way in row.ways:
        timing = found.get(way.name, {})
        for kind, other in way.compared().items():
            pair = timing.get("rounds_ms"), found.get(other, {}).get("rounds_ms")
            if all(pair):
                timing[f"to_{kind}"] = _summary([mine / theirs for mine, theirs in zip(*pair, strict=True)])  # type: ignore[arg-type]


# Peers


def peers(options: Options) -> dict[str, dict[str, str]]:
    """Version or commit of each peer, or why it is skipped."""
    return {name: _package(name) for name in PACKAGES} | {name: _clone(name, options.clones[name]) for name in CLONES}


def _package(name: str) -> dict[str, str]:
    try:
        return {"version": metadata.version(name)}
    except metadata.PackageNotFoundError:
        return {"skipped": "not installed: pip install 'freetf[peers]'"}


def _clone(name: str, folder: Path | None) -> dict[str, str]:
    if folder is None:
        return {"skipped": f"no --{name} DIR: git clone {CLONES[name]}"}
    if not (folder / "model.py").is_file():
        return {"skipped": f"--{name} {folder}: no model.py there; name a clone of {CLONES[name]}"}
    command = ["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"]
    changed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {"commit": commit_of(folder) + (", with changes" if changed else "")}


# Showing

COLUMNS = ["", "ms", "tokens/s", "of the ceiling", "time / freetf's", "Free / baseline", "GiB"]


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """Lines of a Markdown table, then what was skipped and what differs."""
    for columns in (COLUMNS, ["---"] * len(COLUMNS)):
        yield f"| {' | '.join(columns)} |"
    for row in found["rows"]:
        for name, timing in row["ways"].items():
            if "median_ms" in timing:
                yield f"| {' | '.join(_cells(row, name, timing, found['machine']))} |"
    yield ""
    if found["smoke"]:
        yield "- Tiny shapes, not compiled: a test of the script. The names of the rows are those of the full shapes."
    for name, about in found["peers"].items():
        yield f"- {SHOWN.get(name, name)}: " + (f"skipped, {about['skipped']}" if "skipped" in about else _version(about))
    seen: set[str] = set()
    for row in found["rows"]:
        for name, timing in row["ways"].items():
            if "error" in timing:
                yield f"- {row['name']}: {name} failed: {timing['error']}"
            line = f"- {name}, unlike freetf: {'; '.join(timing.get('differs', []))}"
            if timing.get("differs") and line not in seen:
                seen.add(line)
                yield line


def _version(about: Mapping[str, str]) -> str:
    return f"version {about['version']}" if "version" in about else f"commit {about['commit']}"


def _cells(row: Mapping[str, Any], name: str, timing: Mapping[str, Any], machine: Mapping[str, Any]) -> list[str]:
    ms, seconds = timing["median_ms"], timing["median_ms"] / 1e3
    digits = 1 if ms >= 100 else 2 if ms >= 10 else 3
    took = f"{ms:,.{digits}f} ({timing['least_ms']:,.{digits}f} to {timing['most_ms']:,.{digits}f})"
    share = ""
    if "flops" in timing:
        share = f"{timing['flops'] / seconds / machine['ceiling']:.1%}"
    elif "bytes" in timing and row["sequences"] == 1:  # of several sequences, the caches count too
        share = f"{timing['bytes'] / seconds / machine['bandwidth']:.1%} of a copy"
    ratios = [_ratio(timing.get(f"to_{kind}")) for kind in ("freetf", "baseline")]
    memory = f"{timing['allocated_gib']:.1f}" if timing["allocated_gib"] else ""
    return [f"{row['name']}: {name}", took, f"{timing['tokens'] / seconds:,.0f}", share, *ratios, memory]


def _ratio(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['median']:.3f} ({found['least']:.3f} to {found['most']:.3f})"


# The whole run


def _about(options: Options) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    machine = {"device": name, "torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
    how = (
        f"{options.rounds} rounds of each way in turn, each of {options.seconds} s or more (`together`: false: in {PASSES} starts, one"
        " process at a time); ratios: median of the rounds' ratios; random tokens and weights"
    )
    peer = (
        "peers' training steps: torch.compile of model and loss in the default mode, autocast, freetf's fused AdamW and its clipping, no"
        " CUDA graph (freetf replays a step as one); gpt-fast: its own generate() and torch.compile in the mode reduce-overhead"
    )
    return {"smoke": options.smoke, "machine": machine | rates(options), "how": how, "peers_how": peer, "peers": {}, "rows": []}


def _are_measured(row: Row, ways: Sequence[Way], found: Mapping[str, Any]) -> bool:
    done = next((each["ways"] for each in found["rows"] if each["name"] == row.name), {})
    return all("median_ms" in done.get(way.name, {}) for way in ways)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file; rows that it has are skipped")
    parser.add_argument("--gpt-fast", type=Path, help=f"clone of {CLONES['gpt-fast']}")
    parser.add_argument("--nanogpt", type=Path, help=f"clone of {CLONES['nanogpt']}")
    parser.add_argument("--only", default="", help="measure rows whose name contains this, such as '124M'")
    parser.add_argument("--minutes", type=float, default=60, help="start no row after this time; a row takes up to 6")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, few rounds, not compiled")
    chosen = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        clones = {"gpt-fast": chosen.gpt_fast, "nanogpt": chosen.nanogpt}
        options = Options(chosen.smoke, Path(scratch), clones, *((2, 0.01, 120) if chosen.smoke else (6, 0.5, 420)))
        found = stored(chosen.out, lambda found: (found["machine"], list(table(found)))) or _about(options)
        if found["smoke"] != chosen.smoke:
            parser.error(f"{chosen.out} has rows {'of tiny' if found['smoke'] else 'that are not of tiny'} shapes: name another file")
        there = peers(options)
        found["peers"] = there | {name: about for name, about in found["peers"].items() if "skipped" in there[name]}
        for row in rows(chosen.smoke):
            ways = [way for way in row.ways if "skipped" not in there.get(way.peer, {})]
            late = time.monotonic() - begun > 60 * chosen.minutes
            if late or chosen.only not in row.name or _are_measured(row, ways, found):
                continue
            print(f"{time.monotonic() - begun:5.0f} s  {row.name}: {'; '.join(way.name for way in ways)}", file=sys.stderr, flush=True)
            measured = measure(row, ways, options)
            compare(row, measured)
            new = {"name": row.name, "work": row.work, "sequences": row.sequences, "ways": measured}
            found["rows"] = [each for each in found["rows"] if each["name"] != row.name] + [new]
            chosen.out.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
