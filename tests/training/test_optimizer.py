"""Parameter groups and named state."""

import pytest
import torch

from freetf_cli.config.recipe import LatentConfig, ModelConfig, TrainConfig
from freetf_cli.latent.build import build_model
from freetf_cli.training.optimizer import load_named_state, make_optimizer, named_state

TRAIN = TrainConfig(steps=110, batch=4, lr=1.0, min_lr_ratio=0.1, warmup=10)


def test_only_matrices_decay() -> None:
    model = build_model(ModelConfig(layers=2, width=16, heads=2, vocab=7, tie_embeddings=False), LatentConfig(kappa=0.5, bits=3))
    optimizer = make_optimizer(model, TRAIN, torch.device("cpu"))
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert optimizer.param_groups[1]["weight_decay"] == 0.0
    assert {"embedding.weight", "latent.post_sampler.weight", "latent.encoder.zeta", "norm.weight"} <= kept
    assert {"lm_head.weight", "latent.encoder.to_bit_logits.weight", "blocks.0.ffn.up.weight"} <= decayed
    assert not any("norm" in name for name in decayed)
    assert decayed | kept == set(names.values())


def test_named_state_restores_every_moment() -> None:
    def trained(steps: int) -> tuple[torch.nn.Module, torch.optim.AdamW]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2, bias=False)
        optimizer = make_optimizer(model, TRAIN, torch.device("cpu"))
        return model, optimizer

    def step(model: torch.nn.Module, optimizer: torch.optim.AdamW) -> None:
        optimizer.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    one, optimizer = trained(0)
    for _ in range(3):
        step(one, optimizer)
    other, fresh = trained(0)
    other.load_state_dict(one.state_dict())
    load_named_state(dict(other.named_parameters()), fresh, named_state(dict(one.named_parameters()), optimizer))
    step(one, optimizer)
    step(other, fresh)
    assert torch.equal(one.weight, other.weight)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weight\.step is missing"):
        load_named_state(dict(other.named_parameters()), fresh, {})
    saved = named_state(dict(one.named_parameters()), optimizer)
    with pytest.raises(ValueError, match=r"weight\.exp_avg is .* \(1,\), not float32 \(2, 3\)"):
        load_named_state(dict(other.named_parameters()), fresh, {**saved, "weight.exp_avg": torch.zeros(1)})
