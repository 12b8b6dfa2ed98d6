"""Memory and communication on several GPUs against arithmetic by hand."""

from itertools import pairwise

import pytest

from freetf_cli.config.files import load_recipe
from freetf_cli.errors import InputError
from freetf_cli.records.plan import Spread, SpreadRow
from freetf_cli.runs.plan import plan_run
from freetf_cli.runs.spread import memory_of, memory_size, spread, unit_sizes

GIB = 2**30
SMALL = 1_659_096_576  # parameters of paper-1.5b-free
LARGE = 8_539_951_104  # of paper-8b-free
LARGE_ROOT = 2 * 131_072 * 4096 + 4096  # embedding, lm_head, norm
LARGE_BLOCK = 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096  # q and out; k and v; gate, up, down; norms
LARGE_ENCODER = LARGE_BLOCK + 4096 + 4096 + 16 * 4096  # ζ, norm, bit logits
LARGE_TABLE = 2**16 * 4096


def spread_of(name: str, gpus: int, *overrides: str, gpu_memory: float = 141e9, bf16: bool = True) -> Spread:
    recipe = load_recipe(name, overrides=list(overrides))
    return spread(recipe, plan_run(recipe, name, bf16, "cuda"), gpus, gpu_memory)


def rows(name: str, gpus: int, *overrides: str, gpu_memory: float = 141e9) -> dict[str, SpreadRow]:
    return {row.name: row for row in spread_of(name, gpus, *overrides, gpu_memory=gpu_memory).rows}


def states(row: SpreadRow) -> float:
    return sum(row.memory[name] for name in ("parameters", "gradients", "optimizer"))


def test_the_units_of_the_large_model_by_hand() -> None:
    root, units = unit_sizes(load_recipe("paper-8b-free"))
    assert root == LARGE_ROOT
    assert units == [LARGE_BLOCK] * 32 + [LARGE_ENCODER, LARGE_TABLE]
    assert root + sum(units) == LARGE
    root, units = unit_sizes(load_recipe("paper-1.5b-baseline"))
    assert root == 131_072 * 1536 + 1536  # lm_head is the embedding
    assert len(units) == 7  # of four of the 28 blocks each


@pytest.mark.parametrize(
    ("gpus", "names"),
    [
        (1, ["none", "offload"]),
        (2, ["ddp", "fsdp", "no reshard", "offload"]),
        (8, ["ddp", "fsdp", "no reshard", "offload"]),
        (64, ["ddp", "fsdp", "no reshard", "hsdp 8×8", "offload"]),
        (256, ["ddp", "fsdp", "no reshard", "hsdp 8×32", "offload"]),
    ],
)
def test_ways_and_their_states(gpus: int, names: list[str]) -> None:
    """16 bytes a parameter, over the GPUs that share a copy."""
    found = rows("paper-8b-free", gpus)
    assert list(found) == names
    shards = {"none": 1, "ddp": 1, "fsdp": gpus, "no reshard": gpus, f"hsdp 8×{gpus // 8}": 8}
    for name, row in found.items():
        assert row.shards * row.replicas == gpus
        if name == "offload":
            assert (states(row), row.host_memory) == (0, 16 * LARGE / gpus)
        else:
            assert (states(row), row.host_memory) == (16 * LARGE / shards[name], 0)
        assert row.memory["total"] == pytest.approx(sum(value for part, value in row.memory.items() if part != "total"))


def test_nodes_that_are_not_whole_have_no_hsdp() -> None:
    assert "hsdp" not in {row.mode for row in spread_of("paper-8b-free", 12, "train.batch=1536").rows}


def test_the_large_model_needs_two_gpus() -> None:
    one, two = rows("paper-8b-free", 1), rows("paper-8b-free", 2)
    assert states(one["none"]) / GIB == pytest.approx(127.3, abs=0.1)
    assert not one["none"].fits and not two["ddp"].fits
    assert one["offload"].fits and two["fsdp"].fits
    assert not rows("paper-8b-free", 2, gpu_memory=80e9)["fsdp"].fits
    assert rows("paper-8b-free", 8, gpu_memory=80e9)["fsdp"].fits


def test_what_fsdp_holds_unsharded() -> None:
    """The root in float32, the table and the encoder in bf16; with one part of the batch the float32 gradients of the two largest units."""
    found = rows("paper-8b-free", 256)
    assert {row.grad_accum_steps for name, row in found.items() if name != "ddp"} == {1}
    assert found["fsdp"].memory["gathered"] == found["hsdp 8×32"].memory["gathered"]
    assert found["fsdp"].memory["gathered"] == 4 * LARGE_ROOT + 2 * (LARGE_TABLE + LARGE_ENCODER)
    assert found["no reshard"].memory["gathered"] == 4 * LARGE_ROOT + 2 * (LARGE - LARGE_ROOT)
    assert found["fsdp"].memory["unsharded"] == 4 * (LARGE_ROOT + LARGE_TABLE)
    assert found["ddp"].memory["gathered"] == found["ddp"].memory["unsharded"] == 0
    wide = spread_of("paper-8b-free", 256, "train.precision='fp32'", bf16=False).rows
    assert wide[1].memory["gathered"] == 4 * (LARGE_ROOT + LARGE_TABLE + LARGE_ENCODER)


def test_parts_of_a_batch_keep_all_gradients_unsharded() -> None:
    """Until the last part FSDP2 reduces nothing: the shard and the rest of a float32 copy."""
    row = rows("paper-8b-free", 8)["fsdp"]
    assert row.grad_accum_steps > 1
    assert row.memory["unsharded"] + row.memory["gradients"] == pytest.approx(4 * LARGE)


def test_one_gpu_needs_what_a_plan_without_gpus_says() -> None:
    for name, overrides in (("letters-free", ["model.vocab=29", "model.context=65"]), ("paper-1.5b-free", ["train.batch=4"])):
        recipe = load_recipe(name, overrides=[*overrides, "train.grad_accum_steps=1"])
        plan = plan_run(recipe, name, True, "cuda")
        row = spread(recipe, plan, 1).rows[0]
        assert (row.grad_accum_steps, row.memory["total"]) == (1, pytest.approx(plan.memory["total"]))


@pytest.mark.parametrize("kind", ["none", "full", "selective"])
@pytest.mark.parametrize("name", ["paper-1.5b-free", "paper-880m-multi-token", "letters-free"])
@pytest.mark.parametrize("parts", [1, 4])
def test_one_gpu_needs_the_same_by_both_estimates(name: str, kind: str, parts: int) -> None:
    """Part by part, with the settings of the recipe."""
    settings = [f"train.activation_checkpointing={kind}", f"train.grad_accum_steps={parts}", "train.batch=16"]
    task = ["model.vocab=29", "model.context=65"] if name == "letters-free" else []
    recipe = load_recipe(name, overrides=[*settings, *task])
    plan = plan_run(recipe, name, True, "cuda")
    one = memory_of(recipe, plan)
    assert {name: one[name] for name in ("parameters", "gradients", "optimizer", "total")} == pytest.approx(
        {name: plan.memory[name] for name in ("parameters", "gradients", "optimizer", "total")}
    )
    assert one["gathered"] == one["unsharded"] == 0
    kept = load_recipe(name, overrides=[*settings[1:], *task])
    if name != "letters-free":  # whose peak is the mapper's gradient
        assert (plan.memory["total"] < plan_run(kept, name, True, "cuda").memory["total"]) == (kind == "full")


def test_bytes_sent_by_hand() -> None:
    """Rings: (N − 1) / N of the bytes for an all-gather or a reduce-scatter, twice that for an all-reduce."""
    found = rows("paper-1.5b-free", 8)
    root, parts = 131_072 * 1536 + 1536, 4
    assert {row.grad_accum_steps for row in found.values()} == {parts}
    assert found["ddp"].sent == 2 * 7 / 8 * 4 * SMALL
    assert found["fsdp"].sent == pytest.approx(7 / 8 * (parts * 4 * SMALL + 4 * SMALL))
    assert found["no reshard"].sent == pytest.approx(7 / 8 * (parts * 2 * (SMALL + root) + 4 * SMALL))
    assert found["offload"].sent == found["fsdp"].sent
    assert found["offload"].host_traffic == pytest.approx(4 * SMALL / 8 * (2 * parts + 1))
    assert rows("paper-1.5b-free", 1)["none"].sent == 0


def test_times_over_the_links_by_hand() -> None:
    """Within a node 450 GB/s; rings through nodes at the 50 GB/s of each of a node's cards; copies of shards at one card's."""
    inside, across = rows("paper-1.5b-free", 8), rows("paper-1.5b-free", 256)
    assert inside["ddp"].communication_seconds == pytest.approx(2 * 7 / 8 * 4 * SMALL / 450e9)
    assert across["ddp"].communication_seconds == pytest.approx(2 * 255 / 256 * 4 * SMALL / 400e9)
    in_node, of_shards = 7 / 8 * (4 * SMALL + 4 * SMALL), 2 * 31 / 32 * 4 * SMALL / 8
    assert across["hsdp 8×32"].sent == pytest.approx(in_node + of_shards)
    assert across["hsdp 8×32"].communication_seconds == pytest.approx(in_node / 450e9 + of_shards / 50e9)
    two_nodes = rows("paper-1.5b-free", 12, "train.batch=768")["ddp"]  # six GPUs in each
    assert two_nodes.communication_seconds == pytest.approx(2 * 11 / 12 * 4 * SMALL / 300e9)


def test_computation_and_what_it_hides_by_hand() -> None:
    recipe = load_recipe("paper-1.5b-free")
    plan = plan_run(recipe, "", True, "cuda")
    row = rows("paper-1.5b-free", 256)["hsdp 8×32"]
    assert row.compute_seconds == pytest.approx(plan.train_flops_per_token * 4096 / (0.6 * 989e12))
    forward = sum(part.flops for part in plan.parts) * 4096 / (0.6 * 989e12)
    gather = 7 / 8 * 2 * (SMALL + 131_072 * 1536 + 1536) / 450e9
    assert gather < forward
    assert row.communication_seconds - gather > row.compute_seconds - forward  # the backward is too short
    assert row.hidden == pytest.approx((gather + row.compute_seconds - forward) / row.communication_seconds)
    assert rows("paper-1.5b-free", 1)["none"].hidden is None


def test_recomputation_takes_another_forward_of_the_blocks() -> None:
    recipe = load_recipe("paper-1.5b-free")
    plan = plan_run(recipe, "", True, "cuda")
    plain, full = (spread(recipe, plan, 8, checkpointing=[kind]).rows[0] for kind in ("none", "full"))  # type: ignore[list-item]
    blocks = sum(part.flops for part in plan.parts if part.name.startswith(("blocks", "encoder")))
    assert full.compute_seconds - plain.compute_seconds == pytest.approx(blocks * 32 * 4096 / (0.6 * 989e12))


def test_the_fewest_parts_that_fit_are_chosen_and_full_checkpointing_only_where_nothing_else_fits() -> None:
    limits = [300e9, 141e9, 80e9, 60e9, 45e9]
    found = [rows("paper-1.5b-free", 8, gpu_memory=limit)["ddp"] for limit in limits]
    assert [row.fits for row in found] == [True] * 5
    assert [(row.sequences, row.activation_checkpointing) for row in found[:2]] == [(16, "none"), (8, "none")]
    assert all(row.sequences * row.grad_accum_steps * 8 == 256 for row in found)
    assert all(row.memory["total"] <= limit for row, limit in zip(found, limits, strict=True))
    long = rows("paper-1.5b-free", 8, "model.context=16384", gpu_memory=45e9)["ddp"]  # one sequence has 40 GiB of activations
    assert (long.fits, long.sequences, long.activation_checkpointing) == (True, 2, "full")
    least = rows("paper-1.5b-free", 8, gpu_memory=1e9)["ddp"]
    assert (least.fits, least.sequences, least.activation_checkpointing) == (False, 1, "full")


def test_full_checkpointing_keeps_the_input_of_each_block() -> None:
    """29 blocks of width 1536 in float32, one of them whole."""
    recipe = load_recipe("paper-1.5b-free")
    plan = plan_run(recipe, "", True, "cuda")
    for gpus in (1, 8):
        plain, full = (spread(recipe, plan, gpus, 1.0, checkpointing=[kind]).rows[0] for kind in ("none", "full"))  # type: ignore[list-item]
        assert (plain.sequences, full.sequences) == (1, 1)
        block = 3 * 4 * 1536 + 2 * (2 * 1536 + (2 * 12 + 2 * 2) * 128 + 3 * 8960)
        assert plain.memory["total"] - full.memory["total"] == 4096 * (29 * block - 29 * 4 * 1536 - block)


@pytest.mark.parametrize("name", ["paper-1.5b-baseline", "paper-1.5b-free", "paper-8b-baseline", "paper-8b-free"])
def test_more_gpus_never_need_more_memory_each(name: str) -> None:
    """With the same sequences at once; nothing else differs."""
    found = []
    for gpus in (2, 8, 64, 256):
        overrides = [f"train.batch={gpus}", "train.grad_accum_steps=1"]
        found.append({row.name.split()[0]: row.memory["total"] for row in spread_of(name, gpus, *overrides).rows})
    for few, many in pairwise(found):
        assert all(many[way] <= few[way] for way in few)
    assert found[-1]["fsdp"] < found[0]["fsdp"]
    assert found[-1]["fsdp"] < found[-1]["hsdp"] < found[-1]["ddp"]


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(InputError, match=r"train.batch = 256 is too small for 512 GPUs: each needs a sequence of its own"):
        spread_of("paper-1.5b-free", 512)
    with pytest.raises(InputError, match=r"train.batch = 256 cannot be divided among 3 GPUs; choose a multiple: --set train.batch=255"):
        spread_of("paper-1.5b-free", 3)
    assert rows("paper-1.5b-free", 256, "latent.objective.mismatch=1.0")["fsdp"].sequences == 1


def test_the_recipes_own_processes_and_parts_do_not_matter() -> None:
    found = rows("paper-1.5b-free", 8, "parallel.processes=4", "train.grad_accum_steps=32")
    assert found == rows("paper-1.5b-free", 8)


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GB", 80e9), ("80GiB", 80 * GIB), ("141GB", 141e9), ("1.5 TB", 1.5e12), ("512MiB", 512 * 2**20), (" 80gb ", 80e9)],
)
def test_sizes(text: str, size: float) -> None:
    assert memory_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "80", "GB", "0GB", "0.0GiB", "-80GB", "80GBs", "8 0GB", "80Gb/s", "nanGB", "1e3GB", "80KB", "٨GB", "80 GB\n1"]
)
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a size"):
        memory_size(text)
