"""Measure training on one to eight GPUs of one machine: speed, scaling, memory, a sharded checkpoint, and a killed process.

    python scripts/scaling.py OUT.json                       # 8.5 minutes at most; a further call does what OUT.json lacks
    python scripts/scaling.py OUT.json --only "8b free, 8"   # the cases whose name contains this
    python scripts/scaling.py OUT.json --smoke               # tiny models in 1, 2 and 4 processes on a CPU: a test of this script

A case has processes of its own, and none is left when it ends. Cases that need more GPUs than there are, or more time than is left, are
listed at the end. A case does one of three works:

steps    STEPS timed steps on random tokens, after WARM_UP steps that compile and capture: with a wait after every step, and then queued,
         as a run queues them. Before them, each GPU's rate in a large matrix product: the ceiling.
killed   `freetf train`; one process gets SIGKILL after step SAVED: seconds until all have ended, and what was reported.
resumed  The same, but after step LAST and when the checkpoint of step SAVED is complete. Then `--resume` with it: the records of the steps
         after it must be the same, bit for bit.

Prints the tables of docs/distributed.md, with the goals beside what was measured. Needs Linux: processes are found in /proc.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any
from uuid import uuid4

from stored import stored

from freetf_cli.cli.app import main as freetf
from freetf_cli.durable import write_durably
from freetf_cli.training.pool import threads_each
from freetf_cli.training.signals import signal_handler

HERE = Path(__file__).resolve().parent
WARM_UP, STEPS = 6, 20
SAVED, LAST = 3, 6  # the step that is saved, and the last one that is compared
SHARE, RATIO, MEMORY, STOP, SCALING = 0.60, 1.035, 0.05, 60.0, 0.95  # the goals
MARK = "FREETF_SCALING", uuid4().hex  # an environment variable by which the processes of this script are found
POLL = 0.05  # seconds
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What is measured of a recipe on a number of processes. rows: sequences per process and step."""

    name: str
    recipe: str
    processes: int
    rows: int
    overrides: Sequence[str] = ()
    work: str = "steps"
    steps: int = STEPS
    profile: bool = False
    memory: bool = False  # what is allocated at the peak
    save: bool = False  # in the background, while steps go on
    goals: bool = False  # whether the goals are for this case
    seconds: int = 110  # that must be left to start it


_FSDP, _DDP = ("parallel.mode=fsdp",), ("parallel.mode=ddp",)
_KEPT = (*_FSDP, "parallel.reshard_after_forward=false")
_2K = ("model.context=2048", "train.grad_accum_steps=1")


def _case(recipe: str, processes: int, rows: int, engine: str, *overrides: str, **options: Any) -> Case:
    kind = recipe.removeprefix("paper-").replace("-", " ")
    name = ", ".join(filter(None, [kind, str(processes), engine, options.get("work")]))
    shape = _2K if recipe.startswith("paper") else ()
    return Case(name, recipe, processes, rows, (*shape, *overrides), **options)


CASES = [
    _case("paper-8b-free", 8, 8, "fsdp", *_FSDP, memory=True, goals=True, seconds=180),
    _case("paper-8b-baseline", 8, 8, "fsdp", *_FSDP, goals=True, seconds=150),
    _case("paper-1.5b-free", 1, 16, "", seconds=120),
    _case("paper-1.5b-free", 8, 16, "fsdp, kept", *_KEPT, goals=True, seconds=120),
    _case("paper-8b-free", 8, 2, "fsdp", *_FSDP, work="killed", goals=True, seconds=200),
    _case("paper-8b-free", 8, 2, "fsdp", *_FSDP, work="resumed", goals=True, seconds=480),
    _case("paper-1.5b-free", 8, 16, "hsdp 2 × 4", "parallel.mode=hsdp", "parallel.shard=4", seconds=120),
    _case("paper-1.5b-free", 4, 16, "fsdp, kept", *_KEPT),
    _case("paper-1.5b-free", 2, 16, "fsdp, kept", *_KEPT),
    _case("paper-8b-free", 4, 8, "fsdp", *_FSDP, seconds=180),
    _case("paper-8b-free", 2, 4, "fsdp", *_FSDP, memory=True, save=True, seconds=240),
    _case("paper-8b-baseline", 2, 4, "fsdp", *_FSDP),
    _case("paper-1.5b-free", 2, 2, "fsdp", *_FSDP, work="killed", seconds=150),
    _case("paper-1.5b-free", 2, 2, "fsdp", *_FSDP, work="resumed", seconds=240),
    _case("paper-1.5b-free", 2, 16, "fsdp", *_FSDP),
    _case("paper-1.5b-free", 2, 16, "ddp", *_DDP),
    _case("paper-1.5b-baseline", 2, 16, "fsdp", *_FSDP),
    _case("paper-1.5b-baseline", 2, 16, "fsdp, kept", *_KEPT),
    _case("letters-free", 1, 256, "", steps=200),
    _case("letters-free", 2, 128, "ddp", *_DDP, steps=200),
]
CASES += [replace(one, name=f"{one.name}, profiled", steps=5, profile=True) for one in CASES[-6:-2]]
_SMALL = ("model.layers=2", "model.width=32", "model.heads=2", "model.kv_heads=1", "model.ffn=64", "model.vocab=320", "model.context=32")
_TINY = (*_SMALL, "train.compile=off", "train.precision=fp32")
_TINY_FREE = (*_TINY, "latent.bits=4")
_QUICK: dict[str, Any] = {"steps": 3, "goals": True, "seconds": 0}
SMOKE = [
    _case("paper-8b-free", 1, 2, "", *_TINY_FREE, **_QUICK),
    _case("paper-8b-baseline", 1, 2, "", *_TINY, **_QUICK),
    _case("paper-8b-free", 4, 2, "hsdp 2 × 2", "parallel.mode=hsdp", "parallel.shard=2", *_TINY_FREE, save=True, **_QUICK),
    _case("paper-8b-free", 2, 2, "fsdp", *_FSDP, *_TINY_FREE, work="resumed", **_QUICK),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file; the cases that it has are not measured again")
    parser.add_argument("--minutes", type=float, default=8.5, help="end after this time (default: 8.5)")
    parser.add_argument("--only", default="", help="measure the cases whose name contains this")
    parser.add_argument("--smoke", action="store_true", help="tiny models on a CPU")
    chosen = parser.parse_args()
    cases = [one for one in (SMOKE if chosen.smoke else CASES) if chosen.only in one.name]
    began, gpus = time.monotonic(), 0 if chosen.smoke else count_gpus()
    found: dict[str, Any] = stored(chosen.out, lambda found: tables(measured_rows(found))) or {"rows": []}
    left: dict[str, str] = {}
    with signal_handler(lambda number, _: sys.exit(128 + number), ["SIGTERM", "SIGHUP"]), Scratch(gpus) as scratch:
        for case in cases:
            remaining = chosen.minutes * 60 - (time.monotonic() - began)
            if any(row["name"] == case.name and "error" not in row for row in found["rows"]):
                continue
            if case.processes > gpus and not chosen.smoke:
                left[case.name] = f"needs {case.processes} GPUs, and there are {gpus}"
            elif remaining <= case.seconds:
                left[case.name] = f"needs {case.seconds} s"
            else:
                row = asdict(case) | measured(case, scratch, remaining)
                if "error" in row:
                    what, *said = row["error"].strip().splitlines()
                    left[case.name] = ": ".join(["failed", what, *said[-1:]])[:300]
                found["rows"] = [*(each for each in found["rows"] if each["name"] != case.name), row]
                write_durably(chosen.out, json.dumps(found, indent=1) + "\n")
                print(f"{time.monotonic() - began:5.0f} s  {case.name}", file=sys.stderr, flush=True)
    print("\n".join(tables(measured_rows(found))))
    print("\n" + "\n".join([f"left: {name}: {why}" for name, why in left.items()] or ["left: nothing"]))


def measured_rows(found: dict[str, Any]) -> list[Row]:
    """The rows of the cases that did not fail."""
    return [row for row in found["rows"] if "error" not in row]


def count_gpus() -> int:
    import torch

    return torch.cuda.device_count()  # without a CUDA context, which would take memory


def measured(case: Case, scratch: Scratch, seconds: float) -> Row:
    """What a case found; with `error` if its processes fail or take too long."""
    began, limit = time.monotonic(), time.monotonic() + seconds
    try:
        row = WORKS[case.work](case, scratch, limit)
    except Failed as error:
        row = {"error": str(error)}
    finally:
        scratch.clear()
    return row | {"wall_s": round(time.monotonic() - began, 1)}


class Failed(Exception):
    """A case whose processes failed or took too long."""


class Scratch:
    """A folder for the processes of a case, and an end for those that are left."""

    def __init__(self, gpus: int) -> None:
        self.device = "cuda" if gpus else "cpu"
        self._data: Path | None = None
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Scratch:
        self.root = Path(tempfile.mkdtemp(prefix="scaling-"))
        self.folder = self.root / "case"
        self.clear()
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
        shutil.rmtree(self.root, ignore_errors=True)

    def end(self) -> None:
        """Kill the processes that are left, and wait for them."""
        limit = time.monotonic() + STOP
        while (left := processes()) and time.monotonic() < limit:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL)
        for process in self._started:
            process.poll()
        self._started.clear()

    def clear(self) -> None:
        """End the processes that are left, and empty the folder."""
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def data(self) -> Path:
        """A data folder of 2 MB of random words, as bytes."""
        if self._data is None:
            draw, source, self._data = random.Random(0), self.root / "words.jsonl", self.root / "data"
            words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(2000)]
            source.write_text("".join(json.dumps({"text": " ".join(draw.choices(words, k=1500))}) + "\n" for _ in range(200)))
            with redirect_stdout(io.StringIO()):
                code = freetf(["prepare", str(source), "-o", str(self._data), "-q"])
            if code:
                raise Failed("the data could not be prepared")
        return self._data

    def start(self, words: Sequence[str], count: int, name: str, **more: str) -> subprocess.Popen[bytes]:
        """Start one of `count` processes of a case. What it prints is in the files NAME.out and NAME.err."""
        path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
        here = {"GLOO_SOCKET_IFNAME": "lo", "TMPDIR": str(self.folder), "PYTHONPATH": path, MARK[0]: MARK[1]}
        defaults = {"OMP_NUM_THREADS": threads_each(count), "TORCHINDUCTOR_CACHE_DIR": str(self.root / "compiled")}
        environment = {**defaults, **os.environ, **here, **more}
        with (self.folder / f"{name}.out").open("wb") as out, (self.folder / f"{name}.err").open("wb") as err:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True)
        self._started.append(process)
        return process

    def read(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(errors="replace") if path.exists() else ""


def processes() -> dict[int, str]:
    """The living processes that this script, or a process of it, has started: RANK in their environment, "" if it is not there, by pid."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another user's
            pairs = (word.partition("=") for word in path.read_bytes().decode(errors="replace").split("\0"))
            environment = {name: value for name, _, value in pairs}
            if environment.get(MARK[0]) == MARK[1] and not ended(int(path.parent.name)):
                found[int(path.parent.name)] = environment.get("RANK", "")
    return found


def ended(pid: int) -> bool:
    """Whether a process has ended, if only as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def until(happened: Callable[[], bool], limit: float, alive: Callable[[], bool], what: str, said: Callable[[], str]) -> None:
    """Wait for something. Raises Failed at the time limit, or if the processes that should do it are gone."""
    while not happened():
        if not alive() and not happened():
            raise Failed(f"the processes ended before {what}\n{said()[-3000:]}")
        if time.monotonic() > limit:
            raise Failed(f"not in time: {what}\n{said()[-3000:]}")
        time.sleep(POLL)


def steps(case: Case, scratch: Scratch, limit: float) -> Row:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(case.processes))
    setting = asdict(case) | {"warm_up": WARM_UP, "device": scratch.device, "folder": str(scratch.folder)}
    words = [sys.executable, str(HERE / "scaling_worker.py"), json.dumps(setting)]
    workers = [
        scratch.start(words, case.processes, str(rank), **address, **sizes, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(case.processes)
    ]

    def said() -> str:
        failed = [rank for rank, worker in enumerate(workers) if worker.poll()]
        return "".join(scratch.read(f"{rank}.err") for rank in failed[:1])

    def alive() -> bool:
        return not any(worker.poll() for worker in workers)

    until(lambda: all(worker.poll() == 0 for worker in workers), limit, alive, "the last step", said)
    lines = [line for line in scratch.read("0.out").splitlines() if line.startswith('{"name"')]
    if not lines:
        raise Failed("process 0 printed no row")
    row: Row = json.loads(lines[-1])
    return row


@dataclass
class Run:
    """`freetf train` in several processes."""

    launcher: subprocess.Popen[bytes]
    folder: Path
    said: Callable[[], str]

    @classmethod
    def start(cls, case: Case, scratch: Scratch, name: str, settings: Sequence[str] = (), words: Sequence[str] = ()) -> Run:
        """The run of a case that ends only when it is stopped; every step is recorded. words: more options of `freetf train`."""
        sizes = [f"parallel.processes={case.processes}", f"train.batch={case.processes * case.rows}", "train.steps=1000000"]
        kept = ["train.log_every=1", "train.keep_last=1000000", "eval.every=0", "eval.samples=0", f"data.dir={scratch.data()}"]
        options = [word for setting in (*case.overrides, *sizes, *kept, *settings) for word in ("--set", setting)]
        folder = scratch.folder / "run"
        command = [sys.executable, "-m", "freetf_cli", "train", case.recipe, "-o", str(folder), "-q", "--device", scratch.device]
        process = scratch.start([*command, *options, *words], case.processes, name)
        return cls(process, folder, lambda: scratch.read(f"{name}.err"))

    def records(self) -> dict[int, Row]:
        """The records of the steps, by step."""
        with suppress(FileNotFoundError):
            lines = (self.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
            return {row["step"]: row for row in (json.loads(line) for line in lines if line.endswith("\n"))}
        return {}

    def until(self, happened: Callable[[], bool], limit: float, what: str) -> None:
        until(happened, limit, lambda: self.launcher.poll() is None, what, self.said)

    def ranks(self) -> list[int]:
        """The pids of the processes that train, by rank."""
        found = {}
        for pid, rank in processes().items():
            with suppress(OSError):
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.launcher.pid and rank:
                    found[int(rank)] = pid
        return [pid for _, pid in sorted(found.items())]


def killed(case: Case, scratch: Scratch, limit: float) -> Row:
    run = Run.start(case, scratch, "killed", ["train.save_every=1000000"])
    run.until(lambda: SAVED in run.records(), limit, f"step {SAVED}")
    return kill_one(run, limit)


def kill_one(run: Run, limit: float) -> Row:
    """Send SIGKILL to process 1 of a run, and wait until all have ended."""
    ranks = run.ranks()
    if len(ranks) < 2:
        raise Failed("process 1 was not found")
    os.kill(ranks[1], signal.SIGKILL)
    began = time.monotonic()
    while (alive := [pid for pid in ranks if not ended(pid)]) or run.launcher.poll() is None:
        if time.monotonic() > min(limit, began + 2 * STOP):
            break
        time.sleep(POLL)
    lines = run.said().splitlines()
    return {
        "stopped_s": time.monotonic() - began,
        "alive": len(alive),
        "exit_code": run.launcher.poll(),
        "errors": [line for line in lines if line.startswith("freetf: error:")],
        "other_lines": [line for line in lines if not line.startswith("freetf: error:")][-20:],
    }


def resumed(case: Case, scratch: Scratch, limit: float) -> Row:
    settings = [f"train.save_every={SAVED}", "train.deterministic=true"]
    run = Run.start(case, scratch, "first", settings)
    checkpoint = run.folder / "checkpoints" / f"step-{SAVED:06d}"
    run.until(lambda: SAVED in run.records(), limit, f"step {SAVED}")
    began = time.monotonic()
    run.until(checkpoint.exists, limit, f"the checkpoint of step {SAVED}")
    saved = time.monotonic() - began
    run.until(lambda: LAST in run.records(), limit, f"step {LAST}")
    stopped = kill_one(run, limit)
    scratch.end()
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    size, first = sum(path.stat().st_size for path in files), run.records()
    kept = "".join(json.dumps(row) + "\n" for step, row in first.items() if step <= SAVED)
    (run.folder / "metrics.jsonl").write_text(kept)  # so that later records can only be those of the resumed run
    began = time.monotonic()
    again = Run.start(case, scratch, "again", settings, ["--resume", str(checkpoint)])
    again.until(lambda: SAVED + 1 in again.records(), limit, f"step {SAVED + 1} after the resume")
    loaded = time.monotonic() - began
    again.until(lambda: LAST in again.records(), limit, f"step {LAST} after the resume")
    second = again.records()
    scratch.end()
    compared = range(SAVED + 1, LAST + 1)
    return {
        **stopped,
        "first": [first[step] for step in compared],
        "second": [second[step] for step in compared],
        "equal": all(first[step] == second[step] for step in compared),
        "files": [str(path.relative_to(checkpoint)) for path in files],
        "bytes": size,
        "saved_s": saved,
        "first_step_after_resume_s": loaded,
    }


WORKS: dict[str, Callable[[Case, Scratch, float], Row]] = {"steps": steps, "killed": killed, "resumed": resumed}


def tables(rows: Sequence[Row]) -> list[str]:
    """Markdown: the steps of each case, and what is measured against a goal."""
    timed = [row for row in rows if row["work"] == "steps"]
    by_name = {row["name"]: row for row in timed}
    out = ["| steps | ms, queued (waited for) | tokens/s and GPU | of one GPU's | of the ceiling | GiB, worst GPU | GiB, planned |"]
    out.append("|---|---|---|---|---|---|---|")
    for row in timed:
        peak, kept = "" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}", scaling(row, by_name)
        rate = f"{row['tokens_per_second_and_gpu']:,.0f} | {'' if kept is None else f'{100 * kept:.1f} %'} | {100 * share(row):.0f} %"
        out.append(f"| {row['name']} | {row['ms']:,.1f} ({row['median_ms']:,.1f}) | {rate} | {peak} | {row['planned_gib']:.1f} |")
    out += ["", "| | measured | goal | reached |", "|---|---|---|---|"]
    lines = [line for row in rows if row["goals"] for line in results(row, by_name)]
    return out + [f"| {what} | {value} | {goal} | {'yes' if good else 'no'} |" for what, value, goal, good in lines]


def results(row: Row, timed: dict[str, Row]) -> Iterator[tuple[str, str, str, bool]]:
    """What was measured, its value, its goal, and whether it is reached. timed: the rows of steps, by name."""
    name = row["name"]
    if row["work"] != "steps":
        one = len(row["errors"]) == 1 and f"process 1 of {row['processes']} was ended by SIGKILL" in row["errors"][0]
        gone = row["alive"] == 0 and row["exit_code"] == 1
        errors = "; ".join(f"`{line}`" for line in row["errors"]) or "no message"
        value = f"{row['stopped_s']:.1f} s, exit code {row['exit_code']}, {errors}" + f", {row['alive']} left" * (row["alive"] > 0)
        yield f"{name}: all end after process 1 is killed", value, f"≤ {STOP:.0f} s, 1, one", one and gone and row["stopped_s"] <= STOP
    if row["work"] == "resumed":
        value = f"{'equal' if row['equal'] else 'different'}; {row['bytes'] / 1e9:.3g} GB, saved in {row['saved_s']:.1f} s"
        yield f"{name}: records of steps {SAVED + 1} to {LAST}", value, "equal bit for bit", row["equal"]
    if row["work"] != "steps":
        return
    if "8b" in name:
        value = f"{100 * share(row):.1f} % of {mean(row['ceilings']) / 1e12:.3g} TFLOP/s"
        yield f"{name}: share of the ceiling", value, f"≥ {100 * SHARE:.0f} %", share(row) >= SHARE
    if " free" in name and (twin := timed.get(name.replace(" free", " baseline"))):
        ratio = row["ms"] / twin["ms"]
        yield f"{name}: time of a step, Free / baseline", f"{ratio:.3f}", f"≤ {RATIO}", ratio <= RATIO
    if row["peak_gib"] is not None:
        off = row["peak_gib"] / row["planned_gib"] - 1
        yield f"{name}: memory against the plan", f"{100 * off:+.1f} %", f"≤ {100 * MEMORY:.0f} % off", abs(off) <= MEMORY
    if (kept := scaling(row, timed)) is not None:
        value = f"{100 * kept:.1f} %, {kept * row['processes']:.2f} times as fast"
        yield f"{name}: tokens/s and GPU, against one GPU", value, f"≥ {100 * SCALING:.0f} %", kept >= SCALING


def scaling(row: Row, timed: dict[str, Row]) -> float | None:
    """Tokens per second and GPU over those of the same recipe, with as many rows, on one GPU; None if that was not measured."""
    one = timed.get(f"{row['name'].partition(',')[0]}, 1")
    if row["processes"] == 1 or one is None or one["rows"] != row["rows"]:
        return None
    return float(row["tokens_per_second_and_gpu"] / one["tokens_per_second_and_gpu"])


def share(row: Row) -> float:
    """FLOP/s of a GPU as a share of the ceilings' mean."""
    return float(row["flops_per_second_and_gpu"] / mean(row["ceilings"]))


if __name__ == "__main__":
    main()
