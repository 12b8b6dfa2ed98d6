"""`freetf recipe list | show | schema | diff`."""

from __future__ import annotations

import json
import tomllib

import pytest

from freetf_cli.config.data import TASKS
from freetf_cli.config.files import load_recipe, shipped_recipes


def test_list_json(run_cli):
    code, stdout, _ = run_cli("recipe", "list", "--json")
    record = json.loads(stdout)
    assert (code, record["schema_version"]) == (0, 1)
    assert [row["name"] for row in record["recipes"]] == shipped_recipes()
    assert all(row["kind"] in ("baseline", "free") for row in record["recipes"])
    assert all(row["name"].startswith(row["family"]) and row["steps"] > 0 for row in record["recipes"])
    sweeps = [sweep["name"] for sweep in record["sweeps"]]
    assert sweeps == sorted(sweeps) and {"figure4", "figure4-mini", "siblings", "path-star", "text-50m"} <= set(sweeps)
    assert {row["family"] for row in record["recipes"]} == {
        *sweeps,
        "blocks",
        "coins",
        "demo",
        "letters",
        "paper",
        "reviews",
        "text",
    }


def test_list_shows_every_recipe_uncut(run_cli):
    code, stdout, stderr = run_cli("recipe", "list")
    assert (code, stderr) == (0, "")
    assert all(name in stdout for name in shipped_recipes())
    lines = [line.strip() for line in stdout.splitlines() if line.strip()]
    place = next(number for number, line in enumerate(lines) if line.startswith("figure4, a sweep: "))
    assert [line.split()[0] for line in lines if line.startswith("figure4/")][:2] == ["figure4/64th", "figure4/literal"]
    assert place < next(number for number, line in enumerate(lines) if line.startswith("figure4/")) < lines.index("letters")


def test_show_is_a_recipe(run_cli, recipe_file, tmp_path):
    code, stdout, stderr = run_cli("recipe", "show", recipe_file, "--set", "train.lr=3e-4")
    assert (code, stderr) == (0, "")
    again = tmp_path / "again.toml"
    again.write_text(stdout, encoding="utf-8")
    assert load_recipe(str(again)) == load_recipe(str(recipe_file), overrides=["train.lr=3e-4"])


def test_show_with_smoke_and_several_settings(run_cli, recipe_file):
    _, stdout, _ = run_cli("recipe", "show", recipe_file, "--smoke", "--set", "latent.kappa=0.5", "--set", "train.batch=4")
    tree = tomllib.loads(stdout)
    assert (tree["train"]["steps"], tree["latent"]["kappa"], tree["train"]["batch"]) == (3, 0.5, 4)


def test_show_json(run_cli, recipe_file):
    record = json.loads(run_cli("recipe", "show", recipe_file, "--json").stdout)
    assert record["schema_version"] == 1
    assert record["train"]["lr"] == 1e-3
    assert record["latent"]["bits"] == 16


def test_a_variant_is_a_recipe(run_cli):
    record = json.loads(run_cli("recipe", "show", "figure4/8th", "--json").stdout)
    assert (record["latent"]["window"], record["latent"]["objective"]["mismatch"]) == (2, 2.0)
    found = json.loads(run_cli("recipe", "diff", "figure4/1", "figure4/1-literal", "--json").stdout)["differences"]
    assert [row["key"] for row in found] == ["model.rope_theta", "train.steps"]
    code, stdout, stderr = run_cli("train", "figure4", "--dry-run")
    assert (code, stdout) == (2, "")
    assert "'figure4' is a sweep: name one of its recipes; choose from: figure4/64th," in stderr
    assert json.loads(run_cli("train", "figure4/8", "--dry-run", "--json").stdout)["recipe"] == "figure4/8"


def test_all_faults_of_a_recipe_are_lines(run_cli, recipe_file):
    recipe_file.write_text(recipe_file.read_text().replace("kappa", "kapa").replace("steps = 100", 'steps = "many"'))
    code, stdout, stderr = run_cli("recipe", "show", recipe_file)
    assert (code, stdout) == (2, "")
    lines = stderr.splitlines()
    assert len(lines) == 3  # kappa is missing, too
    assert all(line.startswith("freetf: error: ") for line in lines)
    assert any(f"unknown key 'latent.kapa', {recipe_file}, line 12; did you mean 'kappa'?" in line for line in lines)


def test_show_unknown_recipe(run_cli):
    code, _, stderr = run_cli("recipe", "show", "./nowhere.toml")
    assert code == 2
    assert stderr.startswith("freetf: error: no such recipe file, ./nowhere.toml; ")


def test_schema(run_cli):
    schema = json.loads(run_cli("recipe", "schema").stdout)
    assert {"extends", "smoke", "sweep", "data", "model", "latent", "train", "eval", "parallel"} <= set(schema["properties"])
    assert schema["then"]["required"] == ["data", "model", "train"]
    assert "required" in schema["$defs"]["ModelConfig"]
    assert "required" not in schema["$defs"]["ModelConfigPartial"]
    assert schema["$defs"]["LatentConfigPartial"]["properties"]["objective"]["$ref"] == "#/$defs/ObjectiveConfigPartial"
    assert set(schema["properties"]["sweep"]["additionalProperties"]["properties"]) == set(schema["properties"]) - {"extends", "sweep"}
    assert schema["$defs"]["DataConfig"]["properties"]["task"]["anyOf"][0]["enum"] == list(TASKS)
    assert json.loads(run_cli("recipe", "schema", "--json").stdout)["schema_version"] == 1


def test_schema_refers_only_to_what_it_defines(run_cli):
    text = run_cli("recipe", "schema").stdout
    defined = json.loads(text)["$defs"]

    def references(value):
        if isinstance(value, dict):
            yield from (item for key, item in value.items() if key == "$ref")
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                yield from references(item)

    assert {name.removeprefix("#/$defs/") for name in references(json.loads(text))} <= set(defined)


@pytest.fixture
def other(recipe_file):
    path = recipe_file.with_name("other.toml")
    path.write_text(f'extends = "{recipe_file.stem}"\ntrain.lr = 3e-4\ndata.params = {{ noise = 0.1 }}\n', encoding="utf-8")
    return path


def test_diff_json(run_cli, recipe_file, other):
    record = json.loads(run_cli("recipe", "diff", recipe_file, other, "--json").stdout)
    assert record["differences"] == [
        {"key": "train.lr", "a": 1e-3, "b": 3e-4},
        {"key": "data.params.noise", "a": None, "b": 0.1},
    ]


def test_diff_shows_only_what_differs(run_cli, recipe_file, other):
    code, stdout, stderr = run_cli("recipe", "diff", recipe_file, other)
    assert (code, stderr) == (0, "")
    assert "train.lr" in stdout
    assert "0.0003" in stdout
    assert "train.batch" not in stdout


def test_show_takes_a_run_folder(run_cli, recipe_file, tmp_path):
    (tmp_path / "run").mkdir()
    shown = run_cli("recipe", "show", recipe_file, "--set", "train.lr=5e-4").stdout
    (tmp_path / "run" / "recipe.toml").write_text(shown)
    assert run_cli("recipe", "show", tmp_path / "run").stdout == shown
    assert "steps = 7\n" in run_cli("recipe", "show", tmp_path / "run", "--set", "train.steps=7").stdout


def test_diff_takes_a_run_folder(run_cli, recipe_file, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text(run_cli("recipe", "show", recipe_file).stdout, encoding="utf-8")
    assert json.loads(run_cli("recipe", "diff", recipe_file, run, "--json").stdout)["differences"] == []
