"""probe-latent: its output, its errors, and that it is deterministic."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from freetf_cli.cli import probe_latent as probe_command
from freetf_cli.errors import InputError

pytestmark = pytest.mark.usefixtures("few_epochs")
OF_NUMBERS, OF_BITS = frozenset(("dims", "rate.all_dims")), frozenset(("bits", "rate.all_bits"))  # of one kind of latent only
QUICK = ("--sequences", 88, "--groups", 24, "--count", 4, "--device", "cpu")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on labelled texts, some windows within one document and some across two."""
    from freetf_cli.cli.app import main

    folder = tmp_path_factory.mktemp("labelled")
    for label, words in (("pos", "good fine happy"), ("neg", "bad dull angry")):
        (folder / "texts" / label).mkdir(parents=True)
        for number in range(40):
            (folder / "texts" / label / f"{number}.txt").write_text(f"{words} film {number} " * 8, encoding="utf-8")
    assert main(["prepare", str(folder / "texts"), "-o", str(folder / "data"), "--split", "train=0.5,val=0.5", "-q"]) == 0
    recipe = folder / "r.toml"
    recipe.write_text(
        f"data = {{ dir = '{folder / 'data'}' }}\nmodel = {{ layers = 2, width = 16, heads = 2, context = 40 }}\n"
        "latent = { kappa = 0.5, bits = 4 }\ntrain = { steps = 2, batch = 8, lr = 1e-3 }\neval = { sequences = 20, samples = 1 }\n"
    )
    assert main(["train", str(recipe), "-o", str(folder / "run"), "--device", "cpu", "-q"]) == 0
    return folder / "run"


def test_a_run_is_probed(run_cli: Callable, free_run: Path, tmp_path: Path) -> None:
    page = tmp_path / "probe.html"
    done = run_cli("probe-latent", free_run, *QUICK, "--report", page)
    assert done.code == 0, done.stderr
    for words in ("Verdict", "Rate", "Latent ablation", "Intervention", "Latent swap", "Decoding", "position", "noise", "bits/sequence"):
        assert words in done.stdout
    assert "…" not in done.stdout and "\x1b" not in done.stdout
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>") and str(page) in done.stderr


def test_json_is_one_object_and_repeats_exactly(run_cli: Callable, free_run: Path) -> None:
    first, second = (json.loads(run_cli("probe-latent", free_run, *QUICK, "--json").stdout) for _ in range(2))
    first.pop("seconds"), second.pop("seconds")
    assert first == second
    assert first["schema_version"] == 1 and first["kappa"] == 0.5 and first["bits"] == 4 and first["step"] == 6
    assert [one["factor"] for one in first["intervention"]["factors"]] == ["letter", "position", "noise"]
    assert first["intervention"]["factors"][1]["groups"] == 24 and first["intervention"]["factors"][2]["sites"] == 12
    assert {one["source"] for one in first["decoding"]} == {"Z", "hidden", "sequence"}
    assert first["intervention"]["factors"][1]["across"] >= 0 and "between" not in first["intervention"]["factors"][1]
    assert len(first["rate"]["by_position"]) == 13 and len(first["rate"]["by_bit"]) == 4
    assert first["verdict"]["label"] in ("unused", "global", "details", "copying", "used")
    check_that_the_documentation_lists_numbers_without_an_interval({**first, "seconds": 1.0})
    other = json.loads(run_cli("probe-latent", free_run, *QUICK, "--json", "--seed", 1).stdout)
    assert other["rate"]["kl"] == first["rate"]["kl"] or other["latent_ablation"] != first["latent_ablation"]
    assert other["intervention"]["factors"] != first["intervention"]["factors"]


def numbers(found: object, path: str = "") -> Iterator[str]:
    """The paths of all numbers in a JSON object, but those of estimates and costs with both ends of their interval."""
    if isinstance(found, dict):
        known = {"low", "high"} <= found.keys() and None not in (found["low"], found["high"])
        known = known and not found.keys() - {
            "value",
            "low",
            "high",
            "nats_per_token",
            "bits_per_token",
            "bits_per_byte",
            "bits_per_sequence",
        }
        for key, value in () if known else found.items():
            yield from numbers(value, f"{path}.{key}".lstrip("."))
    elif isinstance(found, list):
        for value in found:
            yield from numbers(value, path)
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield path


def listed_numbers() -> set[str]:
    """The numbers without an interval that the documentation lists."""
    page = (Path(__file__).parents[2] / "docs" / "probing.md").read_text(encoding="utf-8")
    table = page.partition("## Numbers without an interval")[2].partition("| numbers |")[2].partition("\n\n")[0]
    return set(re.findall(r"`([\w.*]+)`", "".join(row.split("|")[1] for row in table.splitlines()[2:])))


def check_that_the_documentation_lists_numbers_without_an_interval(found: object, lacking: frozenset[str] = OF_NUMBERS) -> None:
    listed = listed_numbers() - lacking
    alone = {"facts.*" if path.startswith("facts.") and path != "facts.floor_bits" else path for path in numbers(found)}
    assert alone == listed and len(listed) > 20


def test_several_runs_one_after_the_other_or_as_a_sweep(run_cli: Callable, free_run: Path, tmp_path: Path) -> None:
    checkpoint = free_run / "checkpoints" / "step-000003"
    lines = run_cli("probe-latent", free_run, checkpoint, *QUICK, "--json").stdout.splitlines()
    assert [json.loads(line)["step"] for line in lines] == [6, 3]
    page = tmp_path / "sweep.html"
    done = run_cli("probe-latent", free_run, checkpoint, *QUICK, "--sweep", "--report", page)
    assert done.code == 0, done.stderr
    assert "κ" in done.stdout and "efficiency" in done.stdout
    assert page.read_text(encoding="utf-8").count("<svg") >= 3


@pytest.mark.parametrize("error", [InputError("too few groups for an interval: 7"), ZeroDivisionError(), PermissionError("internal error")])
def test_a_run_that_cannot_be_probed_is_named_and_the_others_are_shown(
    run_cli: Callable, free_run: Path, baseline_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    weak, plain = free_run / "checkpoints" / "step-000003", probe_command._probe

    def probe(run: Path, *rest: Any) -> Any:
        if run == weak:
            raise error
        return plain(run, *rest)

    monkeypatch.setattr(probe_command, "_probe", probe)
    page = tmp_path / "sweep.html"
    done = run_cli("probe-latent", weak, baseline_run, free_run, *QUICK, "--sweep", "--json", "--report", page)
    assert [one["step"] for one in json.loads(done.stdout)["runs"]] == [6] and page.is_file()
    assert f"warning: {baseline_run} is left out: the run is a baseline" in done.stderr
    assert f"warning: {weak} is left out: {'too few groups' if isinstance(error, InputError) else 'internal error'}" in done.stderr
    assert f"2 of 3 runs were not measured: {baseline_run}, {weak}" in done.stderr and done.code == 1


def test_a_figure_has_a_panel_a_run_by_kappa(run_cli: Callable, free_run: Path, tmp_path: Path) -> None:
    checkpoint, picture = free_run / "checkpoints" / "step-000003", tmp_path / "figure4.svg"
    picture.write_text("old", encoding="utf-8")
    done = run_cli("probe-latent", free_run, checkpoint, *QUICK, "--sweep", "--json", "--figure", picture)
    assert done.code == 0, done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert [one["step"] for one in runs] == [6, 3]
    assert f"figure: {picture}" in done.stderr and sorted(tmp_path.iterdir()) == [picture]
    tree = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    texts = ["".join(text.itertext()) for text in tree.iter("{http://www.w3.org/2000/svg}text")]
    for name in (free_run.name, f"{free_run.name}/step-000003"):
        assert f"κ = 1/2 bit per token · {name}" in " ".join(texts)  # a long title takes two lines
    rows = [row for run in runs for one in run["intervention"]["samples"] for group in one["groups"] for row in group]
    assert [text for text in texts if ">" in text] == rows and len(rows) == 2 * 4 * 4
    assert sum("I(Z; position) " in text for text in texts) == 2 and sum("valid " in text for text in texts) >= 2


def test_a_figure_of_one_run_or_of_several_without_a_sweep(run_cli: Callable, free_run: Path, labelled: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.svg", tmp_path / "two.svg"
    done = run_cli("probe-latent", free_run, *QUICK, "--json", "--figure", one)
    assert done.code == 0 and json.loads(done.stdout)["step"] == 6, done.stderr
    assert one.read_text(encoding="utf-8").count('class="heading"') == 1 and "κ = 1/2 bit per token<" in one.read_text(encoding="utf-8")
    done = run_cli("probe-latent", labelled, free_run, *QUICK, "--figure", two)
    assert done.code == 0, done.stderr
    drawn = two.read_text(encoding="utf-8")
    ElementTree.fromstring(drawn)
    assert drawn.count('class="heading"') == 2 and "I(Z; label)" in drawn and "I(Z; letter)" not in drawn


def test_no_figure_of_text_without_factors(
    run_cli: Callable, free_run: Path, text_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freetf_cli.evaluation.probe.measure.probe_latent", lambda *args, **options: pytest.fail("work was done"))
    done = run_cli("probe-latent", free_run, text_run, *QUICK, "--figure", tmp_path / "f.svg", "--report", tmp_path / "r.html")
    assert (done.code, done.stdout) == (2, "") and list(tmp_path.iterdir()) == []
    assert f"the run's data has no known factors, so there are no samples to draw, {text_run}; omit --figure" in done.stderr


def test_a_figure_where_nothing_can_be_written(run_cli: Callable, free_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freetf_cli.cli.output.os.access", lambda path, mode, **_: Path(path) != tmp_path)
    done = run_cli("probe-latent", free_run, *QUICK, "--figure", tmp_path / "f.svg")
    assert done.code == 2 and f"the figure's folder is not writable, {tmp_path}" in done.stderr and list(tmp_path.iterdir()) == []


def test_labelled_text_is_read_by_its_words(run_cli: Callable, labelled: Path) -> None:
    done = run_cli("probe-latent", labelled, *QUICK, "--sequences", 120, "--json")
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["factor"] for one in found["intervention"]["factors"]] == ["label"]
    assert found["intervention"]["valid"] is None and found["intervention"]["heat_maps"] == []
    assert found["intervention"]["readers"][0].startswith(
        "label (neg, pos) is read from words and pairs of words by a linear classifier, 100.0% right on "
    )
    assert [one["factor"] for one in found["latent_swap"]] == ["label"]
    assert any("parts of several documents" in note for note in found["notes"])
    assert found["latent_ablation"]["posterior"]["bits_per_byte"] > 0 and found["rate"]["floor"] is None
    assert found["latent_swap"][0]["chance"]["value"] == pytest.approx(0.5, abs=0.25)  # of both labels, though the folder is sorted
    hidden = [one for one in found["decoding"] if one["source"] == "hidden"]
    assert all(one["entropy"] > 0.9 and one["majority"] < 0.65 for one in found["decoding"])
    assert max(one["accuracy"]["value"] for one in hidden) > 0.9


def test_the_length_of_generated_sequences_can_be_chosen(run_cli: Callable, free_run: Path) -> None:
    """Samples of letters fill the row unless they are to be shorter; then no row is valid."""
    lengths = {}
    for most in (256, 8):
        done = run_cli("probe-latent", free_run, *QUICK, "--json", "--max-tokens", most)
        intervention = json.loads(done.stdout)["intervention"]
        lengths[most] = {len(text) for one in intervention["samples"] for group in one["groups"] for text in group}
        assert (intervention["valid"]["value"] == 0) or most == 256
    assert lengths[8] == {8} and min(lengths[256]) > 8


def test_text_without_labels_has_rate_and_ablation(run_cli: Callable, text_run: Path) -> None:
    done = run_cli("probe-latent", text_run, *QUICK, "--split", "train")
    assert done.code == 0, done.stderr
    assert "this data has no known factors" in done.stdout and "Latent ablation" in done.stdout and "Latent swap" not in done.stdout
    assert "held-out" not in done.stdout


def test_a_sweep_is_of_one_data(run_cli: Callable, free_run: Path, text_run: Path) -> None:
    done = run_cli("probe-latent", free_run, text_run, "--sweep")
    assert done.code == 2 and f"differs from {free_run}'s, {text_run}" in done.stderr


def test_a_baseline_has_no_z(run_cli: Callable, baseline_run: Path, free_run: Path) -> None:
    done = run_cli("probe-latent", baseline_run)
    assert (done.code, done.stdout) == (2, "")
    assert f"the run is a baseline: it has no Z to probe, {baseline_run}" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sequences", 12), "too few sequences for an interval: 12, and at least 20 are needed"),
        (("--groups", 12), "too few groups for an interval: 12, and at least 20 are needed, RUN; raise --groups"),
        (("--split", "vall"), "the data has no split 'vall', RUN; did you mean 'val'?"),
        (("--prompt", "AB>"), "a row of letters begins with a letter and '>'"),
        (("--split", "test-of-nothing", "--data", "text"), "tokenizer is not the run's"),
        (("--prompt", "A>" + "_" * 12), "the prompt is as long as a sequence"),
        (("--max-tokens", 2), "the prompt is as long as a sequence"),
        (("--prompt", "é"), "prompt"),
        (("--report", "-"), "the report needs a file"),
        (("--report", "no/such/folder/p.html"), "the report's folder does not exist"),
        (("--report", "."), "the report's path is a folder"),
        (("--figure", "-"), "the figure needs a file, because the result goes to stdout; name a file: --figure FILE.svg"),
        (("--figure", "no/such/folder/f.svg"), "the figure's folder does not exist, no/such/folder"),
        (("--figure", "."), "the figure's path is a folder"),
        (("--figure", "same.svg", "--report", "./same.svg"), "the figure and the report are the same file"),
        (("--figure", "link.svg", "--report", "same.svg"), "the figure and the report are the same file"),
        (("--figure", "figure.png"), "--figure writes an SVG, not .png"),
        (("--data", "nowhere"), "no such data folder"),
    ],
)
def test_bad_input(run_cli: Callable, free_run: Path, workshop: Path, options: tuple, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)
    if not Path("link.svg").is_symlink():
        Path("link.svg").symlink_to("same.svg")
    done = run_cli("probe-latent", free_run, *options, "--device", "cpu")
    assert done.code == 2, done.stderr
    assert said.replace("RUN", str(free_run)) in done.stderr and "Traceback" not in done.stderr and done.stderr.count("error:") == 1


def test_data_of_another_task_or_of_other_parameters(run_cli: Callable, free_run: Path, tmp_path: Path) -> None:
    same, longer = tmp_path / "same", tmp_path / "longer"
    for folder, length in ((same, 12), (longer, 14)):
        params = ("--param", f"length={length}", "--param", "target=3", "--param", "letters=4")
        assert run_cli("gen-synthetic", "letters", "-o", folder, "--count", 1200, *params).code == 0
    done = run_cli("probe-latent", free_run, *QUICK, "--data", same, "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["facts"]["name"] == "same"
    done = run_cli("probe-latent", free_run, *QUICK, "--data", longer)
    assert done.code == 2 and "length=14" in done.stderr and "length=12" in done.stderr


def test_data_that_has_changed_since_the_run(run_cli: Callable, workshop: Path, text_run: Path, copied: Callable, tmp_path: Path) -> None:
    """A run whose data folder has other text than in training is refused by the hash, and accepted with --data."""
    run = copied(text_run)
    source = tmp_path / "other.txt"
    source.write_text("%".join(["maybe\n", "never\n"] * 200), encoding="utf-8")
    assert run_cli("prepare", source, "-o", tmp_path / "data", "--document-separator", "%").code == 0
    state_file = next((run / "checkpoints").glob("step-*/state.json"))
    _reroute(state_file, str(tmp_path / "data"))
    done = run_cli("probe-latent", run, *QUICK)
    assert done.code == 2 and "not what the run was trained on (its SHA-256 differs)" in done.stderr and "--data" in done.stderr
    assert run_cli("probe-latent", run, *QUICK, "--data", tmp_path / "data", "--split", "train").code == 0


def _reroute(state_file: Path, folder: str) -> None:
    """Change data.dir in a checkpoint's recipe, and update its manifest."""
    import hashlib

    state = json.loads(state_file.read_text())
    state["recipe"]["data"]["dir"] = folder
    state_file.write_text(json.dumps(state))
    manifest = state_file.parent / "MANIFEST.sha256"
    digest = hashlib.sha256(state_file.read_bytes()).hexdigest()
    lines = [f"{digest}  state.json" if line.endswith("  state.json") else line for line in manifest.read_text().splitlines()]
    manifest.write_text("\n".join(lines) + "\n")
