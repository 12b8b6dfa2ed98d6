"""Time training steps and sampling of two checkouts of freetf in one run, and report the ratio new / old.

    python scripts/speed.py OUT.json --old DIR              # on a GPU, 8.5 minutes at most
    python scripts/speed.py OUT.json --old DIR --smoke      # tiny recipes on a CPU, a minute: a test of this script

DIR is another tree of the repository (`git worktree add DIR COMMIT`); the new tree is the one that this script lies in. Each setting has a
worker process for each tree, which compiles and captures once. Then the two take turns: old, new, old, new, … While a pair is
measured, every other worker is stopped (SIGSTOP); it compiles before and after. A setting that is in OUT.json already is skipped, so that
a second call measures what the first had no time for. Results are in docs/performance.md, raw in docs/results/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from stored import stored

HERE = Path(__file__).resolve().parent
GPU_GIB = 132  # of the 139 GiB of an H200: what the workers that are alive may need together
QUIET = 1.5  # seconds from stopping the other workers to the first round, for work that they have queued
ALLOWED = 1.02  # new / old


@dataclass(frozen=True)
class Setting:
    """What a pair of workers measures. gib: GPU memory that one worker needs. work: step, loop or sample (speed_worker.py)."""

    name: str
    work: str
    recipe: str
    gib: float
    overrides: list[str] = field(default_factory=list)
    sequences: int = 1
    new_tokens: int = 64


def _step(name: str, recipe: str, gib: float, *overrides: str) -> Setting:
    return Setting(name, "step", recipe, gib, list(overrides))


_8K = "train.batch=4", "train.grad_accum_steps=1", "model.context=2048"
_12K = "train.batch=6", "train.grad_accum_steps=1", "model.context=2048"
_SHAPE_124M = "model.layers=12", "model.width=768", "model.heads=12", "model.kv_heads=12", "model.ffn=2048", "model.vocab=50304"
STEP_124M = (*_SHAPE_124M, "model.context=1024", "train.batch=16", "train.grad_accum_steps=1")
_DOCUMENTS = "model.document_mask=true", "model.separator=0", "model.vocab=512", "model.context=2048", "train.batch=8"  # of 512 tokens
SETTINGS = [  # the most important first; one that does not fit into memory lets smaller ones pass
    _step("1.5B free, 8,192 tokens", "paper-1.5b-free", 45, *_8K),
    _step("124M baseline", "paper-1.5b-baseline", 12, *STEP_124M),
    _step("124M free", "paper-1.5b-free", 13, *STEP_124M),
    _step("1.5B baseline, 8,192 tokens", "paper-1.5b-baseline", 43, *_8K),
    _step("124M free, masked documents", "paper-1.5b-free", 13, *STEP_124M, *_DOCUMENTS),
    _step("letters-free", "letters-free", 5),
    _step("letters-baseline", "letters-baseline", 5),
    Setting("sample 1.5B free, 1 sequence", "sample", "paper-1.5b-free", 6, sequences=1, new_tokens=512),
    Setting("sample 1.5B free, 64 sequences", "sample", "paper-1.5b-free", 9, sequences=64, new_tokens=512),
    Setting("sample letters-free, 1,000 sequences", "sample", "letters-free", 5, sequences=1000),
    Setting("letters-free, whole loop", "loop", "letters-free", 5, ["eval.samples=0"]),
    _step("880M multi-token, 8,192 tokens", "paper-880m-multi-token", 36, *_8K),
    _step("1.5B free, 12,288 tokens", "paper-1.5b-free", 64, *_12K),  # two workers of 16,384 tokens need more memory than there is
    _step("1.5B baseline, 12,288 tokens", "paper-1.5b-baseline", 62, *_12K),
]
SMOKE = [
    _step("letters-free", "letters-free", 1),
    Setting("letters-free, whole loop", "loop", "letters-free", 1, ["eval.samples=0"]),
    Setting("sample letters-free", "sample", "letters-free", 1, sequences=4, new_tokens=8),
]


@dataclass(frozen=True)
class Options:
    """rounds: of each tree. seconds: at least, of a round."""

    trees: dict[str, Path]
    smoke: bool
    scratch: Path
    rounds: int
    seconds: float


class WorkerError(Exception):
    """A worker ended before it answered; the message is the last line that it wrote to stderr."""


class Worker:
    """A process of a worker script, in a process group of its own. tree: the freetf it measures. cache: folder of compiled code."""

    def __init__(self, script: str, task: dict[str, Any], tree: Path, cache: Path, more: Mapping[str, str]) -> None:
        scratch = Path(task["scratch"])
        self.log = Path(tempfile.mkstemp(suffix=".log", dir=scratch)[1])
        environment = os.environ | {"PYTHONPATH": _with_tree(tree), **more}
        environment |= {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TRITON_CACHE_DIR": str(cache / "triton")}
        environment |= {"TORCHINDUCTOR_COMPILE_THREADS": "4"}  # six processes compile at once
        with self.log.open("wb") as log:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
            command = [sys.executable, str(HERE / script), json.dumps(task)]
            self.process = subprocess.Popen(command, env=environment, start_new_session=True, text=True, **pipes)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.commands, self.answers = self.process.stdin, self.process.stdout
        self.ready: dict[str, Any] | None = None

    def has_answer(self) -> bool:
        return bool(select.select([self.answers], [], [], 0)[0])

    def read(self) -> dict[str, Any]:
        line = self.answers.readline()
        if not line:
            written = self.log.read_text(errors="replace").strip().splitlines() or ["no message"]
            raise WorkerError(next((line for line in reversed(written) if "Error" in line), written[-1])[:300])
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, command: str) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):  # then `read` says why
            print(command, file=self.commands, flush=True)
        return self.read()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()


class Pair:
    """The two workers of a setting."""

    def __init__(self, setting: Setting, options: Options) -> None:
        self.setting, self.options = setting, options
        task = asdict(setting) | {"smoke": options.smoke, "scratch": str(options.scratch)}
        self.workers = {
            tree: Worker("speed_worker.py", task, path, options.scratch / f"compiled-{tree}", {"PYTHONSAFEPATH": "1"})
            for tree, path in options.trees.items()  # each tree compiles for itself
        }

    def is_ready(self) -> bool:
        """Whether both have compiled. Raises WorkerError if one has failed."""
        for worker in self.workers.values():
            if worker.ready is None and worker.has_answer():
                worker.ready = worker.read()
        return all(worker.ready is not None for worker in self.workers.values())

    def measure(self) -> dict[str, Any]:
        old, new = self.workers["old"], self.workers["new"]
        readies = {tree: worker.ready or {} for tree, worker in self.workers.items()}
        calls = self._calls(self._calls(1))
        turns = [(old.ask(f"run {calls}")["seconds"], new.ask(f"run {calls}")["seconds"]) for _ in range(self.options.rounds)]
        rounds = dict(zip(("old", "new"), zip(*turns, strict=True), strict=True))
        ratios = [new / old for old, new in turns]
        row: dict[str, Any] = asdict(self.setting) | {"calls_per_round": calls}
        for tree, worker in self.workers.items():
            ms = [1e3 * seconds for seconds in rounds[tree]]
            kernels = worker.ask("kernels")["kernels"]
            timing = {"median_ms": median(ms), "least_ms": min(ms), "most_ms": max(ms), "rounds_ms": ms}
            row[tree] = timing | {"warm_up_s": readies[tree]["warm_up"], "kernels_ms": kernels} | worker.ask("end")
        row |= {"ratio": median(ratios), "least_ratio": min(ratios), "most_ratio": max(ratios)}
        return row

    def _calls(self, tried: int) -> int:
        """Calls of a round, from rounds of `tried` calls that do not count."""
        fastest: float = min(worker.ask(f"run {tried}")["seconds"] for worker in self.workers.values())
        return max(1, math.ceil(self.options.seconds / fastest))

    def signal(self, number: int) -> None:
        for worker in self.workers.values():
            worker.signal(number)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


class Schedule:
    """Starts pairs while memory and cores last, and measures each when it has compiled."""

    def __init__(self, settings: list[Setting], options: Options) -> None:
        self.waiting, self.options = list(settings), options
        self.pairs: list[Pair] = []
        self.most_pairs = max(1, (os.cpu_count() or 1) // 5)

    def next_row(self, deadline: float) -> dict[str, Any] | None:
        """The result of the next pair that is ready; None when all are measured or time is up."""
        while (self.waiting or self.pairs) and time.monotonic() < deadline:
            self._start()
            for pair in self.pairs:
                try:
                    if pair.is_ready():
                        return self._finish(pair, self._alone(pair))
                except WorkerError as error:
                    return self._finish(pair, asdict(pair.setting) | {"error": str(error)})
            time.sleep(0.1)
        return None

    def _start(self) -> None:
        for setting in list(self.waiting):
            used = sum(2 * pair.setting.gib for pair in self.pairs)
            if len(self.pairs) < self.most_pairs and used + 2 * setting.gib <= GPU_GIB:
                self.waiting.remove(setting)
                self.pairs.append(Pair(setting, self.options))

    def _alone(self, pair: Pair) -> dict[str, Any]:
        """Measure a pair while all others are stopped."""
        others = [other for other in self.pairs if other is not pair]
        for other in others:
            other.signal(signal.SIGSTOP)
        try:
            if others:
                time.sleep(QUIET)
            return pair.measure()
        finally:
            for other in others:
                other.signal(signal.SIGCONT)

    def _finish(self, pair: Pair, row: dict[str, Any]) -> dict[str, Any]:
        self.pairs.remove(pair)
        pair.close()
        return row

    def close(self) -> None:
        for pair in self.pairs:
            pair.close()


def _with_tree(tree: Path) -> str:
    """PYTHONPATH with the tree first, and what this process has beside its own tree."""
    rest = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place and not (Path(place) / "freetf_cli").is_dir()]
    return os.pathsep.join([str(tree), *rest])


def commit_of(tree: Path) -> str:
    """The tree's commit; "unknown" where it is a plain copy, which may lie in another repository."""
    if not (tree / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _about(options: Options) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    machine = {"device": name, "torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
    how = f"{options.rounds} rounds of each tree in turn, each of {options.seconds} s or more; ratio: median of new / old of each turn"
    other = "the workers of other settings compile between measurements and are stopped (SIGSTOP) during them"
    return {"machine": machine, "trees": {tree: commit_of(path) for tree, path in options.trees.items()}, "how": how, "others": other}


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['name']:38} {row['error'][:90]}"
    old, new = row["old"], row["new"]
    spread = max((each["most_ms"] - each["least_ms"]) / each["median_ms"] for each in (old, new))
    slow = "  SLOWER" if row["ratio"] > ALLOWED else ""
    times = f"{old['median_ms']:9.3f} {new['median_ms']:9.3f} {row['ratio']:7.4f} {100 * spread:6.1f} %"
    return f"{row['name']:38} {times}  {_agreement(old['check'], new['check'])}{slow}"


def _agreement(old: float | str, new: float | str) -> str:
    """Whether both trees computed the same: CE of the last training step, or a digest of sampled tokens."""
    if old == new:
        return "same"
    return f"CE {new / old - 1:+.0e}" if isinstance(old, float) and isinstance(new, float) else "other tokens"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file; settings that it has are skipped")
    parser.add_argument("--old", type=Path, required=True, help="tree to compare with")
    parser.add_argument("--new", type=Path, default=HERE.parent, help="default: the tree of this script")
    parser.add_argument("--only", default="", help="measure settings whose name contains this")
    parser.add_argument("--minutes", type=float, default=8.5, help="stop starting and measuring after this time")
    parser.add_argument("--smoke", action="store_true", help="tiny recipes, few rounds")
    chosen = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        trees = {"old": chosen.old.resolve(), "new": chosen.new.resolve()}
        options = Options(trees, chosen.smoke, Path(scratch), *((2, 0.02) if chosen.smoke else (5, 0.5)))
        found = stored(chosen.out, lambda found: (found["trees"], [_line(row) for row in found["rows"]])) or _about(options) | {"rows": []}
        done = {row["name"] for row in found["rows"] if "error" not in row}
        found["rows"] = [row for row in found["rows"] if row["name"] in done]
        settings = [each for each in (SMOKE if chosen.smoke else SETTINGS) if each.name not in done and chosen.only in each.name]
        schedule = Schedule(settings, options)
        try:
            while (row := schedule.next_row(begun + 60 * chosen.minutes)) is not None:
                found["rows"].append(row)
                chosen.out.write_text(json.dumps(found, indent=1) + "\n")
                print(f"{time.monotonic() - begun:5.0f} s  {_line(row)}", file=sys.stderr, flush=True)
        finally:
            schedule.close()
    print(f"{'':38} {'old ms':>9} {'new ms':>9} {'ratio':>7} {'spread':>8}  result")
    for row in found["rows"]:
        print(_line(row))
    measured = {row["name"] for row in found["rows"]}
    if missing := [each.name for each in settings if each.name not in measured]:
        print("not measured:", "; ".join(missing))


if __name__ == "__main__":
    main()
