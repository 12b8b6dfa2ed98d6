"""Distances of weights, against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from freetf_cli.errors import InputError
from freetf_cli.evaluation import weights
from freetf_cli.evaluation.weights import compare_weights, place
from freetf_cli.records.weights import TensorShape, WeightChanges


def compared(tmp_path: Path, a: dict[str, list], b: dict[str, list]) -> WeightChanges:
    for name, tensors in (("a", a), ("b", b)):
        save_file({key: torch.tensor(value, dtype=torch.float32) for key, value in tensors.items()}, tmp_path / name)
    return compare_weights(tmp_path / "a", tmp_path / "b")


def test_relative_norm_and_cosine_of_a_tensor(tmp_path):
    found = compared(tmp_path, {"norm.weight": [3.0, 4.0]}, {"norm.weight": [4.0, 3.0]}).tensors[0]
    assert (found.name, found.group, found.part, found.shape) == ("norm.weight", "norm", "", [2])
    assert found.change.relative == pytest.approx(math.sqrt(2) / 5, rel=1e-12)
    assert found.change.cosine == pytest.approx(24 / 25, rel=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "relative", "cosine"),
    [([0.0, 0.0], [0.0, 0.0], 0.0, None), ([0.0, 0.0], [1.0, 0.0], None, None), ([2.0, 0.0], [0.0, 0.0], 1.0, None), ([], [], 0.0, None)],
)
def test_tensors_without_a_norm(tmp_path, a, b, relative, cosine):
    change = compared(tmp_path, {"x": a}, {"x": b}).tensors[0].change
    assert (change.relative, change.cosine) == (relative, cosine)


def test_a_scalar_and_a_nan(tmp_path):
    scalar, broken = compared(tmp_path, {"s": 2.0, "t": [1.0]}, {"s": 3.0, "t": [math.nan]}).tensors
    assert (scalar.shape, scalar.change.relative, scalar.change.cosine) == ([], 0.5, 1.0)
    assert math.isnan(broken.change.relative) and math.isnan(broken.change.cosine)


def test_pieces_add_up_to_the_whole(tmp_path, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(7, 3, 2, generator=draw) for _ in range(2))
    monkeypatch.setattr(weights, "PIECE", 13)  # two rows at a time, and one row left over
    change = compared(tmp_path, {"x": a.tolist()}, {"x": b.tolist()}).tensors[0].change
    assert change.relative == pytest.approx(float((b.double() - a.double()).norm() / a.double().norm()), rel=1e-9)
    assert change.cosine == pytest.approx(float(torch.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0)), rel=1e-9)


def test_pieces_have_a_maximum_size(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "PIECE", 8)
    sizes = []
    dot = torch.dot
    monkeypatch.setattr(torch, "dot", lambda x, y: (sizes.append(x.numel()), dot(x, y))[1])
    compared(tmp_path, {"x": [[1.0] * 4] * 9}, {"x": [[2.0] * 4] * 9})
    assert max(sizes) == 8 and sum(sizes) == 4 * 36


def test_missing_and_reshaped_tensors_are_listed(tmp_path):
    found = compared(tmp_path, {"x": [1.0], "only.a": [1.0], "odd": [[1.0, 2.0]]}, {"x": [1.0], "zeta": [1.0], "odd": [1.0, 2.0]})
    assert found.only_a == [TensorShape("only.a", [1], None)]
    assert found.only_b == [TensorShape("zeta", None, [1])]
    assert found.reshaped == [TensorShape("odd", [1, 2], [2])]
    assert [one.name for one in found.tensors] == ["x"]


def test_models_without_common_tensors(tmp_path):
    found = compared(tmp_path, {"x": [1.0]}, {"y": [1.0]})
    assert (found.all, found.groups, found.tensors) == (None, [], [])


def test_groups_are_in_model_order_with_attention_and_ffn_separate(tmp_path):
    names = ["blocks.10.ffn.up.weight", "blocks.2.attention.q.weight", "blocks.2.ffn_norm.weight", "embedding.weight", "norm.weight"]
    a = {name: [1.0, 0.0] for name in names}
    b = {**a, "blocks.2.attention.q.weight": [1.0, 2.0], "blocks.2.ffn_norm.weight": [2.0, 0.0]}
    found = compared(tmp_path, a, b)
    assert [one.group for one in found.groups] == ["embedding", "blocks.2", "blocks.10", "norm"]
    block = found.groups[1]
    assert (block.tensors, block.attention.relative, block.ffn.relative) == (2, 2.0, 1.0)
    assert block.all.relative == pytest.approx(math.sqrt((4 + 1) / 2))
    assert (found.groups[2].attention, found.groups[2].all.relative) == (None, 0.0)
    assert found.all.relative == pytest.approx(math.sqrt(5 / 5))


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("blocks.3.attention_norm.weight", ("blocks.3", "attention")),
        ("blocks.12.ffn.gate.weight", ("blocks.12", "ffn")),
        ("latent.encoder.block.attention.q.weight", ("latent.encoder", "attention")),
        ("latent.encoder.blocks.1.ffn_norm.weight", ("latent.encoder", "ffn")),
        ("latent.encoder.zeta", ("latent.encoder", "")),
        ("latent.post_sampler.weight", ("latent.post_sampler", "")),
    ],
)
def test_group_and_part_of_a_name(name, want):
    assert place(name) == want


def test_an_unreadable_file_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"no")
    with pytest.raises(InputError):
        compare_weights(tmp_path / "a", tmp_path / "a")
