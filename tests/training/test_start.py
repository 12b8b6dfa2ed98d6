"""The start of a run: what its data adds to a recipe (vocabulary, context, separator), and the weights it starts with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from freetf_cli.config.files import check_recipe
from freetf_cli.config.latent import ARCHITECTURE
from freetf_cli.config.recipe import ModelConfig, MultiTokenConfig, Recipe
from freetf_cli.data.manifest import Origin
from freetf_cli.data.tokenizer import characters
from freetf_cli.data.writer import DatasetWriter
from freetf_cli.errors import InputError
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.runs.checkpoint import Checkpoint, save_checkpoint
from freetf_cli.training.start import make_model, resolve, unlike_its_start


def resolved(data: dict[str, Any], **model: Any) -> Any:
    tree = {
        "data": data,
        "model": {"layers": 4, "width": 32, "heads": 4, **model},
        "train": {"steps": 1, "batch": 2, "lr": 1e-3},
    }
    return resolve(check_recipe(tree, where="test"))[0].model


def folder(path: Path, separator: bool) -> dict[str, Any]:
    tokenizer = characters("ab", separator=separator)
    with DatasetWriter(path, tokenizer, Origin(kind="text", seed=0)) as writer:
        for text in ("abab", "abaa", "bbab", "aabb"):
            writer.add("train", text, {})
            writer.add("val", text, {})
    return {"dir": str(path)}


@pytest.mark.parametrize("kind", ["softmax", "multi-token", "differential", "talking-heads"])
def test_packed_documents_are_masked_by_every_kind_but_softmax(kind: str, tmp_path: Path) -> None:
    data, options = folder(tmp_path / "d", separator=True), {"multi_token": {"c_k": 3, "c_q": 3}} if kind == "multi-token" else {}
    sizes = {"context": 4, "attention": kind, **options}
    assert resolved(data, **sizes).separator == (None if kind == "softmax" else 2)
    assert resolved(data, document_mask=True, **sizes).separator == 2
    assert resolved(data, document_mask=False, **sizes).separator is None
    assert resolved({**data, "rows": "documents"}, **sizes).separator is None  # a row has one document


def test_documents_without_a_separator_cannot_be_masked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the data has no separator"):
        resolved(folder(tmp_path / "d", separator=False), context=4, attention="differential")


def test_a_kernel_longer_than_the_datas_context_is_refused() -> None:
    assert resolved({"task": "letters"}, attention="multi-token").context == 65
    with pytest.raises(InputError) as caught:
        resolved({"task": "letters"}, attention="multi-token", multi_token={"c_k": 99})
    hint = "context and vocabulary are those of the data"
    assert caught.value.lines() == [f"model.multi_token.c_k = 99 is more than model.context = 65; {hint}"]


@pytest.mark.parametrize(("kind", "options"), [("talking-heads", {}), ("multi-token", {"norm": "none"})])
def test_a_kind_of_attention_first_computes_the_same_as_the_plain_model_it_starts_from(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    data, train = {"task": "letters"}, {"steps": 1, "batch": 2, "lr": 1e-3}
    model = {"layers": 4, "width": 32, "heads": 4, "vocab": 29, "context": 65}
    plain = check_recipe({"data": data, "model": model, "train": {**train, "seed": 9}}, where="test")
    more = {"attention": kind, **({"multi_token": options} if options else {})}
    recipe = check_recipe({"data": data, "model": model | more, "train": train}, where="test")
    start = make_model(plain, torch.device("cpu"), None, None)
    state = {"step": 1, "recipe": plain.model_dump(exclude_none=True), "data": {"sha256": ""}}
    save_checkpoint(tmp_path / "start", dict(start.named_parameters()), {}, state, characters("ab", separator=False))
    model_of_it = make_model(recipe, torch.device("cpu"), Checkpoint.open(tmp_path / "start"), None)
    tokens = torch.randint(29, (2, 12), generator=torch.Generator().manual_seed(0))
    assert (model_of_it(tokens).logits - start(tokens).logits).abs().max() < 1e-5
    with pytest.raises(InputError, match="is not in the model"):
        save_checkpoint(
            tmp_path / "other",
            dict(model_of_it.named_parameters()),
            {},
            {**state, "recipe": recipe.model_dump()},
            characters("ab", separator=False),
        )
        make_model(plain, torch.device("cpu"), Checkpoint.open(tmp_path / "other"), None)


PLAIN: dict[str, Any] = {"layers": 4, "width": 32, "heads": 4}
ALIKE: dict[str, Any] = {**PLAIN, "attention": "multi-token", "multi_token": {"norm": "none"}}


@pytest.mark.parametrize(
    ("ours", "start", "named"),
    [
        (ALIKE, PLAIN, ""),
        (ALIKE, ALIKE, ""),
        ({**PLAIN, "attention": "talking-heads"}, PLAIN, ""),
        ({**PLAIN, "attention": "talking-heads", "separator": 0}, PLAIN, "model.document_mask was false"),
        ({**ALIKE, "document_mask": False}, PLAIN, ""),
        (PLAIN, {**PLAIN, "document_mask": True, "separator": 0}, "model.document_mask was true"),
        ({**ALIKE, "multi_token": {"norm": "plain"}}, ALIKE, "model.multi_token.norm was 'none'"),
        ({**ALIKE, "multi_token": {"norm": "none", "mask": "exact"}}, ALIKE, "mask was 'double'"),
        ({**ALIKE, "multi_token": {"norm": "none", "mask": "exact"}}, PLAIN, ""),
        ({**ALIKE, "multi_token": {"norm": "none", "init": "constant"}}, PLAIN, "model.multi_token.init was 'identity' in block 2"),
        ({**ALIKE, "multi_token": {"norm": "none", "init": "constant"}}, ALIKE, ""),
        ({**ALIKE, "multi_token": {"norm": "none", "init": "random", "kq_layers": [1, 2]}}, ALIKE, "init was 'identity' in block 1"),
        ({**ALIKE, "multi_token": {"norm": "none", "init": "random", "kq": "none"}}, PLAIN, ""),
        ({**PLAIN, "attention": "differential"}, PLAIN, "model.attention was 'softmax'"),
        ({**PLAIN, "attention": "differential"}, {**PLAIN, "attention": "differential", "attention_layers": [0, 1, 2]}, "in block 3"),
        ({**PLAIN, "document_mask": True, "separator": 1}, {**PLAIN, "document_mask": True, "separator": 0}, "model.separator was 0"),
    ],
)
def test_what_makes_a_model_differ_from_its_start_is_named(ours: dict[str, Any], start: dict[str, Any], named: str) -> None:
    why = unlike_its_start(made_of(ours), made_of(start))
    assert named in str(why)
    assert (why is None) == (not named)


def made_of(model: dict[str, Any], latent: dict[str, Any] | None = None) -> Recipe:
    """A recipe of a model."""
    data, train = {"task": "letters"}, {"steps": 1, "batch": 2, "lr": 1e-3}
    return Recipe.model_validate({"data": data, "model": model, "latent": latent, "train": train})


def test_a_latent_of_another_architecture_is_named_and_another_kappa_is_not() -> None:
    model = {"layers": 4, "width": 32, "heads": 4}
    start = made_of(model, {"kappa": 0.5, "window": 2})
    assert unlike_its_start(made_of(model, {"kappa": 0.25, "window": 2, "depth": 2, "objective": {"slope": 0.1}}), start) is None
    assert unlike_its_start(made_of(model), start) is None
    why = unlike_its_start(made_of(model, {"kappa": 0.5, "depth": 3}), start)
    assert why is not None
    assert "latent.depth was 2" in why
    assert "latent.window was 2" in why


MULTI = {"attention": "multi-token", "multi_token": {"norm": "none", "kq": "pre", "c_q": 3, "c_k": 3, "kq_layers": [1, 3]}}
LATENT = {"kappa": 0.5, "bits": 4}
Change = tuple[dict[str, Any], dict[str, Any]]  # model and latent of the start, and what the other model has instead
CHANGES: dict[str, Change] = {
    "layers": ({}, {"layers": 2}),
    "width": ({}, {"width": 48}),
    "heads": ({}, {"heads": 2}),
    "kv_heads": ({"kv_heads": 2}, {"heads": 8, "kv_heads": 4}),
    "ffn": ({}, {"ffn": 64}),
    "vocab": ({}, {"vocab": 30}),
    "context": ({}, {"context": 33}),
    "tie_embeddings": ({}, {"tie_embeddings": False}),
    "rope_theta": ({}, {"rope_theta": 100.0}),
    "norm_eps": ({}, {"norm_eps": 0.5}),
    "attention": ({}, {"attention": "differential"}),
    "attention_layers": ({"attention": "differential", "attention_layers": [0, 1]}, {"attention_layers": [0, 1, 2]}),
    "multi_token": ({}, {"attention": "multi-token", "multi_token": {"norm": "gate"}}),
    "document_mask": ({}, {"document_mask": True, "separator": 0}),
    "separator": ({"document_mask": True, "separator": 0}, {"separator": 1}),
    "multi_token.kq": (MULTI, {"kq": "both"}),
    "multi_token.mix": (MULTI | {"multi_token": MULTI["multi_token"] | {"mix": "none"}}, {"mix": "post"}),  # type: ignore[operator]
    "multi_token.c_q": (MULTI, {"c_q": 2}),
    "multi_token.c_k": (MULTI, {"c_k": 5}),
    "multi_token.c_h": (MULTI, {"c_h": 2}),
    "multi_token.form": (MULTI, {"form": "full"}),
    "multi_token.mask": (MULTI, {"mask": "exact"}),
    "multi_token.norm": (MULTI, {"norm": "plain"}),
    "multi_token.kq_layers": (MULTI, {"kq_layers": [1, 2, 3]}),
    "multi_token.cache": (MULTI, {"cache": "rows"}),
    "multi_token.init": (MULTI, {"init": "random"}),  # kernels are loaded
    "latent.kind": ({}, {"kind": "gaussian"}),
    "latent.bits": ({}, {"bits": 5}),
    "latent.depth": ({}, {"depth": 3}),
    "latent.window": ({}, {"window": 3}),
    "latent.every": ({}, {"every": 3}),
    "latent.beyond": ({}, {"window": 3, "beyond": "nothing"}),
    "latent.encoder": ({}, {"encoder": "full"}),
    "latent.table": ({}, {"table": {"order": 2}}),
    "latent.options": ({}, {"options": {}}),  # the binary latent has none
}


def test_every_setting_of_the_architecture_has_a_trial() -> None:
    fields = [*ModelConfig.model_fields, *(f"multi_token.{name}" for name in MultiTokenConfig.model_fields)]
    assert set(CHANGES) == {*fields, *(f"latent.{name}" for name in ARCHITECTURE)}


@pytest.mark.parametrize("key", CHANGES)
def test_a_setting_is_named_if_and_only_if_it_changes_what_the_weights_compute(key: str, tmp_path: Path) -> None:
    """Weights that are drawn at random, so that no kernel is the identity, in two models that differ in one setting."""
    table, (base, other) = key.rpartition(".")[0], CHANGES[key]
    model = {"layers": 4, "width": 32, "heads": 4, "vocab": 29, "context": 65} | base
    latent = LATENT if table == "latent" else None
    changed = model | ({"multi_token": model["multi_token"] | other} if table == "multi_token" else {} if latent else other)
    start = made_of(model, latent)
    ours = made_of(changed, latent and latent | other)
    trained = make_model(start, torch.device("cpu"), None, None)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trained.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    state = {"step": 1, "recipe": start.model_dump(exclude_none=True), "data": {"sha256": ""}}
    save_checkpoint(tmp_path / "start", dict(trained.named_parameters()), {}, state, characters("ab", separator=False))
    try:
        loaded = make_model(ours, torch.device("cpu"), Checkpoint.open(tmp_path / "start"), None)
    except InputError:
        return
    tokens = torch.randint(29, (2, 24), generator=generator)
    tokens[:, [5, 11]] = torch.tensor([0, 1])
    noise = torch.rand(2, 24, 4, generator=generator) if latent else None
    same = torch.allclose(trained(tokens, noise=noise).logits, loaded(tokens, noise=noise).logits, atol=1e-4)
    assert (unlike_its_start(ours, start) is None) == same


def test_a_latent_is_grafted_without_a_change_of_the_logits_and_can_be_learned(tmp_path: Path) -> None:
    """With latent.table_std = 0: then the table has a gradient, and after its first step the encoder too."""
    start = made_of({"layers": 4, "width": 32, "heads": 4, "vocab": 29, "context": 24})
    grown = made_of(start.model.model_dump(), {"kappa": 0.5, "bits": 4, "table_std": 0.0})
    baseline = make_model(start, torch.device("cpu"), None, None)
    state = {"step": 0, "recipe": start.model_dump(exclude_none=True), "data": {"sha256": ""}}
    save_checkpoint(tmp_path / "step-000000", dict(baseline.named_parameters()), None, state, characters("ab", separator=True))
    checkpoint = Checkpoint.open(tmp_path / "step-000000")
    model = make_model(grown, torch.device("cpu"), checkpoint, None)

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(29, (8, 24), generator=generator)
    for _ in range(3):
        z = torch.randint(16, (8, 24), generator=generator)
        assert torch.equal(model(tokens, z).logits, baseline(tokens).logits)
    assert unlike_its_start(grown, start) is None
    of_default = made_of(start.model.model_dump(), {"kappa": 0.5, "bits": 4})
    assert "latent.table_std is 1.5" in str(unlike_its_start(of_default, start))

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    gradients = []
    for _ in range(2):
        noise = torch.rand(8, 24, 4, generator=generator)
        losses = model(tokens, noise=noise, targets_BT=tokens.roll(-1, 1), weights=ObjectiveWeights(10.0, 0.0, 0.0)).losses
        optimizer.zero_grad()
        losses.ce.backward()
        named = dict(model.named_parameters())
        gradients.append([float(named[f"latent.{name}"].grad.norm()) for name in ("post_sampler.weight", "encoder.to_bit_logits.weight")])
        optimizer.step()
    (table, before), (_, after) = gradients
    assert table > 0 and before == 0 and after > 0
