"""The documentation tells the truth: its commands and code run, its links lead somewhere, its tables are the program's.

Each page gets a folder with some reviews in `reviews/`; its console blocks run there in order, and then its python blocks in one process.
SHORTER shortens them. In the pages:

    $ make demo   # minutes                                 left out: # gpu, # network and # minutes
    <!-- test: add `--smoke` to `freetf train` -->          before a block: the test adds this to such lines of the block
    <!-- test: exact output -->                             before a block: what it shows under a command is what comes out
    <!-- test: skip -->                                     before a block: nothing of it runs

docs/cli.md is generated from the program's help; its commands are parsed, not run.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from freetf_cli.cli.app import COMMANDS, build_app
from freetf_cli.config.files import expand, load_recipe
from freetf_cli.evaluation.statistics import repeated
from freetf_cli.records.likelihood import Estimate
from freetf_cli.tasks import make_task

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = ROOT / "docs" / "cli.md"
GENERATOR = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "reference.py")))
LEFT_OUT = re.compile(r"\s+#\s*(gpu|network|minutes)\s*$")
PROGRAMS = ("freetf", "python", "make", "jq")
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
SHORTER = {  # options that the test adds to a command
    "freetf train": "--set train.batch=8 --set eval.sequences=16 --set eval.samples=1",
    "freetf probe-latent": "--sequences 88 --count 2",
    "freetf bench mapper": "--steps 1 --repeats 1",
}
RUN_PYTHON = "import runpy, sys; [runpy.run_path(path, run_name='__main__') for path in sys.argv[1:]]"


@dataclass
class Block:
    """A fenced block of a page: its language, its text, the line it begins at and the test's notes before it."""

    language: str
    text: str
    line: int
    notes: list[str] = field(default_factory=list)


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    notes: list[str] = []
    inside: Block | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if inside is not None:
            if line.startswith("```"):
                found.append(inside)
                inside = None
            else:
                inside.text += line + "\n"
        elif line.startswith("```"):
            inside, notes = Block(line[3:].strip(), "", number, notes), []
        elif note := re.fullmatch(r"<!-- test: (.*) -->", line):
            notes.append(note[1])
        elif line.strip():
            assert not notes, f"{page.name}, line {number}: a note for the test stands before no block"
    assert inside is None, f"{page.name}: a block is not closed"
    return found


def commands(block: Block) -> list[tuple[str, str]]:
    """The commands of a console block and the output shown under each; one that ends in a backslash goes on."""
    found: list[tuple[str, str]] = []
    for line in block.text.replace("\\\n", "").splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif found:
            found[-1] = (found[-1][0], found[-1][1] + line + "\n")
    return found


def shortened(command: str, block: Block) -> str:
    """The command with what the page's notes and SHORTER add to it."""
    for note in block.notes:
        if change := re.fullmatch(r"add `(.+)` to `(.+)`", note):
            if command.startswith(change[2]):
                command += f" {change[1]}"
        else:
            assert note in ("exact output", "skip"), f"line {block.line}: unknown note '{note}'"
    if "--dry-run" in command:
        return command
    added = next((options for start, options in SHORTER.items() if command.startswith(start)), "")
    return f"{command} {added}".rstrip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a page's commands run: some reviews, and `freetf` and `python` on the path."""
    shutil.copytree(ROOT / "tests" / "excerpts" / "movie_reviews", tmp_path / "reviews")
    programs = tmp_path / ".bin"
    programs.mkdir()
    for name, words in (("freetf", f"'{sys.executable}' -m freetf_cli"), ("python", f"'{sys.executable}'")):
        (programs / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    return tmp_path


def run(words: list[str], folder: Path, environment: dict[str, str], where: str) -> str:
    path = os.pathsep.join([str(folder / ".bin"), environment.get("PATH", os.defpath)])
    variables = {**environment, "PATH": path, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=variables, timeout=100)
    assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{done.stderr}"
    return done.stdout


def run_console(block: Block, shell: Callable[[str, str], str], page: str) -> None:
    for command, shown in commands(block):
        program = shlex.split(command)[0]
        if LEFT_OUT.search(command):
            continue
        assert program in PROGRAMS, f"{page}: '{command}' must be marked # gpu, # network or # minutes"
        if program == "jq" and shutil.which("jq") is None:
            continue
        out = shell(shortened(command, block), f"{page}, line {block.line}: {command}")
        if "exact output" in block.notes:
            assert out == shown


@pytest.fixture
def shell_line(
    folder: Path, environment: dict[str, str], run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, no_charts: None
) -> Callable[[str, str], str]:
    """A line as a shell would run it. freetf alone, or with `> file`, runs in this process: torch is loaded once, not for each.

    What would start processes is tested in tests/cli: here a run of several processes is only planned, and the runs of a sweep follow
    one another in this process.
    """
    monkeypatch.chdir(folder)
    monkeypatch.setattr("freetf_cli.evaluation.probe.decoding.EPOCHS", 2)  # what probes find is tested in tests/evaluation/probe

    def line(command: str, where: str) -> str:
        words = shlex.split(command)
        target = words[-1] if words[-2:-1] == [">"] else None
        words = words[:-2] if target else words
        if words[0] != "freetf" or {"|", "<", ">", "&&", ";"} & set(words):
            return run(["bash", "-c", f"set -o pipefail; {command}"], folder, environment, where)
        if any(word.startswith("parallel.processes=") for word in words):
            words.append("--dry-run")
        if "--run" in words:
            at = words.index("--run")
            assert int(words[at + 1]) > 0
            for one in line(shlex.join(words[:at] + words[at + 2 :]), where).splitlines():
                line(one, where)
            return ""
        done = run_cli(*words[1:])
        assert done.code == 0, f"{where}: exit code {done.code}\n{done.stderr}"
        if target:
            Path(target).write_text(done.stdout, encoding="utf-8")
        return "" if target else str(done.stdout)

    return line


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "docs/cli.md"])
def test_commands_and_code_run(name: str, folder: Path, environment: dict[str, str], shell_line: Callable[[str, str], str]) -> None:
    programs: list[str] = []
    for block in blocks(ROOT / name):
        if "skip" in block.notes:
            continue
        if block.language in ("console", "sh"):
            run_console(block, shell_line, name)
        elif block.language == "python":
            programs.append(f"line-{block.line}.py")
            (folder / programs[-1]).write_text(block.text, encoding="utf-8")
    if programs:
        run([sys.executable, "-c", RUN_PYTHON, *programs], folder, environment, name)


def test_commands_of_the_reference_parse() -> None:
    app = typer.main.get_command(build_app())
    for block in blocks(REFERENCE):
        for command, _ in commands(block) if block.language == "console" else ():
            words = shlex.split(re.split(r" [|>] ", command)[0])
            assert words[0] == "freetf"
            _parse(app, words[1:])


def _parse(command: object, words: list[str]) -> None:
    """Typer's own parsing, subcommand by subcommand; it raises for a name or an option that does not exist."""
    inner = getattr(command, "commands", None)
    if inner:
        _parse(inner[words[0]], words[1:])
    else:
        command.make_context("freetf", list(words))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_valid(name: str, tmp_path: Path) -> None:
    for block in blocks(ROOT / name):
        if block.language == "toml":
            path = tmp_path / "recipe.toml"
            path.write_text(block.text, encoding="utf-8")
            for recipe in expand(str(path)):
                load_recipe(recipe, smoke="[smoke" in block.text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        goal = (page.parent / file).resolve() if file else page
        assert goal.exists(), f"{name}: no {target}"
        assert not anchor or anchor in anchors(goal), f"{name}: no heading for {target}"


@pytest.mark.parametrize("name", NAMES)
def test_pages_name_no_machine(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"/work/|/home/|/root\b|/tmp/(?!demo)|\bpypi\b|files\.pythonhosted|download\.pytorch", text)


def test_tables_of_recipes_are_up_to_date() -> None:
    page = GENERATOR.RECIPES.read_text(encoding="utf-8")
    assert GENERATOR.recipes_page(page) == page, "run `make docs`"


def test_every_key_has_a_meaning() -> None:
    rows = [line for line in GENERATOR.key_tables().splitlines() if line.startswith("| `")]
    assert len(rows) > 40
    assert [row for row in rows if row.endswith("|  |")] == []


def test_what_is_not_there_yet_is_not_there() -> None:
    names = {name.split()[0] for name in COMMANDS}
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Not there yet")[2].partition("\n## ")[0]
    assert not names & set(re.findall(r"`freetf ([a-z-]+)`", section))


@pytest.mark.parametrize(("task", "params"), [("letters", {}), ("coins", {}), ("coins", {"flip": "1/8"})])
def test_entropies_of_the_data_page(task: str, params: dict[str, str]) -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    made = make_task(task, params)
    assert f"{made.floor_bits:.3f}" in page
    if not params:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{task}` | {made.row_tokens} "))
        assert all(f"{bits:.3f}" in row for bits in made.entropy().values())


FIGURES, RESULTS = ROOT / "docs" / "figures", ROOT / "docs" / "results"


@pytest.mark.parametrize(
    ("script", "source", "picture"),
    [
        *(("figure4", FIGURES / f"{name}.jsonl", f"{name}.svg") for name in ("demo-figure4", "figure4", "figure4-mini")),
        ("coins_estimate", RESULTS / "coins-estimate-cpu.json", "coins-estimate.svg"),
        ("growth", RESULTS / "growth-h200.json", "growth.svg"),
        ("open_ended_figure", RESULTS / "open-ended-h200.json", "open-ended.svg"),
        ("questions_figure", RESULTS / "questions-h200.json", "questions.svg"),
        ("sweep", RESULTS / "letters-sweep-h200.json", "letters-sweep.svg"),
    ],
)
def test_pictures_are_drawn_from_their_data(
    script: str, source: Path, picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))  # scripts import each other by their names
    runpy.run_path(str(ROOT / "scripts" / f"{script}.py"))["main"](str(source), str(tmp_path / "again.svg"))
    drawn = (FIGURES / picture).read_text(encoding="utf-8")
    assert (tmp_path / "again.svg").read_text(encoding="utf-8") == drawn, f"draw it again with scripts/{script}.py"
    assert not re.search(r"<script|href=\"(?!#)|@import|url\((?!#)", drawn)


def test_the_tables_of_benchmarks_have_the_numbers_of_their_results() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    compared = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "hflm.py")))
    for row in json.loads((RESULTS / "hflm-cpu.json").read_text(encoding="utf-8"))["rows"]:
        assert compared.line(row) in page
    pair = json.loads((RESULTS / "benchmarks-pair-cpu.json").read_text(encoding="utf-8"))
    for baseline, free in zip(pair["baseline"]["tasks"], pair["free"]["tasks"], strict=True):
        scores = (one["scores"][one["metric"]] for one in (baseline, free))
        cells = " | ".join(f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" for score in scores)
        times = f"{baseline['seconds']:.0f} / {free['seconds']:.0f}"
        assert re.search(rf"\| `{free['task']}` \| `{free['metric']}` \| {re.escape(cells)} .* {free['truncated']} \| {times} \|", page)


def test_the_tables_of_coins_and_toy_reviews_have_the_numbers_of_their_runs() -> None:
    page = (ROOT / "docs" / "deciding-first.md").read_text(encoding="utf-8")
    coins, reviews = (json.loads((RESULTS / f"{name}-cpu.json").read_text(encoding="utf-8"))["runs"] for name in ("coins", "reviews-toy"))
    for recipe in ("coins-free", "coins-literal"):
        probes = [run["probe"] for run in coins if run["recipe"] == recipe]
        assert ", ".join(f"{probe['factors'][0]['information']['value']:.2f}" for probe in probes) in page
        assert len({probe["step"] for probe in probes}) == 1
    probed = [run["probe"] for run in reviews if "probe" in run]
    assert probed
    for probe in probed:
        value, low, high = (probe["factors"][0]["information"][name] for name in ("value", "low", "high"))
        assert f"| {value:.2f} [{low:.2f}, {high:.2f}] | {100 * probe['valid']['value']:.1f} |" in page


@pytest.fixture
def open_ended(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """scripts/open_ended.py, which chooses the checkpoints that the tables show."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))  # scripts import each other by their names
    return SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "open_ended.py")))


def test_the_table_of_open_ended_tasks_has_the_numbers_of_its_runs(open_ended: SimpleNamespace) -> None:
    page = (ROOT / "docs" / "deciding-first.md").read_text(encoding="utf-8")
    for recipe, each in by_recipe("open-ended-h200").items():
        cells = []
        for chosen in (open_ended.lowest_cost, open_ended.highest_mean):
            by_heat = [repeated([row["creativity"] for row in chosen([cooled(rows, heat) for rows in each])]) for heat in (0.0, 0.5, 1.0)]
            cells += [by_heat[0], max(by_heat[1:], key=lambda mean: mean.value)]
        task, _, arm = recipe.partition("/")
        assert f"| {task} | `{arm}` | {' | '.join(map(plus_minus, cells))} |" in page


def test_the_tables_of_questions_have_the_numbers_of_their_runs(open_ended: SimpleNamespace) -> None:
    """Path-star shows each seed, countdown the mean."""
    page = (ROOT / "docs" / "deciding-first.md").read_text(encoding="utf-8")
    for recipe, each in by_recipe("questions-h200").items():
        heats = {0.0: "0", 1.0: "1"} if recipe.startswith("path-star") else {0.0: "0", 0.5: "1/2", 1.0: "1"}
        for heat, name in heats.items():
            rows = open_ended.lowest_cost([cooled(rows, heat) for rows in each])
            passed = [[row[f"pass@{k}"] for row in rows] for k in (1, 4, 16, 64)]
            assert len(rows) == 3
            seeds = (", ".join(f"{value:.3f}" for value in values) for values in passed)
            cells = seeds if recipe.startswith("path-star") else (plus_minus(repeated(values)) for values in passed)
            assert f"| `{recipe}` | {name} | {' | '.join(cells)} |" in page
    for degree in (2, 5):
        cells = (f"{1 - (1 - 1 / degree) ** k:.3f}" for k in (1, 4, 16, 64))
        assert f"| guessing the arm of {degree} | | {' | '.join(cells)} |" in page


def test_the_table_of_path_star_probes_has_the_numbers_of_its_results() -> None:
    page = (ROOT / "docs" / "deciding-first.md").read_text(encoding="utf-8")
    probed = [run for run in json.loads((RESULTS / "questions-probes-h200.json").read_text(encoding="utf-8"))["runs"] if "arm" in run]
    assert len(probed) == 6
    for run in probed:
        costs = f"{run['ce_posterior'][0]:.2f} | {run['kl'][0]:.1f} | {run['ce_prior'][0]:.1f} | {run['nll'][0]:.2f}"
        read = [max(one["bits"][0] for one in run["decoded_arm"] if one["source"] == source) for source in ("Z", "hidden")]
        told, known, valid = run["arm"]["information"], run["arm"]["entropy"][0], run["valid_percent"]
        decided = f"{told[0]:.2f} [{told[1]:.2f}, {told[2]:.2f}] of {known:.2f} | {valid[0]:.1f} [{valid[1]:.1f}, {valid[2]:.1f}]"
        assert f"| `{run['run']}` | {costs} | {read[0]:.2f} | {read[1]:.2f} | {decided} |" in page


def by_recipe(name: str) -> dict[str, list[list[dict[str, Any]]]]:
    """The rows of each run of a result of scripts/open_ended.py, by recipe."""
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for run in json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["runs"].values():
        found.setdefault(run["recipe"], []).append([dict(zip(run["columns"], row, strict=True)) for row in run["rows"]])
    return found


def plus_minus(mean: Estimate) -> str:
    return f"{mean.value:.3f} ± {mean.value - mean.low:.3f}"


def cooled(rows: list[dict[str, Any]], temperature: float) -> list[dict[str, Any]]:
    return [row for row in rows if row["temperature"] == temperature]


def test_the_sweeps_table_has_the_numbers_of_its_picture() -> None:
    table = (ROOT / "docs" / "probing.md").read_text(encoding="utf-8")
    for run in json.loads((RESULTS / "letters-sweep-h200.json").read_text(encoding="utf-8"))["runs"]:
        for factor in run["intervention"]["factors"][1:]:
            value, low, high = (factor["information"][name] for name in ("value", "low", "high"))
            assert f"| {value:.2f} [{low:.2f}, {high:.2f}] |" in table
