"""`freetf demo`: the main job as a short story, told by the same functions that the commands call."""

from __future__ import annotations

import json as json_text
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freetf_cli.cli.options import DeviceOption, JsonOption, QuietOption, SeedOption, SmokeOption

if TYPE_CHECKING:
    from freetf_cli.records import Agreement, Sample, TrainResult

OutOption = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for data and runs; one that exists is gone on with.")]

ROWS = 50_000
PROMPT = "K>"
SHOWN_GROUPS, SHOWN_COUNT = 3, 6  # as in the paper's Figure 4
GROUPS, COUNT = 24, 24  # what the agreement is measured on


def demo(
    out: OutOption = Path("demo"),
    smoke: SmokeOption = False,
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a small Free Transformer and its baseline on letters, and see what the latent decides.

    Takes some three minutes on two CPU cores. Run again, it goes on where it was.

    $ freetf demo
    $ freetf demo -o /tmp/demo --smoke
    """
    from freetf_cli.records import DemoResult, to_json
    from freetf_cli.report import story

    started = time.perf_counter()
    told = not json
    data, baseline, free = out / "letters", out / "baseline", out / "free"
    options = f"--set data.dir={data}" + (f" --seed {seed}" if seed else "") + (" --smoke" if smoke else "")
    if told:
        story.chapter(
            1,
            f"Data: {ROWS:,} rows of letters, with all that is hidden in them known",
            f"freetf gen-synthetic letters -o {data} --count {ROWS}",
        )
    _make_data(data, quiet=quiet or json)
    if told:
        story.chapter(2, "A baseline: it can only write and see what comes", f"freetf train demo-baseline -o {baseline} {options}")
    first = _train("demo-baseline", data, baseline, device, seed, smoke=smoke, quiet=quiet or json)
    if told:
        story.chapter(3, "A Free Transformer: it decides before it writes", f"freetf train demo-free -o {free} {options}")
    second = _train("demo-free", data, free, device, seed, smoke=smoke, quiet=quiet or json)
    agreement = _figure4(free, device, told=told)
    result = DemoResult(str(out), first, second, agreement, time.perf_counter() - started)
    if json:
        typer.echo(to_json(result))
    else:
        story.ending(result)


def _make_data(folder: Path, *, quiet: bool) -> None:
    from freetf_cli.data.prepare import DEFAULT_SPLIT, write_task
    from freetf_cli.report import story, terminal
    from freetf_cli.report.progress import counter
    from freetf_cli.tasks import make_task

    if (folder / "manifest.json").is_file():
        return
    task = make_task("letters", {})
    if not quiet:
        story.examples([example.text for example in task.examples(seed=0, start=0, count=4)], task.entropy())
    with counter("rows", total=ROWS, quiet=quiet) as advance:
        summary = write_task(task, folder, count=ROWS, seed=0, split=DEFAULT_SPLIT, progress=advance)
    if not quiet:
        terminal.dataset_summary(summary)


def _train(recipe: str, data: Path, run: Path, device: str, seed: int, *, smoke: bool, quiet: bool) -> TrainResult:
    from freetf_cli.cli.train import run_training
    from freetf_cli.config.files import load_recipe
    from freetf_cli.report import story
    from freetf_cli.training.signals import stop_on_signals

    loaded = load_recipe(recipe, smoke=smoke, overrides=[f"data.dir={json_text.dumps(str(data))}", f"train.seed={seed}"])
    with stop_on_signals() as stop:
        result = run_training(loaded, run, device, stop, resume="auto", quiet=quiet)
    if not quiet:
        story.trained(result)
    return result


def _figure4(run: Path, device: str, *, told: bool) -> list[Agreement]:
    """Draw groups with independent and with shared Z, and measure how far the latter agree."""
    from dataclasses import replace

    from freetf_cli.device import resolve_device
    from freetf_cli.evaluation.probe.agreement import letters_agreement
    from freetf_cli.generation.sampling import SampleSpec, generate
    from freetf_cli.records import DataFacts
    from freetf_cli.report import story
    from freetf_cli.report.console import warn
    from freetf_cli.runs.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(run, warn)
    model, tokenizer = checkpoint.model(resolve_device(device)), checkpoint.tokenizer()
    # Z from the prior at the prompt too: the encoder has only ever seen whole rows, and of two tokens it says the same every time.
    spec = SampleSpec(total=(checkpoint.recipe.model.context or 1) + 1, count=SHOWN_COUNT, prompt_z="prior")
    if told:
        options = f"--prompt '{PROMPT}' --groups {SHOWN_GROUPS} --count {SHOWN_COUNT} --prompt-z prior --seed 1"
        story.chapter(4, "What does Z decide? The paper's Figure 4", f"freetf sample {run} {options} --z shared  # the green boxes")
        blue = list(generate(model, tokenizer, [PROMPT], spec))
        green = list(generate(model, tokenizer, [PROMPT], replace(spec, z="shared", groups=SHOWN_GROUPS, seed=1)))
        story.figure4(_by_group(blue), _by_group(green), PROMPT)
    measured = generate(model, tokenizer, [PROMPT], replace(spec, z="shared", groups=GROUPS, count=COUNT, seed=2))
    return letters_agreement(_by_group(list(measured)), DataFacts(**checkpoint.state["data"]))


def _by_group(records: list[Sample]) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record.text)
    return list(groups.values())
