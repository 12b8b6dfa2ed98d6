"""The model card of an exported folder: README.md, filled from the checkpoint and the run's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from freetf_cli import __version__
from freetf_cli.records import DataFacts, Metrics
from freetf_cli.report.units import count, number
from freetf_cli.runs.checkpoint import Checkpoint

HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- freetf
- {tag}
---

# {title}

{about}
"""
BASELINE_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIR")
tokenizer = AutoTokenizer.from_pretrained("DIR")
prompt = tokenizer("TEXT", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=50)[0]))
```
"""
FREE_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIR", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("DIR", trust_remote_code=True)
prompt = tokenizer("TEXT", return_tensors="pt")
texts = model.generate(**prompt, z_seed=0, num_return_sequences=4, max_new_tokens=50)  # greedy decoding of four Zs
z = model.draw_z(rows=1, length=200, z_seed=0)
text = model.generate(**prompt, z=z, do_sample=True, max_new_tokens=50)  # a given Z
```

Z is drawn once per generation. Pass `z` to give it, or `z_seed` to seed the draw. The encoder infers the prompt's Z, unless
`prompt_z="prior"`. `model(input_ids, z=z)` returns the logits, `model.bit_logits(input_ids)` the posterior logits of Z's bits.
"""


def model_card(checkpoint: Checkpoint, manifest: Mapping[str, Any], held_out: Metrics | None, parameters: int) -> str:
    """The text of README.md. It contains no paths of the machine that trained the model."""
    recipe, free = checkpoint.recipe, checkpoint.recipe.latent is not None
    name = PurePath(str(manifest.get("recipe") or "")).name.removesuffix(".toml")
    about = "A Free Transformer (Fleuret, [arXiv 2510.17558](https://arxiv.org/abs/2510.17558))" if free else "A Llama-style decoder"
    trained = manifest.get("status") != "imported"  # freetf did not train an imported model
    how = "trained with freetf" if trained else "imported and exported by freetf, which did not train it"
    about += f", {how}{f': {recipe.description}' if recipe.description else ''}."
    facts = _facts(checkpoint, manifest, held_out, parameters)
    shown = [(label, value) for label, value in facts if value and (trained or label not in ("steps", "seed", "started"))]
    rows = [f"| {label} | {value} |" for label, value in shown]
    parts = [
        HEAD.format(tag="free-transformer" if free else "llama", title=name or "model", about=about),
        "## Use\n\n" + (FREE_USE if free else BASELINE_USE),
        "## Facts\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n",
        "## Limits\n\nNot evaluated beyond the figures above. The publisher must state the intended uses and the licence.\n",
    ]
    return "\n".join(parts)


def _facts(checkpoint: Checkpoint, manifest: Mapping[str, Any], held_out: Metrics | None, parameters: int) -> list[tuple[str, str]]:
    model, latent, facts = checkpoint.recipe.model, checkpoint.recipe.latent, DataFacts.read(checkpoint.state["data"])
    sizes = f"{count(parameters)}; {model.layers} blocks of width {model.width}, {model.heads} heads, {model.key_heads} key/value heads"
    depth = checkpoint.recipe.architecture["latent"]["depth"] if latent else 0
    packages = {"freetf": manifest.get("freetf") or __version__, **(manifest.get("packages") or {})}
    tokens, git = checkpoint.state.get("tokens"), manifest.get("git") or {}
    return [
        ("parameters", sizes),
        ("context", f"{count(model.context)} tokens"),
        ("vocabulary", f"{count(model.vocab)}, {checkpoint.tokenizer().name}"),
        (
            "latent",
            f"{latent.bits} bits per token, injected into block {depth} (from 0); κ = {latent.kappa:g} bits per token" if latent else "",
        ),
        ("data", f"{facts.name} (SHA-256 {facts.sha256})" if facts.sha256 else facts.name),
        ("steps", f"{count(checkpoint.step)}, {count(tokens)} tokens" if isinstance(tokens, int) else count(checkpoint.step)),
        ("held-out cost", _cost(held_out, facts)),
        ("seed", str(checkpoint.recipe.train.seed)),
        ("started", str(manifest.get("started") or "")),
        ("versions", ", ".join(f"{key} {value}" for key, value in packages.items())),
        ("code", str(git.get("commit") or "")),
        ("weights, SHA-256", f"{checkpoint.weights_sha256} (of the checkpoint)"),
    ]


def _cost(held_out: Metrics | None, facts: DataFacts) -> str:
    """The held-out CE, and for a Free model KL and the bound on -log P, with their unit."""
    if held_out is None:
        return ""
    unit = facts.unit(held_out)
    parts = [f"CE {number(unit.bits(held_out.ce), 3)}"]
    if held_out.kappa:
        parts.append(f"KL {number(unit.bits(held_out.kl), 3)}")
    if held_out.nll is not None:
        parts.append(f"-log P at most {number(unit.bits(held_out.nll), 3)}")
    return f"{', '.join(parts)} {unit.name}, split {held_out.split}"
