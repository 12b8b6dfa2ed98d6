"""The shipped recipes: each loads, is built, and says what it is for. One of a family runs to the end, and one of each kind two steps."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from freetf_cli.config.files import load_recipe, shipped_recipes
from freetf_cli.config.recipe import NumericsConfig, ObjectiveConfig, flat
from freetf_cli.latent.build import build_model
from freetf_cli.tasks import make_task

EXCERPTS = Path(__file__).resolve().parent.parent / "excerpts"
NAMES = shipped_recipes()
PAPER = [name for name in NAMES if name.startswith("paper-")]
RUNNABLE = [name for name in NAMES if name not in PAPER]
PAIRS = [name.removesuffix("-free") for name in NAMES if name.endswith("-free")]
REPRESENTATIVE = [
    "blocks-multi-token",
    "coins-free",
    "demo-free",
    "figure4/8th",
    "figure4-mini/4th",
    "countdown/3-free",
    "letters-free",
    "reviews-free",
    "siblings/free-window",
]  # one of each family
ATTENTION = {"text-attention", "text-attention-long", "text-attention-retrofit", "attention-ablations", "blocks-table", "blocks-choice"}
OPEN_ENDED = ("siblings", "circles", "lines", "triangles", "path-star", "countdown")
BOUND = 240  # seconds on a busy machine; about 15 are promised on two idle cores


def test_the_main_recipes_are_shipped():
    assert {"letters-baseline", "letters-free", "reviews-free", "demo-free", "paper-1.5b-free", "paper-8b-free"} <= {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_loads_and_says_what_it_is_for(name):
    recipe = load_recipe(name)
    assert 20 < len(recipe.description) < 140
    assert "\n" not in recipe.description
    family, _, variant = name.partition("/")
    if family in OPEN_ENDED:
        assert (recipe.kind == "free") == ("free" in variant)
    elif family in ATTENTION:
        assert (recipe.kind == "free") == variant.startswith(("free-", "row-"))
    else:
        assert (recipe.kind == "baseline") == name.endswith(("baseline", "/block", "-softmax", "-multi-token"))


def test_descriptions_are_their_own():
    descriptions = [load_recipe(name).description for name in NAMES]
    assert len(set(descriptions)) == len(descriptions)


@pytest.mark.parametrize("stem", PAIRS)
def test_a_free_recipe_has_its_baselines_model_and_data(stem):
    """Compared pairs differ in Z and in nothing else. Toy reviews start from their baseline's weights, so their schedule is another."""
    free, baseline = flat(load_recipe(f"{stem}-free")), flat(load_recipe(f"{stem}-baseline"))
    own = {"train.steps", "train.warmup"} if stem == "reviews-toy" else set()
    assert {key for key in baseline if free[key] != baseline[key]} == own


def test_figure_4_differs_from_the_papers_objective_only_where_stated():
    """Where a variant differs from the paper, the same κ by exactly the paper's objective is a variant of its own."""
    paper = ObjectiveConfig()
    weighted = ObjectiveConfig(free_bits="sequence", mismatch=1.0, schedule={"mismatch": [[0.1, 0.03], [0.25]]})
    path = {"mismatch": [[0.08, 0.03], [0.25, 1.0], [0.6, 1.0], [0.85]]}
    kappas = {"figure4": {"64th": 1 / 64, "8th": 1 / 8, "1": 1.0, "8": 8.0, "literal": 1 / 8, "1-literal": 1.0}}
    kappas["figure4-mini"] = {"16th": 1 / 16, "4th": 1 / 4, "1": 1.0, "8": 8.0, "literal": 1 / 4}
    varied = {"figure4/8th": weighted.model_copy(update={"mismatch": 2.0, "schedule": path}), "figure4-mini/4th": weighted}
    longer = {"figure4/8th": (100.0, 8000), "figure4/1": (100.0, 6000)}
    found = {name for name in NAMES if name.startswith("figure4")}
    assert found == {f"{sweep}/{kind}" for sweep, kinds in kappas.items() for kind in kinds}
    for sweep, kinds in kappas.items():
        for kind, kappa in kinds.items():
            name = f"{sweep}/{kind}"
            ours, theirs = load_recipe(name), load_recipe(f"{sweep}/literal")
            assert ours.latent is not None
            assert (ours.latent.objective, ours.latent.window) == ((varied[name], 2) if name in varied else (paper, None))
            assert ours.latent.numerics == NumericsConfig()
            assert (ours.latent.kappa, ours.latent.bits) == (kappa, 16 if sweep == "figure4" else 8)
            base, steps = longer.get(name, (theirs.model.rope_theta, theirs.train.steps))
            assert ours.model == theirs.model.model_copy(update={"rope_theta": base})
            assert ours.train == theirs.train.model_copy(update={"steps": steps})


@pytest.mark.parametrize("family", OPEN_ENDED[:4])
def test_the_arms_of_an_open_ended_task_differ_in_one_thing_each(family):
    """Equal data, steps and tuning; of Free models only Z, its objective and κ vary. A window of one position has about 12 bits a row."""
    baseline = flat(load_recipe(f"{family}/baseline"))
    changes = {
        "baseline": {},
        "block": {"model.layers": 9},
        "free": {},
        "free-half": {},
        "free-window": {},
        "free-row": {},
        "free-noise": {},
    }
    changes |= {"seeded": {"data.params.seed_length": 5}, "teacherless": {"data.teacherless": 0.5}}
    changes |= {"free-4": {}} if family in ("siblings", "triangles") else {}
    changes |= {"free-row-noise": {}} if family == "siblings" else {}
    assert {name for name in NAMES if name.startswith(f"{family}/")} == {f"{family}/{variant}" for variant in changes}
    for variant, changed in changes.items():
        recipe = load_recipe(f"{family}/{variant}")
        assert {key: value for key, value in flat(recipe).items() if not key.startswith("latent.")} == {**baseline, **changed}
        if variant == "free-window":
            assert recipe.latent.kappa * (make_task(family, {}).row_tokens - 1) == pytest.approx(12, abs=0.3)
        elif variant in ("free-row", "free-row-noise"):
            assert (recipe.latent.every, recipe.latent.depth) == ("sequence", 2)
            assert recipe.latent.kappa == {"free-row": 12.0, "free-row-noise": 0.0}[variant]
        if variant.endswith("-noise"):
            assert (recipe.latent.kappa, recipe.latent.objective) == (0.0, ObjectiveConfig(beta=10.0))
        elif variant in ("free", "free-half", "free-4"):
            assert recipe.latent.kappa == {"free": 1.0, "free-half": 0.5, "free-4": 4.0}[variant]
            assert recipe.latent.objective == ObjectiveConfig() and recipe.latent.window is None


@pytest.mark.parametrize(("family", "places", "budget", "depths"), [("latents", 65, 8.125, (2, 6)), ("latents-mini", 17, 4.25, (1, 3))])
def test_the_latents_differ_in_what_their_names_say_and_have_one_budget(family, places, budget, depths):
    """Z is free of charge up to the same bits a row; beside the latent only the encoder's updates differ."""
    binary, names = load_recipe(f"{family}/binary"), {name.partition("/")[2] for name in NAMES if name.startswith(f"{family}/")}
    assert binary.latent.objective == ObjectiveConfig() and binary.latent.kind == "binary" and not binary.train.encoder.is_apart
    changes = {f"order-{order}": {"latent.table.order"} for order in (1, 2, 3)}
    changes |= {f"every-{every}": {"latent.every", "latent.kappa"} for every in (4, 16)}
    changes |= {f"depth-{depth}": {"latent.depth"} for depth in depths} | {"sequence": {"latent.every", "latent.kappa"}}
    changes |= {name: {"latent.bits"} for name in names if name.startswith("bits-")} | {"binary": set(), "encoder-full": {"latent.encoder"}}
    changes |= {"beta": {"latent.objective.schedule.beta"}, "encoder-rate": {"train.encoder.lr_scale"}}
    changes |= {"alternating": {"train.encoder.turns"}, "gaussian": {"latent.kind"}}
    changes |= {"lagging": {f"train.encoder.{key}" for key in ("turns", "steps", "check_every")}}
    row = {"latent.kind", "latent.every", "latent.kappa"}
    changes |= {"gaussian-row": row, "gaussian-row-beta": row | {"latent.objective.schedule.beta"}}
    changes |= {
        f"gaussian-{way}": row | {"latent.encoder", "latent.options.inject"} for way in ("embedding", "memory", "attention", "logits")
    }
    changes["gaussian-embedding"] |= {"latent.table_std"}
    assert names == changes.keys() and len([name for name in names if name.startswith("bits-")]) == 3
    base = flat(binary)
    for name, keys in changes.items():
        recipe = load_recipe(f"{family}/{name}")
        ours = flat(recipe)
        assert {key for key in {*ours, *base} if ours.get(key) != base.get(key)} == keys, name
        every = recipe.latent.every
        zs = 1 if every == "sequence" else -(-places // every)
        assert recipe.latent.kappa * zs == pytest.approx(budget), name
    task = make_task("letters", binary.data.params)
    assert task.row_tokens - 1 == places


def test_the_papers_settings():
    for size, layers, width, kappa in (("1.5b", 28, 1536, 0.5), ("8b", 32, 4096, 0.5)):
        recipe = load_recipe(f"paper-{size}-free")
        assert recipe.latent is not None
        assert (recipe.model.layers, recipe.model.width, recipe.latent.bits, recipe.latent.kappa) == (layers, width, 16, kappa)


@pytest.mark.parametrize("name", RUNNABLE)
def test_smoke_is_small(name):
    recipe, full = load_recipe(name, smoke=True), load_recipe(name)
    assert recipe.train.steps <= 100
    assert recipe.train.steps * recipe.train.batch < full.train.steps * full.train.batch / 10
    assert recipe.kind == full.kind
    assert recipe.eval.every < recipe.train.steps


def test_a_text_of_ones_own_in_two_commands(run_cli, tmp_path, monkeypatch):
    """The vocabulary is the data's. What is set makes the test short."""
    monkeypatch.chdir(tmp_path)
    text = EXCERPTS / "movie_reviews"
    assert run_cli("prepare", text, "-o", "data/text", "--tokenizer", "bpe:300", "--split", "train=0.5,val=0.5").code == 0
    short = [
        word
        for one in ("train.steps=2", "train.warmup=1", "model.context=64", "train.batch=4", "eval.sequences=4")
        for word in ("--set", one)
    ]
    code, stdout, stderr = run_cli("train", "text-mini-free", "-o", "run", "--device", "cpu", "--json", *short)
    assert code == 0, stderr
    assert (json.loads(stdout)["steps"], load_recipe("run/recipe.toml").model.vocab) == (2, 300)


def trained(run_cli, name, *options):
    """Train the recipe's smoke overlay into `run`; the result, and the lines of metrics.jsonl."""
    code, stdout, stderr = run_cli("train", name, "--smoke", "-o", "run", "--json", "--device", "cpu", *options)
    assert (code, stderr) == (0, "")
    lines = Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(stdout), [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_smoke_runs_to_the_end(name, run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a smoke run needs no file
    recipe = load_recipe(name, smoke=True)
    start = time.perf_counter()
    result, metrics = trained(run_cli, name)
    seconds = time.perf_counter() - start
    print(f"{name} --smoke: {seconds:.1f} s")
    assert (result["kind"], result["steps"]) == (recipe.kind, recipe.train.steps)
    assert metrics[-1]["split"] == "val"
    assert metrics[-1]["ce"] < metrics[0]["ce"]  # it learns
    assert Path("run/report.html").is_file()
    assert list(Path("run/samples").iterdir())
    assert seconds < BOUND


def kinds(name: str) -> set[tuple[object, ...]]:
    """What two steps of a recipe try: its data; and its model, latent and training. Sizes, weights and rates do not count."""

    def what(value: object) -> object:
        if isinstance(value, bool | str) or value is None:
            return value
        return (value > 0) - (value < 0) if isinstance(value, int | float) else type(value)

    settings = [(key, what(value)) for key, value in flat(load_recipe(name, smoke=True)).items() if key != "description"]
    return {tuple(one for one in settings if one[0].startswith("data.") is is_data) for is_data in (True, False)}


def first_of_each_kind() -> list[str]:
    """The recipes that try what neither REPRESENTATIVE nor a recipe before them tries."""
    found, tried = [], {kind for name in REPRESENTATIVE for kind in kinds(name)}
    for name in RUNNABLE:
        if new := kinds(name) - tried:
            found.append(name)
            tried |= new
    return found


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_recipe_is_built(name):
    for smoke in (False, True):
        recipe = load_recipe(name, smoke=smoke)
        known = {key: value for key, value in (("vocab", 64), ("context", 64)) if getattr(recipe.model, key) is None}
        model = recipe.model.model_copy(update=known)  # the data's, otherwise
        with torch.device("meta"):
            built = build_model(model, recipe.latent)
        assert (built.latent is None) is (recipe.kind == "baseline") and len(built.blocks) == model.layers


@pytest.mark.slow
@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize("name", first_of_each_kind())
def test_two_steps_of_each_kind(name, run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("train.steps=2", "train.warmup=1", "train.log_every=1", "eval.every=2", "eval.sequences=8", "eval.samples=1")
    result, metrics = trained(run_cli, name, *(word for option in options for word in ("--set", option)))
    assert (result["kind"], result["steps"]) == (load_recipe(name).kind, 2)
    assert [line["split"] for line in metrics] == ["train", "train", "val"]
    assert all(0 < line["ce"] < 10 for line in metrics)


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_recipe_is_planned_without_data(name, run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = run_cli("train", name, "--dry-run", "--json")
    assert (code, stderr) == (0, "")
    found, recipe = json.loads(stdout), load_recipe(name)
    assert found["tokens"] == recipe.train.steps * recipe.train.batch * recipe.model.context
    assert found["parameters"] > 8e8
    assert (found["kind"], found["precision"]) == (recipe.kind, "bf16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_recipe_says_what_data_it_needs(name, run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, stderr = run_cli("train", name, "-o", "run")
    assert code == 2
    assert "data/corpus" in stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_make_figure4_mini_trains_probes_and_draws_and_resumes(run_cli, tmp_path):
    """With smoke overlays. All runs but one are done already: make skips them, trains the other, and probes all."""
    options = "--smoke --set train.steps=4 --set eval.sequences=8 --set eval.samples=1"
    words = ["make", "figure4-mini", "--old-file=setup", f"BIN={Path(sys.executable).parent}", f"RUNS={tmp_path}", f"TRAIN={options}"]
    words += ["PROBE=--groups 24 --count 2 --sequences 40"]
    planned = run_cli("sweep", "figure4-mini", "-o", tmp_path / "figure4-mini", *options.split()).stdout.splitlines()
    for command in planned[1:]:
        assert run_cli(*shlex.split(command)[1:]).code == 0
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=600)
    assert done.returncode == 0, done.stderr + done.stdout
    assert (done.stdout.count("done figure4-mini-16th"), done.stdout.count("skipped figure4-mini-")) == (1, 4)
    assert all(f"κ = {kappa}" in done.stdout for kappa in ("1/16", "1/4", "1 bit", "8"))
    assert (tmp_path / "figure4-mini.svg").read_text(encoding="utf-8").count('class="heading"') >= 5
    assert "</html>" in (tmp_path / "figure4-mini.html").read_text(encoding="utf-8")
    (metrics,) = (tmp_path / "figure4-mini").glob("figure4-mini-4th-*/metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [row["step"] for row in rows if row["split"] == "train"]
    assert steps == sorted(set(steps))
    words[-2] = "TRAIN=--smoke --set train.batch=0"
    failed = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=600)
    assert failed.returncode != 0
    assert "train.batch" in failed.stderr


@pytest.mark.parametrize("family", ["text-attention", "text-attention-long", "attention-ablations"])
def test_variants_of_attention_see_the_same_tokens_and_differ_in_attention_only(family):
    recipes = [load_recipe(name) for name in NAMES if name.startswith(f"{family}/")]
    others = [
        {key: value for key, value in flat(recipe).items() if "attention" not in key and "multi_token" not in key} for recipe in recipes
    ]
    assert len(recipes) > 3 and all({**one, "description": ""} == {**others[0], "description": ""} for one in others)
    assert len({str(flat(recipe)) for recipe in recipes}) == len(recipes)
    train, context = recipes[0].train, recipes[0].model.context
    assert context is not None
    tokens = {"text-attention": 131_072_000, "text-attention-long": 13_107_200, "attention-ablations": 65_536_000}[family]
    assert train.steps * train.batch * context == tokens


def test_kernels_of_the_papers_toy_task_are_two_blocks_less_one_wide():
    """c_q = 2, the letters asked for; c_k = 2 N − 1."""
    for letters in (5, 8):
        recipe = load_recipe(f"blocks-table/multi-token-{letters}")
        options = recipe.model.multi_token
        assert options is not None and (options.c_q, options.c_k, options.kq, options.mix) == (2, 2 * letters - 1, "pre", "none")
        assert recipe.data.params["n"] == letters
    ours, shipped = (flat(load_recipe(name)) for name in ("blocks-table/multi-token-5", "blocks-multi-token"))
    own = {key for key in {**ours, **shipped} if key.startswith(("description", "data.params"))}
    assert {key: value for key, value in ours.items() if key not in own} == {key: value for key, value in shipped.items() if key not in own}


def test_two_right_blocks_fit_what_probe_latent_generates():
    from freetf_cli.evaluation.probe.measure import LONGEST

    for name in (name for name in NAMES if name.startswith("blocks-choice/")):
        recipe = load_recipe(name)
        task = make_task("blocks", recipe.data.params)
        assert task.row_tokens <= LONGEST and [factor.name for factor in task.factors] == ["choice"]
        kernels = [recipe.model.convolves(block) for block in range(8)] if recipe.model.multi_token else [False] * 8
        assert [block for block in range(8) if kernels[block]] == {"softmax": [], "injection": [4], "fourth": [2, 6]}[
            name.split("-")[-1].split("/")[-1]
        ]
        assert recipe.latent is None or (recipe.latent.depth or recipe.model.layers // 2) == 4
