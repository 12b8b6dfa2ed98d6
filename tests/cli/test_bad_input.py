"""Bad input, command by command: a clear line an error, exit 2, no traceback, and nothing half-written left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from freetf_cli.cli.failures import error_record
from freetf_cli.errors import InputError


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def recipe(workshop, tmp_path) -> Callable[[str, str], Path]:
    """`recipe("heads = 2", "heads = 3")`: the tiny Free recipe with one thing changed."""

    def write(old: str, new: str) -> Path:
        text = (workshop / "free.toml").read_text(encoding="utf-8")
        assert text.count(old) == 1
        path = tmp_path / "changed.toml"
        path.write_text(text.replace(old, new), encoding="utf-8")
        return path

    return write


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("kappa = 0.5", "kapa = 0.5, kappa = 0.5", "unknown key 'latent.kapa', {file}, line 4; did you mean 'kappa'?"),
        ("[smoke]", "[trian]\nsteps = 3\n[smoke]", "did you mean 'train'?"),
        ("steps = 6", 'steps = "6"', "train.steps: input should be a valid integer"),
        ("batch = 8", "batch = 8.5", "train.batch"),
        ("batch = 8", "batch = true", "train.batch"),
        ("lr = 3e-2", "lr = nan", "train.lr"),
        ("steps = 6", "steps = 0", "train.steps"),
        ("kappa = 0.5", "kappa = -0.5", "latent.kappa"),
        ("kappa = 0.5", "kappa = 4.5", "latent.kappa = 4.5 is more than latent.bits = 4"),
        ("bits = 4", "bits = 25", "latent.bits"),
        ("layers = 2", "layers = 3", "model.layers = 3 is odd"),
        ("heads = 2", "heads = 3", "model.heads = 3 does not divide model.width = 16"),
        ("heads = 2", "heads = 2, kv_heads = 3", "model.kv_heads = 3 does not divide model.heads = 2"),
        ("width = 16", "width = 6", "must be even"),
        ('task = "letters"', 'task = "leters"', "data.task"),
        ("length = 12", "lenght = 12", "length"),
        ("target = 3", "target = 13", "target"),
        ("layers = 2, ", "", "missing key 'model.layers'"),
        ("layers = 2", "layers = 2, context = 99", "model.context = 99"),
    ],
)
def test_a_wrong_recipe(refused, recipe, tmp_path, old, new, what):
    path = recipe(old, new)
    before = tree(tmp_path)
    line = refused("train", path, "-o", tmp_path / "run")
    assert what.format(file=path) in line
    assert tree(tmp_path) == before


def test_all_errors_of_a_recipe_are_shown_at_once(refused, recipe, tmp_path):
    path = recipe("heads = 2", 'heads = "2", wdth = 3')
    text = refused("train", path, "-o", tmp_path / "run", "--set", "latent.kappa=-1.0", "--set", "train.stpes=3", lines=4)
    assert "did you mean 'width'?" in text
    assert "did you mean 'steps'?" in text
    assert "model.heads" in text
    assert "latent.kappa" in text
    assert text.count(f"{path}, line 3") == 2
    assert "--set latent.kappa=-1.0" in text  # not the file's line, which is right
    assert "--set train.stpes=3" in text


@pytest.mark.parametrize("content", [b"\xff\xfe", b"train = {", b"[train]\nsteps = 3\nsteps = 4\n", b"a = " + b"[" * 50_000, b""])
def test_a_recipe_that_is_no_recipe(run_cli, tmp_path, content):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    code, stdout, stderr = run_cli("train", path, "-o", tmp_path / "run")
    assert (code, stdout) == (2, "")
    assert str(path) in stderr
    assert "internal error" not in stderr
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["letters-fre"], "did you mean 'letters-free'?"),
        (["no/such.toml"], "no such recipe file"),
        (["letters-free", "--set", "train.lr"], "--set takes table.key=value"),
        (["letters-free", "--set", "train.lrr=1.0"], "did you mean 'lr'?"),
        (["letters-free", "--set", "train.lr=fast"], "train.lr"),
        (["letters-baseline", "--set", "latent.kappa=1.0"], "baseline"),
        (["letters-free", "--resmue", "auto"], "did you mean '--resume'?"),
    ],
)
def test_wrong_words_name_the_right_ones(refused, tmp_path, words, what):
    assert what in refused("train", *words, "-o", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("gen-synthetic", "coins"), ("train", "demo-free"), ("sweep", "demo-free")])
@pytest.mark.parametrize("out", [("-o", ""), ("--out", ""), ("--out=",)])
def test_an_output_without_a_name(refused, tmp_path, monkeypatch, words, out):
    monkeypatch.chdir(tmp_path)
    assert "the output has no name" in refused(*words, *out)


@pytest.mark.parametrize(
    "words", [("gen-synthetic", "coins", "-o"), ("train", "demo-free", "-o"), ("show",), ("compare", "a", "b", "--report")]
)
def test_a_name_that_is_too_long(refused, tmp_path, words):
    assert "file name too long" in refused(*words, tmp_path / ("x" * 300)).lower()


def test_a_held_out_split_that_the_data_lacks(refused, workshop, tmp_path):
    """Told before training, not after."""
    line = refused("train", workshop / "text.toml", "-o", tmp_path / "run", "--set", "eval.split=vla")
    assert "did you mean 'val'?" in line
    assert list(tmp_path.iterdir()) == []


# --- text and data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"caf\xe9 au lait", b"nul \x00 byte"])
def test_text_that_is_empty_or_not_utf8(refused, tmp_path, content):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    assert "text.txt" in refused("prepare", path, "-o", tmp_path / "data")
    assert list(tmp_path.iterdir()) == [path]


def test_text_shorter_than_the_context(refused, workshop, tmp_path):
    line = refused("train", workshop / "text.toml", "-o", tmp_path / "run", "--set", "model.context=5000")
    assert "model.context = 5000" in line
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_not_there(refused, workshop, tmp_path):
    assert "freetf prepare" in refused("train", workshop / "text.toml", "-o", tmp_path / "run", "--set", "data.dir=nowhere")
    assert "no manifest.json" in refused("train", workshop / "text.toml", "-o", tmp_path / "run", "--set", f"data.dir='{tmp_path}'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["train/tokens-00000.bin", "val/tokens-00000.bin", "train/offsets.bin", "tokenizer.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_a_data_folder_that_is_damaged(refused, workshop, tmp_path, name, damage):
    data = Path(shutil.copytree(workshop / "text", tmp_path / "data"))
    file = data / name
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes(content[:-1] if damage == "cut" and name != "manifest.json" else content[: len(content) // 2 * (damage == "cut")])
    line = refused("train", workshop / "text.toml", "-o", tmp_path / "run", "--set", f"data.dir='{data}'")
    assert str(data) in line
    assert not (tmp_path / "run").exists()


# --- runs and checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json", "MANIFEST.sha256"])
def test_a_checkpoint_cut_short(refused, workshop, free_run, copied, tmp_path, name):
    run = copied(free_run)
    for folder in (run / "checkpoints").glob("step-*"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-7])
    newest = run / "checkpoints" / "step-000006"
    before = tree(run)
    assert name in refused("sample", newest)
    assert name in refused("train", workshop / "free.toml", "-o", run, "--resume", newest)
    assert name in refused("train", workshop / "free.toml", "-o", tmp_path / "new", "--init-from", newest)
    assert tree(run) == before
    assert not (tmp_path / "new").exists()


def test_a_run_whose_every_checkpoint_is_damaged(run_cli, free_run, copied):
    run = copied(free_run)
    for folder in (run / "checkpoints").glob("step-*"):
        (folder / "model.safetensors").write_bytes(b"")
    code, stdout, stderr = run_cli("sample", run)
    assert (code, stdout) == (2, "")
    assert "no checkpoint of the run can be read" in stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "words", [["show", "{x}"], ["sample", "{x}"], ["train", "{free}", "-o", "{x}"], ["train", "{free}", "-o", "{x}", "--resume", "auto"]]
)
@pytest.mark.parametrize("make", ["folder", "file"])
def test_a_folder_that_exists_and_is_not_a_run(refused, workshop, tmp_path, words, make):
    path = tmp_path / "thesis"
    if make == "folder":
        path.mkdir()
        (path / "chapter.txt").write_text("mine")
    else:
        path.write_text("mine")
    before = tree(tmp_path)
    line = refused(*(word.format(x=path, free=workshop / "free.toml") for word in words))
    assert str(path) in line
    assert tree(tmp_path) == before


def test_an_empty_folder_may_become_a_run(run_cli, workshop, tmp_path):
    assert run_cli("train", workshop / "free.toml", "-o", tmp_path, "--smoke", "-q").code == 0


def test_a_run_without_its_recipe(refused, workshop, free_run, copied):
    run = copied(free_run)
    (run / "recipe.toml").unlink()
    before = tree(run)
    assert str(run) in refused("train", workshop / "free.toml", "-o", run, "--resume", "auto")
    assert tree(run) == before


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_a_prompt_outside_the_tokenizer(refused, free_run):
    assert "'κ' is not in the tokenizer's vocabulary" in refused("sample", free_run, "--prompt", "A>κ")


def test_a_code_of_2_to_the_h(refused, free_run, tmp_path):
    path = tmp_path / "z.jsonl"
    path.write_text(json.dumps({"z": [0] * 12 + [16]}) + "\n")
    line = refused("sample", free_run, "--z", path)
    assert line.startswith("--z: code 16 is outside 0 … 15")
    assert f"{path}, line 1" in line


# --- the form of errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["train", "letters-fre", "-o", "x"], ["show", "x"], ["sample", "x"], ["train", "letters-free", "--set", "model.layers=3", "-o", "x"]],
)
def test_errors_are_json_under_json(run_cli, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = run_cli(*words, "--json")
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    record = json.loads(stderr)
    assert record["schema_version"] == 1
    assert record["error"].keys() == error_record(InputError(""))["error"].keys()
    assert list(tmp_path.iterdir()) == []


def test_names_in_errors_cannot_steer_the_terminal(run_cli, tmp_path):
    code, _, stderr = run_cli("show", tmp_path / "a\x1b[31m\nb")
    assert code == 2
    assert "\x1b" not in stderr
    assert stderr.count("\n") == 1


def test_an_error_in_ascii_is_still_json(run_process, tmp_path):
    done = run_process("recipe", "show", tmp_path / "é😀.toml", "--json", env={"PYTHONIOENCODING": "ascii"})
    assert done.code == 2
    assert json.loads(done.stderr)["error"]["where"] == str(tmp_path / "é😀.toml")
