"""The cost of training against arithmetic by hand, measured memory, and models that are built."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from freetf_cli.config.files import check_recipe, load_recipe
from freetf_cli.latent.build import build_model
from freetf_cli.runs.plan import ATTENTION_WEIGHTS, activation_bytes, plan_run, table_rows
from freetf_cli.training.turns import Turns


def test_the_papers_small_model_by_hand() -> None:
    """28 layers, D 1536, 12 query and 2 key/value heads of 128, FFN 8960, V 131,072 tied, T 4096, H 16."""
    d, ffn, vocabulary, context = 1536, 8960, 131_072, 4096
    linear = d * d * 2 + 2 * d * 256 + 3 * d * ffn  # q and out; k and v; gate, up, down
    attention = 4 * d * context  # scores and weighted values over all keys; half of them when causal
    free, base = (plan_run(load_recipe(f"paper-1.5b-{kind}"), kind, bf16=True) for kind in ("free", "baseline"))
    assert base.parameters == 28 * (linear + 2 * d) + vocabulary * d + d
    assert free.parameters == base.parameters + (linear + 2 * d) + d + d + 16 * d + 2**16 * d
    forward = 28 * (2 * linear + attention / 2) + 2 * vocabulary * d
    encoder = 2 * linear + 2 * 16 * d + attention
    mapper = 2 * 2**16 * d
    assert base.train_flops_per_token == pytest.approx(3 * forward)
    assert free.train_flops_per_token == pytest.approx(3 * (forward + encoder) + mapper)
    assert free.overhead_compute == pytest.approx((3 * encoder + mapper) / (3 * forward))
    assert free.overhead_compute_paper == pytest.approx(1 / 28)
    assert base.parameters == pytest.approx(1.512e9, rel=1e-3)


def test_the_full_encoder_of_figure_1b_by_hand() -> None:
    """15 blocks of its own at 1.5B, for 28 of the decoder: parameters of the built model, and FLOPs with the mapper's product."""
    d, ffn, vocabulary, context = 1536, 8960, 131_072, 4096
    linear, attention = d * d * 2 + 2 * d * 256 + 3 * d * ffn, 4 * d * context
    recipe, base = load_recipe("paper-1.5b-free", overrides=["latent.encoder=full"]), load_recipe("paper-1.5b-baseline")
    plan, plain = (plan_run(one, "", bf16=True) for one in (recipe, base))
    with torch.device("meta"):
        built = [sum(parameter.numel() for parameter in build_model(one.model, one.latent).parameters()) for one in (recipe, base)]
    assert [plan.parameters, plain.parameters] == built
    assert built[0] - built[1] == 15 * (linear + 2 * d) + d + d + 16 * d + 2**16 * d
    assert plan.overhead_parameters == pytest.approx(0.531, abs=5e-4)
    forward = 28 * (2 * linear + attention / 2) + 2 * vocabulary * d
    encoder = 15 * (2 * linear + attention) + 2 * 16 * d  # attention over all keys, not half of them
    assert plan.overhead_compute == pytest.approx((3 * encoder + 2 * 2**16 * d) / (3 * forward))
    assert plan.overhead_compute == pytest.approx(0.548, abs=5e-4)
    assert plan.overhead_compute_paper == 15 / 28


def test_turns_are_counted_and_cost_what_other_steps_cost() -> None:
    """The updates of encoder and decoder, against counting them."""
    for turns, steps in (("alternating", 2), ("lagging", 10)):
        overrides = [
            f"train.encoder.turns={turns}",
            f"train.encoder.steps={steps}",
            "model.vocab=29",
            "model.context=65",
            "train.steps=100",
        ]
        recipe = load_recipe("letters-free", overrides=overrides)
        plan, plain = plan_run(recipe, "", bf16=False), plan_run(load_recipe("letters-free", overrides=overrides[2:]), "", bf16=False)
        state = Turns(recipe.train.encoder)
        made = []
        for step in range(100):
            made.append(state.now(step).value)
            state.after(state.now(step), -step)
        assert plan.turns == {"encoder": made.count("encoder"), "decoder": made.count("decoder")}
        assert plan.train_flops_per_token == plain.train_flops_per_token and plain.turns is None
        told = dict(plan.facts().pairs)["turns"]
        assert f"{made.count('decoder')} of the decoder" in told and ("at least" in told) == (turns == "lagging")


@pytest.mark.parametrize("name", ["paper-8b-baseline", "paper-8b-free"])
def test_eight_billion(name: str) -> None:
    plan = plan_run(load_recipe(name), name, bf16=True)
    table = 2**16 * 4096 if "free" in name else 0
    assert plan.parameters == pytest.approx(8.05e9 + table, rel=0.05)
    assert sum(part.parameters for part in plan.parts) == plan.parameters
    assert plan.memory["parameters"] == 4 * plan.parameters
    assert plan.memory["optimizer"] == 8 * plan.parameters
    assert plan.memory["total"] == pytest.approx(sum(value for name, value in plan.memory.items() if name != "total"))


def test_the_pairs_of_the_mismatch_penalty_are_counted() -> None:
    """Three tensors of (128 / 2)² pairs, 2 of the positions, 16 bits."""
    sizes, plain = ["model.vocab=29", "model.context=65"], ["latent.objective.mismatch=0.0", "latent.objective.schedule={}"]
    recipes = (load_recipe("figure4/8th", overrides=overrides) for overrides in (sizes, sizes + plain))
    with_it, without = (plan_run(recipe, "figure4/8th", bf16=True) for recipe in recipes)
    assert with_it.memory["total"] - without.memory["total"] == 3 * 4 * 64**2 * 2 * 16


def test_predicted_memory_is_within_a_tenth_of_the_measured() -> None:
    """docs/results/speed-h200.json: peaks of allocated memory on a GPU. 8-bit layers keep less."""
    results = json.loads((Path(__file__).parents[2] / "docs" / "results" / "speed-h200.json").read_text())
    rows = [row for row in results["rows"] if "train.float8=true" not in row["settings"]]
    assert len(rows) >= 5
    for row in rows:
        settings = [setting.replace("train.accumulate", "train.grad_accum_steps") for setting in row["settings"]]  # its name then
        plan = plan_run(load_recipe(row["recipe"], overrides=settings), "", bf16=True)
        assert plan.memory["total"] == pytest.approx(row["peak"], rel=0.1), row["name"]


def test_memory_depends_on_the_device() -> None:
    """Only on CUDA in bfloat16 does the gradient of the logits overwrite them; a CPU computes fewer logits at once."""
    recipe = load_recipe("paper-1.5b-baseline", overrides=["train.batch=4", "train.grad_accum_steps=1", "model.context=2048"])
    found = {(bf16, kind): plan_run(recipe, "", bf16, kind).memory["total"] for bf16 in (True, False) for kind in ("cuda", "cpu")}
    logits = 8192 * 131_072
    assert logits == 2**30
    assert found[True, "cpu"] - found[True, "cuda"] == 3 * 2 * 2**28 - 2 * logits
    assert found[False, "cuda"] - found[False, "cpu"] == 3 * 4 * (logits - 2**28)
    assert plan_run(recipe, "", True).memory["total"] == found[True, "cuda"]
    assert plan_run(recipe, "", False).memory["total"] == found[False, "cpu"]


def test_gradient_accumulation_keeps_gradients_beside_activations() -> None:
    whole, parts = (
        plan_run(load_recipe("paper-1.5b-free", overrides=[f"train.batch={n}", f"train.grad_accum_steps={n // 4}"]), "", bf16=True)
        for n in (4, 8)
    )
    assert parts.memory["total"] - whole.memory["total"] == pytest.approx(4 * whole.parameters)


@pytest.mark.parametrize("name", ["letters-free", "letters-baseline", "demo-free"])
def test_parameters_are_counted_as_in_the_model(name: str) -> None:
    recipe = load_recipe(name, overrides=["model.vocab=29", "model.context=65"])
    assert plan_run(recipe, name, bf16=False).parameters == sum(
        parameter.numel() for parameter in build_model(recipe.model, recipe.latent).parameters()
    )


@pytest.mark.parametrize(("encoder", "layers", "depth"), [("shared", 4, None), ("full", 4, None), ("full", 7, 3), ("shared", 7, 6)])
def test_the_encoders_blocks_are_counted(encoder: str, layers: int, depth: int | None) -> None:
    """FLOPs against torch's counter, which knows no causality; activations against the blocks that keep them."""
    model = {"layers": layers, "width": 64, "heads": 2, "vocab": 16, "context": 16, "tie_embeddings": False}
    latent = {"kappa": 1.0, "bits": 4, "encoder": encoder, **({"depth": depth} if depth else {})}
    tree = {"data": {"task": "letters"}, "model": model, "train": {"steps": 1, "batch": 2, "lr": 1e-3}}
    free, base = (check_recipe({**tree, **more}, where="test") for more in ({"latent": latent}, {}))
    plan, plain = (plan_run(recipe, "", bf16=False) for recipe in (free, base))
    made = build_model(free.model, free.latent)
    assert plan.parameters == sum(parameter.numel() for parameter in made.parameters())
    with FlopCounterMode(display=False) as counter:
        made(torch.zeros(2, 16, dtype=torch.int64), noise=torch.rand(2, 16, 4))
    counted = sum(part.flops for part in plan.parts)
    assert counter.get_total_flops() / 32 == pytest.approx(counted, rel=0.05)
    own = 1 + (depth or layers // 2 if encoder == "full" else 0)
    assert plan.overhead_compute_paper == own / layers
    assert plan.overhead_compute == pytest.approx(own / layers, rel=0.2)
    assert plain.overhead_compute is None
    blocks = activation_bytes(free, False, "cpu") - activation_bytes(base, False, "cpu")
    assert blocks == 32 * (own * 4 * (3 * 64 + 2 * 64 + 4 * 64 + 3 * free.model.hidden) + 3 * 4 * 64)


def test_the_kinds_of_attention_by_hand() -> None:
    """4 blocks of width 256, 2 heads of 128, 318 positions; the convolution of 2 × 9 before the softmax in all blocks, no mix."""
    sizes, context = ["model.layers=4", "model.heads=2", "model.vocab=29", "model.context=318"], 318
    convolved = ["kq='pre'", "mix='none'", "norm='none'", "c_q=2", "c_k=9", "kq_layers=[0,1,2,3]"]
    kinds = {
        "softmax": [],
        "differential": ["model.attention='differential'"],
        "talking-heads": ["model.attention='talking-heads'"],
        "multi-token": ["model.attention='multi-token'", *(f"model.multi_token.{one}" for one in convolved)],
    }
    plans = {kind: plan_run(load_recipe("letters-baseline", overrides=sizes + more), kind, bf16=True) for kind, more in kinds.items()}
    plain = plans["softmax"]
    half = 4 * 256 * context / 2  # scores and weighted values under the causal mask
    added = {
        kind: (plan.parameters - plain.parameters, (plan.train_flops_per_token - plain.train_flops_per_token) / 3 / 4)
        for kind, plan in plans.items()
    }
    assert added["differential"] == (4 * (4 * 128 + 256), pytest.approx(half / 2))
    assert added["talking-heads"] == (4 * 2 * 2 * 2, pytest.approx(half + 2 * context * 2 * 2 * 2))
    assert added["multi-token"] == (144, pytest.approx(half + 2 * context * 2 * 2 * 9))
    cells = load_recipe("letters-baseline").rows_at_once * context * context * 2 * 4  # attention weights of four blocks
    found = {kind: plan.memory.get("attention weights (estimated)") for kind, plan in plans.items()}
    assert found == {"softmax": None, "differential": None, "talking-heads": cells * (4 + 3 * 2), "multi-token": cells * (4 + 2 * 2)}


KEPT = {  # kinds of attention that materialise attention weights, and options
    "talking-heads": {"attention": "talking-heads"},
    "differential": {"attention": "differential"},
    "multi-token": {"attention": "multi-token"},
    "exact": {"attention": "multi-token", "multi_token": {"mask": "exact"}},
    "documents": {"attention": "multi-token", "separator": 0},
    "one side": {"attention": "multi-token", "separator": 0, "multi_token": {"kq": "pre", "mix": "none"}},
}


@pytest.mark.parametrize("kind", KEPT)
def test_attention_weights_that_autograd_keeps_are_predicted(kind: str) -> None:
    """In float32 on a CPU; with a long context and a narrow model they are nearly all of the memory."""
    options = dict(KEPT[kind])
    if "multi_token" in options or options["attention"] == "multi-token":
        options["multi_token"] = {"kq_layers": [0, 1], **options.get("multi_token", {})}
    model = {"layers": 2, "width": 16, "heads": 4, "vocab": 5, "context": 192, **options}
    recipe = check_recipe({"data": {"task": "letters"}, "model": model, "train": {"steps": 1, "batch": 2, "lr": 1e-3}}, where="test")
    made, kept = build_model(recipe.model, None), {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.setdefault(x.untyped_storage().data_ptr(), x), lambda x: x):
        made(torch.randint(1, 5, (2, 192)))
    measured = sum(x.untyped_storage().nbytes() for x in kept.values() if x.numel() >= 2 * 192 * 192 and x.is_floating_point())
    predicted = plan_run(recipe, "", bf16=False).memory["attention weights (estimated)"]
    assert 0.75 < predicted / measured < 1.5, (predicted, measured)


def test_a_smaller_batch_never_needs_more_than_the_limit_of_kept_attention_weights() -> None:
    """Attention weights are kept if all blocks together have at most 2²⁸, of at most 4 + 2 · 5 bytes each in bfloat16."""
    plans = []
    for batch, context in [(1, 256), (2, 256), (4, 256), (8, 256), (1, 2048), (2, 2048), (4, 2048)]:
        words = ["train.grad_accum_steps=1", f"train.batch={batch}", f"model.context={context}"]
        plans.append(plan_run(load_recipe("paper-880m-multi-token", overrides=words), "", bf16=True).memory)
    assert max(plan.get(ATTENTION_WEIGHTS, 0) for plan in plans) <= 14 * 2**28  # of one block, at the largest
    for few, many in pairwise(plans):
        assert many["total"] > few["total"] - 14 * 2**28


def test_attention_checkpointing_decides_whether_they_are_kept() -> None:
    found = {}
    for setting in ("on", "off", "auto"):
        words = ["model.vocab=29", "model.context=65", "model.attention='talking-heads'", f"train.attention_checkpointing='{setting}'"]
        found[setting] = plan_run(load_recipe("letters-baseline", overrides=words), "", bf16=True).memory[ATTENTION_WEIGHTS]
    assert found["off"] == found["auto"] == 8 * found["on"]


def test_blocks_that_fuse_their_attention_do_not_count() -> None:
    """Six of 24 blocks materialise attention weights, 6 · 2²⁴ in all; the others have groups of two heads and fused attention."""
    words = ["train.grad_accum_steps=1", "train.batch=4", "model.context=512", "model.multi_token.c_h=2"]
    found = {
        setting: plan_run(
            load_recipe("paper-880m-multi-token", overrides=[*words, f"train.attention_checkpointing={setting}"]), "", bf16=True
        )
        for setting in ("on", "off", "auto")
    }
    assert found["auto"].memory["total"] == found["off"].memory["total"] > found["on"].memory["total"]


def test_differential_attention_has_nothing_to_recompute() -> None:
    words = ["model.vocab=29", "model.context=65", "model.attention=differential"]
    on, off = (
        plan_run(load_recipe("letters-baseline", overrides=[*words, f"train.attention_checkpointing={setting}"]), "", bf16=False).memory
        for setting in ("on", "off")
    )
    assert on == off
    assert on[ATTENTION_WEIGHTS] == 8 * 4 * 256 * 8 * 65**2


def test_text_is_assumed_packed_before_its_data_is_opened() -> None:
    """With a document mask, each row of a kernel keeps a copy of the attention weights."""
    masked, unmasked = (
        plan_run(load_recipe("paper-880m-multi-token", overrides=[f"model.document_mask={word}"]), "", bf16=True).memory[ATTENTION_WEIGHTS]
        for word in ("true", "false")
    )
    assert masked > 2 * unmasked


def test_a_table_of_low_order_by_hand() -> None:
    full, low = (plan_run(load_recipe("paper-1.5b-free", overrides=changes), "", True) for changes in ([], ["latent.table.order=2"]))
    width, rows = 1536, 16 + 16 * 15 // 2
    assert full.parameters - low.parameters == (2**16 - rows) * width
    assert full.train_flops_per_token - low.train_flops_per_token == 2 * 2**16 * width - 6 * rows * width


@pytest.mark.parametrize(
    ("changes", "inferred", "all_zs"),
    [
        (["latent.window=2"], 2, 65),
        (["latent.every=8"], 9, 9),
        (["latent.every='sequence'"], 1, 1),
        (["latent.every=8", "latent.window=17"], 3, 9),
    ],
)
def test_the_mapper_has_a_product_for_each_z_that_is_inferred(changes: list[str], inferred: int, all_zs: int) -> None:
    sizes = ["model.vocab=29", "model.context=65"]
    for order, products in ((None, 65 - inferred), (2, 3 * (65 - all_zs))):
        low = [] if order is None else [f"latent.table.order={order}"]
        whole, fewer = (plan_run(load_recipe("demo-free", overrides=[*sizes, *low, *words]), "", False) for words in ([], changes))
        recipe = load_recipe("demo-free", overrides=[*sizes, *low])
        assert recipe.latent is not None
        product = 2 * table_rows(recipe.latent) * recipe.model.width
        assert whole.train_flops_per_token - fewer.train_flops_per_token == pytest.approx(product * products / 65)
        assert whole.parameters == fewer.parameters


def test_a_gaussian_latent_has_no_mapper() -> None:
    sizes, changes = ["model.vocab=29", "model.context=65"], ["latent.kind=gaussian", "latent.options={dims=32}"]
    plan = plan_run(load_recipe("demo-free", overrides=[*sizes, *changes]), "", False)
    baseline = plan_run(load_recipe("demo-baseline", overrides=sizes), "", False)
    extra = sum(part.flops for part in plan.parts) - sum(part.flops for part in baseline.parts)
    assert plan.train_flops_per_token - baseline.train_flops_per_token == pytest.approx(3 * extra)
    assert extra > 2 * 32 * 64
