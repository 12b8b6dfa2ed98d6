"""Recipes: what is merged over what, and every fault named with its file, key and line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from freetf_cli.config.files import check_recipe, differences, load_recipe, shipped_recipes, to_toml
from freetf_cli.config.recipe import LatentConfig, ModelConfig, Recipe, flat
from freetf_cli.errors import InputError, InputErrors

TREE = {
    "data": {"task": "letters"},
    "model": {"layers": 4, "width": 64, "heads": 4},
    "latent": {"kappa": 0.25},
    "train": {"steps": 100, "batch": 8, "lr": 1e-3},
}


def faults(path, *overrides):
    with pytest.raises(InputError) as caught:
        load_recipe(str(path), overrides=overrides)
    return caught.value.lines()


def edited(path, before, after):
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")
    return path


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("kappa = 0.25", "kappa = 0.25\nkapa = 1", "unknown key 'latent.kapa', FILE, line 13; did you mean 'kappa'?"),
        ("[train]", "[trian]\n[train]", "unknown key 'trian', FILE, line 14; did you mean 'train'?"),
        ("heads = 4", "heads = 4\nbits = 3", "unknown key 'model.bits', FILE, line 10; choose from: attention, attention_layers"),
        ("steps = 100", 'steps = "100"', "train.steps: input should be a valid integer, not '100', FILE, line 15"),
        ("[train]", "[eval]\nsplit = 'train'\n[train]", "eval.split = 'train' is what the model learns from: name a held-out split"),
        ("[train]", "[eval]\nsplit = 'vall'\n[train]", "eval.split = 'vall' is none of a task's held-out splits, 'val' and 'test'"),
        ("steps = 100", "steps = 0", "train.steps: input should be greater than 0, not 0, FILE, line 15"),
        ("steps = 100", "steps = 9223372036854775807", "train.steps: input should be less than or equal to 1099511627776, not 9223"),
        ("batch = 8", "batch = 16777217", "train.batch: input should be less than or equal to 16777216, not 16777217"),
        ("lr = 1e-3", "lr = 3.5e38", "train.lr: input should be less than or equal to 1e+38, not 3.5e+38, FILE, line 17"),
        (
            "kappa = 0.25",
            "kappa = 0.25\nobjective.mismatch = 1e300",
            "latent.objective.mismatch: input should be less than or equal to 1e+38, not 1e+300, FILE, line 13",
        ),
        (
            "kappa = 0.25",
            "kappa = 0.25\nobjective.schedule.mismatch = [[0, 1e300], [1]]",
            "latent.objective.schedule.mismatch: 1e+300 is not between 0 and 1e+38",
        ),
        ("lr = 1e-3", "lr = true", "train.lr: input should be a valid number, not true, FILE, line 17"),
        ("lr = 1e-3", "lr = 2024-01-31", "train.lr: input should be a valid number, not 2024-01-31, FILE, line 17"),
        ("lr = 1e-3", "lr = nan", "train.lr: input should be a finite number, not nan, FILE, line 17"),
        ("kappa = 0.25", "kappa = '1/0'", "latent.kappa: input should be a valid number, not '1/0', FILE, line 12"),
        ("kappa = 0.25", "kappa = '-1/4'", "latent.kappa: input should be a valid number, not '-1/4', FILE, line 12"),
        ("kappa = 0.25", "kappa = '1/4'\nkapa = 1", "unknown key 'latent.kapa', FILE, line 13; did you mean 'kappa'?"),
        ("lr = 1e-3", "lr = '1/2'", "train.lr: input should be a valid number, not '1/2', FILE, line 17"),
        ("kappa = 0.25", "kappa = -1", "latent.kappa: input should be greater than or equal to 0, not -1, FILE, line 12"),
        ("kappa = 0.25", "kappa = 17", "latent.kappa = 17 is more than latent.bits = 16"),
        ("layers = 4", "layers = 3", "model.layers = 3 is odd: set latent.depth, the number of blocks before Z is injected"),
        ("heads = 4", "heads = 5", "model.heads = 5 does not divide model.width = 64"),
        ("heads = 4", "heads = 4\nkv_heads = 3", "model.kv_heads = 3 does not divide model.heads = 4"),
        ("heads = 4", "heads = 64", "the head width, model.width / model.heads = 1, must be even"),
        ("batch = 8", "batch = 8\ngrad_accum_steps = 3", "train.grad_accum_steps = 3 does not divide train.batch = 8"),
        ("kappa = 0.25", "kappa = 0.25\ndepth = 4", "latent.depth = 4 must be less than model.layers = 4"),
        (
            "kappa = 0.25",
            "kappa = 0.25\nobjective.schedule = { kappa = [[0, 2.0]] }",
            "latent.objective.schedule.kappa takes points [share, value] and ends with",
        ),
        (
            "kappa = 0.25",
            "kappa = 0.25\nobjective.schedule = { slope = [[0.5, 0.1], [0.2]] }",
            "latent.objective.schedule.slope: shares of the run must rise",
        ),
        (
            "kappa = 0.25",
            "kappa = 0.25\nobjective.schedule = { slope = [[0, 2], [0.2]] }",
            "latent.objective.schedule.slope: 2 is not between 0 and 1",
        ),
        (
            "kappa = 0.25",
            "kappa = 0.25\nobjective.schedule = { kappa = [[0, 17], [0.2]] }",
            "latent.objective.schedule.kappa: 17 is not between 0 and 16",
        ),
        ("kappa = 0.25", "kappa = 0.25\nobjective.schedule = { kapa = [[0, 2], [1]] }", "latent.objective.schedule.kapa"),
        ('task = "letters"', "", "[data] needs exactly one of 'task' and 'dir'"),
        ('task = "letters"', 'task = "leters"', "data.task: there is no task 'leters', FILE, line 4; did you mean 'letters'?"),
        ('task = "letters"', 'dir = "d"\nparams = { a = 1 }', "data.params belongs to data.task"),
        ("lr = 1e-3", "", "missing key 'train.lr', FILE, line 14"),
        ("[model]", "[[model]]", "model: "),
        ("lr = 1e-3", "lr =", "the recipe is not valid TOML: "),
    ],
)
def test_each_fault_is_named(recipe_file, before, after, line):
    found = faults(edited(recipe_file, before, after))
    assert any(line.replace("FILE", str(recipe_file)) in one for one in found), found
    assert all(str(recipe_file) in one for one in found)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            'attention = "multi-token"\nmulti_token = { c_h = 3 }',
            "model.multi_token.c_h = 3 does not divide model.heads = 4, FILE, line 11",
        ),
        ('attention = "multi-token"\ncontext = 10', "model.multi_token.c_k = 11 is more than model.context = 10"),
        (
            'attention = "multi-token"\ncontext = 8\nmulti_token = { c_q = 9, c_k = 3 }',
            "model.multi_token.c_q = 9 is more than model.context = 8",
        ),
        ('attention = "multi-token"\nmulti_token.kq_layers = [4]', "kq_layers names block 4, which has no multi-token attention"),
        ("separator = 3", "model.separator needs model.document_mask = true"),
        ("document_mask = true\nseparator = 29\nvocab = 29", "model.separator = 29 is not a token of model.vocab = 29"),
        ('attention = "multi-token"\nattention_layers = [2, 4]', "attention_layers names block 4, but model.layers = 4 has 0 to 3"),
        ('attention = "multi-token"\nattention_layers = []', "attention_layers names no block, or one twice"),
        (
            'attention = "multi-token"\nmulti_token = { form = "full", kq = "pre", mix = "post" }',
            "form = 'full' joins a convolution and a mix",
        ),
        ('attention = "multi-token"\nmulti_token = { cache = "rows", mask = "exact" }', "cache = 'rows' needs mask = 'double'"),
        ('attention = "multi-token"\nmulti_token.c_p = 3', "unknown key 'model.multi_token.c_p', FILE, line 11; did you mean 'c_"),
        ('attention = "multi-token"\nmulti_token.c_q = 0', "model.multi_token.c_q: input should be greater than 0, not 0, FILE, line 11"),
        ("attention_layers = [0]", "model.attention_layers names the blocks of another model.attention than 'softmax'"),
        ("multi_token = {}", "[model.multi_token] belongs to model.attention = 'multi-token', not 'softmax'"),
        ('attention = "differential"\nkv_heads = 1', "model.kv_heads = 1 is odd: differential attention takes heads in pairs"),
        (
            'attention = "mta"',
            "model.attention: there is no kind of attention 'mta', FILE, line 10; choose from: differential, multi-token, softmax",
        ),
    ],
)
def test_each_fault_of_a_kind_of_attention_is_one_line(recipe_file, text, line):
    found = faults(edited(recipe_file, "heads = 4", f"heads = 4\n{text}"))
    assert len(found) == 1
    assert line.replace("FILE", str(recipe_file)) in found[0]


def test_differential_attention_with_odd_heads(recipe_file):
    edited(recipe_file, "width = 64\nheads = 4", 'width = 66\nheads = 3\nattention = "differential"')
    assert faults(recipe_file) == [f"model.heads = 3 is odd: differential attention takes heads in pairs, {recipe_file}, line 10"]


def test_a_kind_of_attention_brings_its_options_and_another_drops_them(recipe_file):
    edited(recipe_file, "heads = 4", 'heads = 4\nattention = "multi-token"\nattention_layers = [2]\nmulti_token.c_q = 3')
    recipe = load_recipe(str(recipe_file), overrides=["model.multi_token.c_h=2"])
    assert (recipe.model.multi_token.c_q, recipe.model.multi_token.c_k, recipe.model.multi_token.c_h) == (3, 11, 2)
    assert flat(recipe)["model.multi_token.c_q"] == 3
    recipe_file.with_name("again.toml").write_text(to_toml(recipe), encoding="utf-8")
    assert load_recipe(str(recipe_file.with_name("again.toml"))) == recipe
    late = load_recipe(str(recipe_file), overrides=["model.multi_token.c_q=2", "model.attention=multi-token"])
    assert late.model.multi_token.c_q == 2
    plain = load_recipe(str(recipe_file), overrides=["model.attention=softmax"]).model
    assert (plain.attention, plain.attention_layers, plain.multi_token) == ("softmax", None, None)
    assert [key for key, *_ in differences(recipe, load_recipe(str(recipe_file)))] == ["model.multi_token.c_h"]


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (
            "kappa = 0.25",
            'kappa = 0.25\nkind = "binry"',
            "latent.kind: there is no kind of latent 'binry', FILE, line 13; did you mean 'binary'?",
        ),
        ("kappa = 0.25", "kappa = 0.25\nslope = 0.1", "unknown key 'latent.slope', FILE, line 13; did you mean 'latent.objective.slope'?"),
        (
            "kappa = 0.25",
            "kappa = 0.25\nnumerics = { gradient = 1 }",
            "latent.numerics.gradient: input should be 'paper' or 'heun', not 1, FILE, line 13",
        ),
        (
            "[train]",
            "[latent.objective]\nfree_bits = 1\n\n[train]",
            "latent.objective.free_bits: input should be 'token' or 'sequence', not 1, FILE, line 15",
        ),
        ("[data]", "train.sed = 1\n[data]", "unknown key 'train.sed', FILE, line 3; did you mean 'seed'?"),
    ],
)
def test_faults_in_nested_tables(recipe_file, before, after, line):
    text = recipe_file.read_text(encoding="utf-8")
    if after.startswith("train."):
        recipe_file.write_text(text.replace("[train]\nsteps = 100\nbatch = 8\nlr = 1e-3", ""), encoding="utf-8")
        after = after.replace("[data]", "train.steps = 100\ntrain.batch = 8\ntrain.lr = 1e-3\n[data]")
    assert faults(edited(recipe_file, before, after)) == [line.replace("FILE", str(recipe_file))]


def test_models_that_differ_in_objective_or_numerics_have_the_same_architecture(recipe_file):
    def architecture(*overrides):
        return load_recipe(str(recipe_file), overrides=overrides).architecture

    same = [
        "latent.kappa=0.5",
        "latent.objective.slope=0.5",
        "latent.numerics.gradient=heun",
        "latent.depth=2",
        "latent.table_std=1",
        "train.lr=1",
    ]
    assert all(architecture(setting) == architecture() for setting in same)
    others = ["latent.bits=8", "latent.depth=3", "latent.window=2", "latent.encoder=full", "model.width=32"]
    assert all(architecture(setting) != architecture() for setting in others)
    assert load_recipe("letters-baseline").architecture["latent"] is None


def test_another_kind_of_latent_drops_the_options_of_the_old_one():
    base = {"kind": "other", "options": {"a": 1}, "bits": 4}
    assert LatentConfig.merge(base, {"kind": "binary"}) == {"kind": "binary", "bits": 4}
    assert LatentConfig.merge(base, {"kind": "other", "options": {"b": 2}})["options"] == {"a": 1, "b": 2}
    assert LatentConfig.merge({"options": {"a": 1}}, {"kind": "binary"})["options"] == {"a": 1}


def test_a_table_made_alone_checks_its_rules():
    with pytest.raises(ValidationError, match="does not divide"):
        ModelConfig(layers=2, width=10, heads=3)
    with pytest.raises(ValidationError, match=r"more than latent\.bits"):
        LatentConfig(kappa=9, bits=8)
    recipe = Recipe.model_validate(TREE)
    broken = recipe.model_copy(update={"model": recipe.model.model_copy(update={"layers": 3, "heads": 5})})
    assert [one.keys for one in broken.broken()] == [("model.heads", "model.width"), ("model.layers", "latent.depth", "latent.bits")]


def test_a_mismatch_needs_two_sequences_at_a_time(recipe_file):
    edited(recipe_file, "kappa = 0.25", "kappa = 0.25\nobjective.mismatch = 1.0")
    assert "latent.objective.mismatch compares sequences" in faults(edited(recipe_file, "batch = 8", "batch = 8\ngrad_accum_steps = 8"))[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.grad_accum_steps=8", "latent.objective.credit_from=2"], "halves the sequences"),
        (["model.context=9", "latent.objective.credit_from=9"], "leaves no target of model.context = 9"),
        (["data.task=siblings", "data.teacherless=0.5"], "data.teacherless is for baselines"),
        (["latent.every=2", "model.vocab=9", "model.document_mask=true", "model.separator=3"], "cannot share a Z"),
    ],
)
def test_settings_that_make_no_sense_together(recipe_file, settings, words):
    assert any(words in line for line in faults(recipe_file, *settings))


def test_all_faults_at_once(recipe_file):
    edited(recipe_file, "kappa = 0.25", "kappa = -1\nkapa = 1")
    edited(recipe_file, "steps = 100", "steps = true")
    with pytest.raises(InputErrors) as caught:
        load_recipe(str(recipe_file))
    assert len(caught.value.errors) == 3


def test_unknown_name_hints_at_the_nearest(monkeypatch):
    monkeypatch.setattr("freetf_cli.config.files.shipped_recipes", lambda: ["coins-free", "letters-free"])
    assert faults("leters-free") == ["no recipe named 'leters-free'; did you mean 'letters-free'?"]


def test_kappa_as_a_fraction(recipe_file):
    """As the paper writes it. No other number may be written so: it would be a slip."""
    assert load_recipe(str(recipe_file), overrides=["latent.kappa=1/64"]).latent.kappa == 1 / 64
    assert load_recipe(str(edited(recipe_file, "kappa = 0.25", "kappa = '1/8'"))).latent.kappa == 1 / 8
    assert faults(recipe_file, "train.steps=6/2") == ["train.steps: input should be a valid integer, not '6/2', --set train.steps=6/2"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "nowhere.toml", "x" * 5000, "nul\0byte"])
def test_hostile_names(name):
    assert len(faults(name)) == 1


def test_not_utf8(recipe_file):
    recipe_file.write_bytes(b"description = '\xff\xfe'\n")
    assert faults(recipe_file) == [f"the recipe is not UTF-8 text, {recipe_file}"]


def test_byte_order_mark_and_crlf(recipe_file):
    plain = load_recipe(str(recipe_file))
    recipe_file.write_bytes(b"\xef\xbb\xbf" + recipe_file.read_bytes().replace(b"\n", b"\r\n"))
    assert load_recipe(str(recipe_file)) == plain
    assert "line 16" in faults(edited(recipe_file, "batch = 8", "batch = 0"))[0]


@pytest.mark.parametrize("text", ["", "\0", "[", "x = " + "[" * 20_000 + "]" * 20_000, "x." * 5000 + "y = 1", "model = 1\n"])
def test_odd_files(recipe_file, text):
    recipe_file.write_text(text, encoding="utf-8")
    assert faults(recipe_file)


# --- merging ---------------------------------------------------------------------------------------------------------


def child_of(recipe_file, text):
    path = recipe_file.with_name("child.toml")
    path.write_text(f'extends = "{recipe_file.stem}"\n{text}', encoding="utf-8")
    return path


def test_extends_a_file_beside_it(recipe_file):
    child = load_recipe(str(child_of(recipe_file, "[train]\nlr = 3e-4\n")))
    assert (child.train.lr, child.train.steps) == (3e-4, 100)


def test_extends_inherits_the_overlay(recipe_file):
    child = child_of(recipe_file, "[train]\nlr = 3e-4\n[smoke]\ntrain = { batch = 2 }\n")
    smoked = load_recipe(str(child), smoke=True).train
    assert (smoked.steps, smoked.batch, smoked.lr) == (3, 2, 3e-4)


def test_a_schedule_is_extended_and_cleared(recipe_file):
    edited(recipe_file, "kappa = 0.25", "kappa = 0.25\nobjective.schedule = { kappa = [[0, 1.0], [0.5]] }")
    longer = child_of(recipe_file, "[latent.objective]\nschedule = { slope = [[0, 0.1], [1.0]] }\n")
    assert sorted(load_recipe(str(longer)).latent.objective.schedule) == ["kappa", "slope"]
    assert load_recipe(str(longer), overrides=["latent.objective.schedule={}"]).latent.objective.schedule == {}
    assert load_recipe(str(child_of(recipe_file, "[latent]\n"))).latent.objective.schedule == {"kappa": [[0, 1.0], [0.5]]}
    with_params = child_of(recipe_file, "[data]\nparams = { noise = 0.1 }\n")
    assert load_recipe(str(with_params)).data.params == {"noise": 0.1}
    assert load_recipe(str(with_params), overrides=["data.params={}"]).data.params == {}


def test_naming_a_folder_drops_the_task(recipe_file):
    edited(recipe_file, 'task = "letters"', 'task = "letters"\nparams = { noise = 0.1 }')
    assert load_recipe(str(child_of(recipe_file, '[data]\ndir = "d"\n'))).data.dir == "d"
    assert load_recipe(str(child_of(recipe_file, '[data]\ntask = "coins"\n'))).data.params == {}


def test_a_finite_training_set_belongs_to_a_task(recipe_file):
    """Another task keeps its size; a folder drops it, and may not have one of its own."""
    edited(recipe_file, 'task = "letters"', 'task = "circles"\ntrain_rows = 50\nteacherless = 0.5')
    edited(recipe_file, "[latent]\nkappa = 0.25\n", "")
    of_lines = load_recipe(str(child_of(recipe_file, '[data]\ntask = "lines"\n'))).data
    assert (of_lines.train_rows, of_lines.teacherless) == (50, 0.5)
    of_folder = load_recipe(str(child_of(recipe_file, '[data]\ndir = "d"\n'))).data
    assert (of_folder.train_rows, of_folder.teacherless) == (None, 0.0)
    both = faults(child_of(recipe_file, '[data]\ndir = "d"\ntrain_rows = 5\nteacherless = 0.5\n'))
    assert len(both) == 2 and "data.train_rows belongs to data.task" in both[0] and "data.teacherless belongs to data.task" in both[1]


def test_extends_in_a_circle(recipe_file):
    child = child_of(recipe_file, "")
    recipe_file.write_text('extends = "child"\n', encoding="utf-8")
    assert "'extends' goes in a circle" in faults(child)[0]


def test_extends_what_is_not_there(recipe_file):
    assert "no recipe named 'nothing'" in faults(edited(recipe_file, "[data]", 'extends = "nothing"\n[data]'))[0]


def test_smoke_overlay(recipe_file):
    assert load_recipe(str(recipe_file)).train.steps == 100
    assert load_recipe(str(recipe_file), smoke=True).train.steps == 3


@pytest.mark.parametrize("overlay", ["", "smoke = 3\n"])
def test_no_usable_overlay(recipe_file, overlay):
    text = recipe_file.read_text(encoding="utf-8").split("[smoke]")[0]
    recipe_file.write_text(overlay + text, encoding="utf-8")
    with pytest.raises(InputError, match="smoke"):
        load_recipe(str(recipe_file), smoke=True)


def test_a_faulty_overlay(recipe_file):
    edited(recipe_file, "train = { steps = 3 }", "train = { stepz = 3 }")
    with pytest.raises(InputError, match="stepz"):
        load_recipe(str(recipe_file), smoke=True)


# --- --set -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.lr=3e-4", "train.lr", 3e-4),
        (" train.lr = 0.5 ", "train.lr", 0.5),
        ("latent.kappa=1", "latent.kappa", 1.0),
        ("train.precision=bf16", "train.precision", "bf16"),
        ('train.precision="bf16"', "train.precision", "bf16"),
        ("model.tie_embeddings=false", "model.tie_embeddings", False),
        ("data.params={noise = 0.1}", "data.params.noise", 0.1),
        ("data.params.noise=0.1", "data.params.noise", 0.1),
        ("data.params.noise=1/16", "data.params.noise", "1/16"),
        ("train.batch=1_6", "train.batch", 16),
    ],
)
def test_set(recipe_file, text, key, value):
    assert flat(load_recipe(str(recipe_file), overrides=[text]))[key] == value


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("data.dir=d\udce9", "a recipe is UTF-8 text, which this setting is not, --set data.dir=d"),
        ("train.lr", "--set takes table.key=value, not 'train.lr'; for example --set train.lr=3e-4"),
        ("lr=1", "--set takes table.key=value"),
        ("=1", "--set takes table.key=value"),
        ("train..lr=1", "--set takes table.key=value"),
        ("train.lrr=1", "unknown key 'train.lrr'"),
        ("train.steps=yes", "train.steps: input should be a valid integer, not 'yes'"),
        ("train.steps=", "train.steps: "),
        ("train.steps=1\nx=2", "train.steps: "),
        ("train.steps.more=1", "train.steps: "),
        ("train.lr=" + "[" * 20_000, "train.lr"),
    ],
)
def test_bad_set(recipe_file, text, line):
    assert line in faults(recipe_file, text)[0]


def test_set_on_a_baseline_says_so(recipe_file):
    edited(recipe_file, "[latent]\nkappa = 0.25\n", "")
    assert "this recipe is a baseline" in faults(recipe_file, "latent.kappa=1")[0]


def test_the_last_set_wins(recipe_file):
    assert load_recipe(str(recipe_file), overrides=["train.lr=1", "train.lr=2"]).train.lr == 2


# --- writing ---------------------------------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@settings(max_examples=60, deadline=None)
@given(
    text, st.dictionaries(text, st.one_of(st.integers(-(2**60), 2**60), text, st.floats(allow_nan=False, allow_infinity=False)), max_size=3)
)
def test_to_toml_reads_back_the_same(tmp_path_factory, description, params):
    recipe = check_recipe({**TREE, "description": description, "data": {"task": "coins", "params": params}}, where="memory")
    path = tmp_path_factory.mktemp("recipe") / "again.toml"
    path.write_text(to_toml(recipe), encoding="utf-8", newline="")
    assert load_recipe(str(path)) == recipe


SMOKED = [name for name in shipped_recipes() if not name.startswith("paper-")]  # too large for any smoke


@pytest.mark.parametrize(("name", "smoke"), [*((name, False) for name in shipped_recipes()), *((name, True) for name in SMOKED)])
def test_shipped_recipes_read_back_from_a_file_and_from_plain_data(name, smoke, tmp_path):
    recipe = load_recipe(name, smoke=smoke)
    assert check_recipe(recipe.model_dump(exclude_none=True), where=name) == recipe
    path = tmp_path / "again.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    assert load_recipe(str(path)) == recipe


def test_a_baseline_has_no_latent_table():
    baseline = Recipe.model_validate({key: value for key, value in TREE.items() if key != "latent"})
    assert (baseline.kind, "[latent]" in to_toml(baseline)) == ("baseline", False)


@pytest.mark.parametrize(("width", "hidden"), [(64, 192), (96, 256), (768, 2048)])
def test_hidden_width_is_a_multiple_of_32(width, hidden):
    assert Recipe.model_validate({**TREE, "model": {"layers": 2, "width": width, "heads": 4}}).model.hidden == hidden


def test_all_broken_rules_name_the_settings_that_broke_them(recipe_file):
    settings = ["model.layers=3", "model.heads=5", "latent.kappa=99", "train.lrr=3", "trian.lr=3"]
    with pytest.raises(InputErrors) as caught:
        load_recipe(str(recipe_file), overrides=settings)
    lines = caught.value.lines()
    assert len(lines) == 5
    for setting in settings:
        assert sum(f"--set {setting}" in line for line in lines) == 1, setting


@pytest.mark.parametrize(
    ("settings", "blocks"),
    [
        ([], [2, 6]),
        (["model.attention_layers=[0, 6, 7]"], [6]),
        (["model.attention_layers=[0, 3]"], [3]),
        (["model.layers=2"], [1]),
        (["model.layers=2", "model.multi_token.kq_layers=[0]"], [0]),
    ],
)
def test_blocks_that_convolve_where_none_are_named(settings, blocks):
    recipe = load_recipe("letters-baseline", overrides=["model.attention=multi-token", *settings])
    assert [block for block in range(recipe.model.layers) if recipe.model.convolves(block)] == blocks


@pytest.mark.parametrize("setting", ["model.multi_token.c_q=2", "model.multi_token={c_q=2}"])
def test_options_of_another_kind_name_the_setting_that_gave_them(setting):
    with pytest.raises(InputErrors) as caught:
        load_recipe("letters-baseline", overrides=["train.lr=1e-4", setting])
    assert caught.value.lines() == [f"[model.multi_token] belongs to model.attention = 'multi-token', not 'softmax', --set {setting}"]


def test_a_block_that_is_not_there_is_one_fault():
    with pytest.raises(InputErrors) as caught:
        load_recipe("letters-baseline", overrides=["model.attention=multi-token", "model.attention_layers=[9]"])
    (fault,) = caught.value.errors
    assert "model.attention_layers names block 9" in str(fault)


def test_a_wrong_list_item_is_one_fault_with_its_source():
    with pytest.raises(InputErrors) as caught:
        load_recipe("blocks-multi-token", overrides=["train.lr=1e-4", "model.multi_token.kq_layers=[-1]"])
    (fault,) = [str(error) for error in caught.value.errors]
    assert "model.multi_token.kq_layers.0: input should be greater than or equal to 0" in fault
    assert "--set model.multi_token.kq_layers=[-1]" in fault


def test_a_description_is_marked_with_what_was_changed_since(tmp_path):
    """A recipe of film reviews that is trained on plays must not say only that it is of film reviews."""
    words = ["data.dir=plays", "latent.kappa=0.25", "data.dir=plays/all"]
    own = load_recipe("reviews-free").description
    assert "changed" not in own
    assert load_recipe("reviews-free", overrides=words).description == f"{own} (changed: data.dir, latent.kappa)"
    assert load_recipe("reviews-free", smoke=True, overrides=words[1:2]).description == f"{own} (changed: --smoke, latent.kappa)"
    child = tmp_path / "child.toml"
    child.write_text("extends = 'reviews-free'\ndata.dir = 'plays'\n")
    assert load_recipe(str(child)).description == f"{own} (changed: data.dir)"
    child.write_text("extends = 'reviews-free'\ndescription = 'plays'\ndata.dir = 'plays'\n")
    assert load_recipe(str(child)).description == "plays"


def test_the_table_is_full_or_of_an_order() -> None:
    name = "letters-free"
    assert load_recipe(name, overrides=["latent.table=full"]).latent == load_recipe(name).latent
    of_order = load_recipe(name, overrides=["latent.table={ order = 2 }"])
    assert of_order.latent and of_order.latent.table.order == 2
    assert of_order.latent == load_recipe(name, overrides=["latent.table.order=2"]).latent
    assert of_order.architecture != load_recipe(name).architecture
    with pytest.raises(InputError, match=r"latent.table.order = 9 is more than latent.bits = 8"):
        load_recipe(name, overrides=["latent.table.order=9", "latent.bits=8"])


def test_the_decoder_has_a_turn_and_a_plan_one_document() -> None:
    with pytest.raises(InputError, match="leaves no step for the decoder"):
        load_recipe("latents-mini/alternating", overrides=["train.encoder.steps=1000", "train.steps=1000"])
    with pytest.raises(InputError, match="cannot share a Z"):
        load_recipe("demo-free", overrides=["latent.kind=plan", "model.document_mask=true", "model.separator=3"])
    with pytest.raises(InputError, match="a token holds no more"):
        load_recipe("demo-free", overrides=["latent.kind=plan", "latent.kappa=9", "latent.bits=8"])
