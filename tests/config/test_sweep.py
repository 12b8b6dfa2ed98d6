"""Sweeps: variants of a recipe file, and the runs of a grid, with their names."""

from __future__ import annotations

import pytest

from freetf_cli.config.files import describe_file, expand, load_recipe
from freetf_cli.config.sweep import PlannedRun, parse_seeds, plan_sweep, split_values
from freetf_cli.errors import InputError, InputErrors

SWEEP = """
[sweep.wide]
description = "a wider model"
model.width = 128
smoke.train.batch = 2

[sweep."8th"]
latent = { kappa = 0.125, objective = { slope = 0.1 } }
"""


@pytest.fixture
def sweep_file(recipe_file):
    recipe_file.write_text(recipe_file.read_text(encoding="utf-8") + SWEEP, encoding="utf-8")
    return recipe_file


def fault(name, **options):
    with pytest.raises(InputError) as caught:
        load_recipe(str(name), **options)
    (line,) = caught.value.lines()
    return line


# --- variants --------------------------------------------------------------------------------------------------------


def test_a_variant_is_laid_over_the_recipe(sweep_file):
    wide, eighth = load_recipe(f"{sweep_file}/wide"), load_recipe(f"{sweep_file}/8th")
    assert (wide.description, wide.model.width, wide.latent.kappa) == ("a wider model", 128, 0.25)
    assert (eighth.description, eighth.model.width, eighth.latent.kappa) == (
        "a small Free model (changed: latent.kappa, latent.objective.slope)",
        64,
        0.125,
    )
    assert load_recipe(f"{sweep_file}/8th", overrides=["latent.kappa=0.5"]).latent.kappa == 0.5


def test_overlays_come_after_variants(sweep_file):
    assert load_recipe(f"{sweep_file}/8th", smoke=True).train.steps == 3
    wide = load_recipe(f"{sweep_file}/wide", smoke=True)
    assert (wide.train.steps, wide.train.batch, wide.model.width) == (3, 2, 128)


def test_a_sweep_stands_for_all_its_variants(sweep_file):
    assert expand(str(sweep_file)) == [f"{sweep_file}/wide", f"{sweep_file}/8th"]
    assert expand(f"{sweep_file}/8th") == [f"{sweep_file}/8th"]
    assert expand("letters-free") == ["letters-free"]
    assert describe_file(str(sweep_file)) == "a small Free model"
    choices = f"choose from: {sweep_file}/wide, {sweep_file}/8th; `freetf sweep` trains them all"
    assert fault(sweep_file) == f"'{sweep_file}' is a sweep: name one of its recipes; {choices}"


def test_variants_can_be_extended_and_are_not_inherited(sweep_file):
    for parent, width in (("small", 64), ("small/wide", 128)):
        child = sweep_file.with_name("child.toml")
        child.write_text(f'extends = "{parent}"\n[train]\nlr = 3e-4\n', encoding="utf-8")
        assert load_recipe(str(child)).model.width == width
        assert expand(str(child)) == [str(child)]
    sweep_file.write_text(sweep_file.read_text(encoding="utf-8").replace("[data]", 'extends = "small/wide"\n[data]', 1), encoding="utf-8")
    assert "'extends' goes in a circle" in fault(f"{sweep_file}/wide")


def test_a_fault_names_the_file_and_line_that_cause_it(sweep_file):
    """In the variant, the overlay, the file that is extended, or `--set`; the last that sets the key."""
    text = sweep_file.read_text(encoding="utf-8")
    line = text.splitlines().index("model.width = 128") + 1
    sweep_file.write_text(text.replace("model.width = 128", "model.width = 130"), encoding="utf-8")
    assert fault(f"{sweep_file}/wide") == f"model.heads = 4 does not divide model.width = 130, {sweep_file}, line {line}"
    sweep_file.write_text(text.replace("smoke.train.batch = 2", "smoke.train.batch = 0"), encoding="utf-8")
    assert fault(f"{sweep_file}/wide", smoke=True).endswith(f"not 0, {sweep_file}, line {line + 1}")
    child = sweep_file.with_name("child.toml")
    child.write_text('extends = "small"\n[train]\nlr = 3e-4\n', encoding="utf-8")
    sweep_file.write_text(text.replace("batch = 8", "batch = 0"), encoding="utf-8")
    assert fault(child).endswith(f"not 0, {sweep_file}, line 16")
    assert fault(child, overrides=["train.batch=-1"]).endswith("not -1, --set train.batch=-1")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("FILE/9th", "'FILE' has no variant '9th', FILE; did you mean '8th'?"),
        ("letters-free/8th", "'letters-free' has no variant '8th'"),
        ("figure4-8th", "no recipe named 'figure4-8th'; did you mean 'figure4/8th'?"),
        ("figure4/8th/x", "no such recipe file, figure4/8th/x"),
        ("nowhere.toml/8th", "no such recipe file, nowhere.toml/8th"),
        ("FILE/", "'FILE/' is a sweep: name one of its recipes; choose from: FILE/wide"),
    ],
)
def test_names_that_are_not_recipes(sweep_file, name, line):
    assert fault(name.replace("FILE", str(sweep_file))).startswith(line.replace("FILE", str(sweep_file)))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sweep = 3\n", "'sweep' must be a table"),
        ("[sweep]\nx = 3\n", "'x' must be a table"),
        ('[sweep."a/b"]\n', "'a/b' cannot name a variant"),
        ('[sweep.x]\nextends = "letters-free"\n', "unknown key 'extends'"),
        ("[sweep.x]\ntrain.stepz = 3\n", "unknown key 'train.stepz'"),
    ],
)
def test_faulty_sweeps(recipe_file, text, line):
    whole = recipe_file.read_text(encoding="utf-8")
    recipe_file.write_text(text + whole if text.startswith("sweep") else whole + text, encoding="utf-8")
    assert line in fault(f"{recipe_file}/x")


# --- grids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1", ["1"]),
        ("1, 2,3e-4", ["1", "2", "3e-4"]),
        ("[[0, 1.0], [0.5]],[[0.2]]", ["[[0, 1.0], [0.5]]", "[[0.2]]"]),
        ("{ a = 1, b = [1, 2] },{}", ["{ a = 1, b = [1, 2] }", "{}"]),
        ("\"a,b\",'c]',d", ['"a,b"', "'c]'", "d"]),
        ("a,,b", ["a", "", "b"]),
    ],
)
def test_values_are_split_at_top_level_commas(text, values):
    assert split_values(text) == values


@pytest.mark.parametrize(("text", "seeds"), [("0..4", [0, 1, 2, 3, 4]), ("0,1,2", [0, 1, 2]), ("3", [3]), ("0..2, 7,1", [0, 1, 2, 7, 1])])
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "4..0", "0..", "-1", "0...4", "1e3", "0..4294967296", "4294967296", "0..99999"])
def test_bad_seeds(text):
    with pytest.raises(InputError, match=r"--seeds( takes numbers|: the range 4\.\.0 is empty)"):
        parse_seeds(text)


def test_a_grid_has_every_combination_in_order(sweep_file):
    runs = plan_sweep(str(sweep_file), ["train.lr=1e-3,3e-4", "train.batch=4"], [0, 1])
    assert [run.name for run in runs] == [
        f"small-{variant}-lr{lr}-batch4-s{seed}" for variant in ("wide", "8th") for lr in ("1e-3", "3e-4") for seed in (0, 1)
    ]
    assert runs[1] == PlannedRun("small-wide-lr1e-3-batch4-s1", f"{sweep_file}/wide", ("train.lr=1e-3", "train.batch=4", "train.seed=1"))
    assert plan_sweep("letters-free") == [PlannedRun("letters-free", "letters-free", ())]
    assert [run.name for run in plan_sweep("paper-1.5b-free", seeds=[3])] == ["paper-1.5b-free-s3"]
    assert [run.name for run in plan_sweep("figure4-mini/4th")] == ["figure4-mini-4th"]


def test_a_larger_sweep_keeps_the_names_of_a_smaller_one():
    smaller = plan_sweep("letters-free", ["latent.kappa=0.5"], [0])
    assert smaller[0] in plan_sweep("letters-free", ["latent.kappa=0.25,0.5"], range(5))


def test_names_are_safe_and_unique():
    texts = ['"a b"', "'a/b'", '"a.b"', "../x", "x" * 300, "x" * 299 + "y", "[1, 2]", "[1]"]
    names = [run.name for run in plan_sweep("letters-free", [f"data.dir={','.join(texts)}"])]
    assert len(set(names)) == len(texts)
    assert all(len(name) <= 120 and not set(name) & set("/ '\"[]") for name in names), names
    both = plan_sweep("letters-free", ["train.float8=rowwise", "latent.numerics.float8=true"])
    assert both[0].name == "letters-free-train.float8rowwise-latent.numerics.float8true"


@pytest.mark.parametrize("setting", ["train.lr", "lr=1,2", "=1"])
def test_bad_settings(setting):
    with pytest.raises(InputError, match="--set takes"):
        plan_sweep("letters-free", [setting])


@pytest.mark.parametrize(
    ("settings", "seeds", "hint"),
    [
        (["train.lr=1", "train.batch=2", " train.lr=2,3"], None, "--set train.lr=A,B"),
        (["train.seed=1"], [1, 2], "--seeds sets it too"),
    ],
)
def test_a_setting_that_is_given_twice_is_refused(settings, seeds, hint):
    with pytest.raises(InputError, match=r"train\.(lr|seed) is given twice") as caught:
        plan_sweep("letters-free", settings, seeds)
    assert hint in str(caught.value)


def test_a_grid_has_a_limit():
    many = ",".join(map(str, range(1, 200)))
    with pytest.raises(InputError, match="more than 10,000 runs"):
        plan_sweep("letters-free", [f"train.steps={many}", f"train.batch={many}", f"train.warmup={many}", f"train.log_every={many}"])


def test_faults_of_a_variant_are_all_shown(sweep_file):
    with pytest.raises(InputErrors) as caught:
        load_recipe(f"{sweep_file}/wide", overrides=["train.lrr=1", "latent.kappa=99"])
    assert len(caught.value.errors) == 2
