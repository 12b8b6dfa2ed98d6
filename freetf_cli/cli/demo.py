"""`freetf demo`: a guided tour of the main features, built on the functions that the commands call."""

from __future__ import annotations

import json as json_text
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freetf_cli.cli.options import DeviceOption, JsonOption, QuietOption, SeedOption, SmokeOption
from freetf_cli.cli.output import Described, show
from freetf_cli.errors import InputError, Interrupted, Stopped

if TYPE_CHECKING:
    from freetf_cli.records import TrainResult
    from freetf_cli.records.samples import Agreement

ROWS = 50_000
PROMPT = "K>"
SHOWN_GROUPS, SHOWN_COUNT = 3, 6  # as in the paper's Figure 4
GROUPS, COUNT = 24, 24  # Zs, and sequences per Z, that measure the agreement


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the demo; an existing one is resumed.")] = Path("demo"),
    smoke: SmokeOption = False,
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> Described:
    """Train a small Free Transformer and its baseline on letters, and show what the latent decides.

    Trains both at the same time, in about two minutes on two idle CPU cores. Running it again resumes it.

    $ freetf demo
    $ freetf demo -o /tmp/demo --smoke
    """
    from freetf_cli.records.run import DemoResult

    if (out / "recipe.toml").is_file():
        raise InputError("the folder of a demo cannot be a run itself", str(out), "choose another -o")
    started, program = time.perf_counter(), _program()
    data, baseline, free = out / "letters", out / "baseline", out / "free"
    rows_at, first_at, second_at = (shlex.quote(str(path)) for path in (data, baseline, free))
    options = f"--set data.dir={rows_at}" + (f" --seed {seed}" if seed else "") + (" --smoke" if smoke else "")
    drawn = f"--prompt '{PROMPT}' --groups {SHOWN_GROUPS} --count {SHOWN_COUNT} --seed 1"
    chapter, shown = partial(_chapter, shown=not json), not (quiet or json)
    with _continued_by(program, ["-o", str(out), "--device", device, "--seed", str(seed), *(["--smoke"] if smoke else [])]):
        rows = f"Data: {ROWS:,} rows of letters, whose hidden factors are known"
        chapter(1, rows, f"{program} gen-synthetic letters -o {rows_at} --count {ROWS}")
        _make_data(data, shown=shown)
        chapter(2, "A baseline: it predicts one token after the other", f"{program} train demo-baseline -o {first_at} {options}")
        chapter(3, "A Free Transformer: it decides before it writes", f"{program} train demo-free -o {second_at} {options}")
        first, second = _train_pair(data, baseline, free, device, seed, smoke=smoke, shown=shown)
        chapter(4, "What does Z decide? The paper's Figure 4", f"{program} sample {second_at} {drawn} --z shared  # the green boxes")
        agreement = _figure4(free, device, shown=not json)
    return DemoResult(program, str(out), first, second, agreement, time.perf_counter() - started)


def _program() -> str:
    """What to type for this program: `freetf` where that is on PATH, else its path."""
    here, found = Path(sys.executable).parent, shutil.which("freetf")
    if found and Path(found).parent.resolve() == here.resolve():
        return "freetf"
    path = here / "freetf"
    short = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return shlex.quote(str(short)) if path.exists() else f"{shlex.quote(sys.executable)} -m freetf_cli"


@contextmanager
def _continued_by(program: str, words: Sequence[str]) -> Iterator[None]:
    """Name the command that continues the demo if a signal stops it inside the block."""
    hint = f"continue with: {program} demo {shlex.join(words)}"
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted", hint=hint) from None
    except (Interrupted, Stopped) as error:
        error.hint = hint
        raise


def _chapter(number: int, title: str, command: str, *, shown: bool) -> None:
    """Print a heading, and the equivalent command."""
    from freetf_cli.report import terminal
    from freetf_cli.report.blocks import Note, Section

    if shown:
        terminal.show_blocks([Section(f"{number}  {title}", [Note(command, "command")])])


def _make_data(folder: Path, *, shown: bool) -> None:
    """Write the data unless it exists, and show a few of its rows."""
    from freetf_cli.data.prepare import write_task
    from freetf_cli.report import terminal
    from freetf_cli.report.blocks import Note
    from freetf_cli.report.progress import counter
    from freetf_cli.tasks import make_task

    if (folder / "manifest.json").is_file():
        return
    task = make_task("letters", {})
    if shown:
        for example in task.examples(seed=0, start=0, count=4):
            terminal.show_line([("   ", "plain"), *task.spans(example.text)])
        entropy = task.entropy()
        bits = ", ".join(f"{name} {entropy[name]:.2f}" for name in ("letter", "position", "noise"))
        floor = f"given the letter {entropy['given_letter']:.3f}, the floor of every CE below"
        terminal.show_blocks([Note(f"   bits in a row: {bits}; {floor}")])
    with counter("rows", total=ROWS) as advance:
        summary = write_task(task, folder, count=ROWS, progress=advance)
    if shown:
        show(summary)


def _train_pair(
    data: Path, baseline: Path, free: Path, device: str, seed: int, *, smoke: bool, shown: bool
) -> tuple[TrainResult, TrainResult]:
    """Train both models at the same time, each on half of the cores: Free here, with a live display, the baseline in a process of its own.

    So small a model gains little from a second thread, and loses much by it where other programs run. If the baseline's process fails,
    its run is continued here, which shows why.
    """
    from freetf_cli.report import terminal
    from freetf_cli.report.console import note
    from freetf_cli.training.pool import child_processes, threads_each
    from freetf_cli.training.signals import stop_error

    settings = [f"data.dir={json_text.dumps(str(data))}", f"train.seed={seed}", f"parallel.threads={threads_each(2)}"]
    words = ["train", "demo-baseline", "-o", str(baseline), "--device", device, "--resume", "auto", *(["--smoke"] if smoke else [])]
    log = baseline.with_suffix(".log")
    with child_processes() as children:
        with log.open("ab") as file:
            child = children.start([*words, *(word for one in settings for word in ("--set", one))], os.environ, stdout=file, stderr=file)
        if shown:
            note(f"both are trained at the same time; the output of the baseline is in {log}")
        second = _train("demo-free", free, settings, device, smoke=smoke)
        child.wait()
        if children.received:
            raise stop_error(children.received[0], "")
    first = _train("demo-baseline", baseline, settings, device, smoke=smoke)
    if shown:
        for result in (first, second):
            terminal.show_blocks(result.report().blocks)
    return first, second


def _train(recipe: str, run: Path, settings: Sequence[str], device: str, *, smoke: bool) -> TrainResult:
    from freetf_cli.cli.train import run_training
    from freetf_cli.config.files import load_recipe
    from freetf_cli.training.signals import stop_on_signals

    with stop_on_signals() as stop:
        return run_training(load_recipe(recipe, smoke=smoke, overrides=settings), recipe, run, device, stop, resume="auto")


def _figure4(run: Path, device: str, *, shown: bool) -> list[Agreement]:
    """Show samples with independent and with shared Z, and measure the agreement of samples that share a Z."""
    from dataclasses import replace

    from freetf_cli.cli.sample import figure4
    from freetf_cli.device import resolve_device
    from freetf_cli.evaluation.probe.agreement import group_agreement
    from freetf_cli.generation.sampling import SampleSpec, figure4_samples, generate
    from freetf_cli.records import DataFacts
    from freetf_cli.report import terminal
    from freetf_cli.report.console import warn
    from freetf_cli.runs.checkpoint import open_model

    checkpoint, model = open_model(run, resolve_device(device), warn)
    facts, tokenizer = DataFacts.read(checkpoint.state["data"]), checkpoint.tokenizer()
    # Z of the prompt from the prior in both, as is the default of shared Z: from two tokens the encoder infers the same Z every time.
    spec = SampleSpec(total=(checkpoint.recipe.model.context or 1) + 1, count=SHOWN_COUNT, prompt_z="prior")
    if shown:
        samples = figure4_samples(model, tokenizer, PROMPT, spec, SHOWN_GROUPS)
        terminal.show_blocks([figure4(rows, facts, shared=name == "shared").block() for name, rows in samples.items()])
    measured = generate(model, tokenizer, [PROMPT], replace(spec, z="shared", groups=GROUPS, count=COUNT, seed=2))
    return group_agreement(figure4(list(measured), facts, shared=True).groups, facts)
