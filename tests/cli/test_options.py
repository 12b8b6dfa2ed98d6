"""Shell completion of recipes and run folders."""

from __future__ import annotations

import pytest

from freetf_cli.cli.options import complete_recipe, complete_run
from freetf_cli.config.files import shipped_recipes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in ("runs/letters", "runs/coins", "alone"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "recipe.toml").touch()
    (tmp_path / "mine.toml").touch()
    return tmp_path


def test_recipes_are_names_and_files(folder):
    assert complete_recipe("") == [*shipped_recipes(), "mine.toml"]
    assert complete_recipe("mi") == ["mine.toml"]
    assert complete_recipe("zzz") == []


def test_runs(folder):
    assert complete_run("") == ["alone", "runs/coins", "runs/letters"]
    assert complete_run("runs/l") == ["runs/letters"]
    assert complete_run(f"{folder}/al") == [f"{folder}/alone"]
    assert complete_run("nowhere/x") == []
