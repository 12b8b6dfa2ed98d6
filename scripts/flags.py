"""Where a Free Transformer keeps the position and the noise of letters, and how large the flags in its codes are.

    python scripts/flags.py FLAGS.json RUN...

*Parts*: information by intervention where only some tokens' Z is shared by a group, and the others are drawn for every sequence. *Flags*:
at places where the target has not started, the next character's probabilities under many codes of that token drawn from the prior, all
else being as it was: the share of codes under which "the target starts" or "`!`" is likelier than not, and what the code tells of it,
bits. A flag of m bits that the prior sets is a share of 2^-m.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from freetf_cli.model.free_transformer import FreeTransformer
from torch import Tensor

from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.device import resolve_device
from freetf_cli.evaluation.probe.information import mutual_information
from freetf_cli.generation.sampling import SampleSpec, generate
from freetf_cli.runs.checkpoint import open_checkpoint
from freetf_cli.tasks import make_task
from freetf_cli.tasks.factors import UNREAD, encode
from freetf_cli.tasks.letters import Letters

GROUPS, COUNT = int(os.environ.get("GROUPS_", "256")), int(os.environ.get("COUNT", "48"))
CONTEXTS, CODES = int(os.environ.get("CONTEXTS", "48")), 512


def parts(model: FreeTransformer, tokenizer: Tokenizer, task: Letters) -> dict[str, tuple[float, float]]:
    """I(shared part of Z; position) and (; noise), bits, by the part."""
    positions, found = task.row_tokens - 1, {}
    ends = {"all": (0, positions), "first 2": (0, 2), "first 8": (0, 8), "after 2": (2, positions), "after 8": (8, positions)}
    random = np.random.default_rng(0)
    for name, (begin, end) in ends.items():
        codes = random.integers(2**model.latent.bits, size=(GROUPS, COUNT, positions))
        codes[:, :, begin:end] = codes[:, :1, begin:end]
        spec = SampleSpec(task.row_tokens, groups=GROUPS, count=COUNT, given_z=codes.reshape(-1, positions).tolist(), seed=1)
        texts = [sample.text for sample in generate(model, tokenizer, [task.prompt(0, 0)], spec)]
        read = encode(task.factors, [reading.factors for reading in task.read_all(texts)])
        place, marks = read["position"].reshape(GROUPS, COUNT), read["noise"].reshape(GROUPS, COUNT, -1)
        whole = place[(place != UNREAD).all(1)]
        told = (mutual_information(values, kinds, 0).information.value for values, kinds in ((whole, task.places), (marks, 2)))
        found[name] = tuple(round(bits, 3) for bits in told)
        print(name, found[name], flush=True)
    return found


@torch.no_grad()
def flags(model: FreeTransformer, tokenizer: Tokenizer, task: Letters, device: torch.device) -> dict[str, dict[str, float]]:
    """Of codes of a token before the target: the share that flags, and what they tell, bits a place."""
    prompt, random = task.prompt(0, 0), np.random.default_rng(1)
    spec = SampleSpec(task.row_tokens, groups=CONTEXTS, prompt_z="prior", seed=2)
    letter, mark = (tokenizer.encode(character, where="here")[0] for character in (prompt[0], "!"))
    told: dict[str, list[Tensor]] = {"start": [], "noise": []}
    for sample in generate(model, tokenizer, [prompt], spec):
        tokens, codes = tokenizer.encode(sample.text, where="here"), sample.z
        assert codes is not None
        start = next((at for at in range(2, len(tokens)) if tokens[at] == letter), len(tokens))
        for at in random.integers(2, max(3, start), size=2):  # the code at `at` tells of the token at at + 1
            rows = torch.tensor(tokens[: at + 1], device=device).repeat(CODES, 1)
            z = torch.tensor(codes[: at + 1], device=device).repeat(CODES, 1)
            z[:, -1] = torch.from_numpy(random.integers(2**model.latent.bits, size=CODES)).to(device)
            p = model(rows, z)[:, -1].softmax(-1)
            told["start"].append(p[:, letter].cpu())
            told["noise"].append(p[:, mark].cpu())
    return {name: _flag(torch.stack(each)) for name, each in told.items()}


def _flag(p_PC: Tensor) -> dict[str, float]:
    """p [places, codes] of an event. bits: the mean information of a code about it, at a place."""

    def entropy(p: Tensor) -> Tensor:
        return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / np.log(2)

    bits = (entropy(p_PC.mean(1)) - entropy(p_PC).mean(1)).mean()
    share = (p_PC > 0.5).float().mean()
    return {"share": round(float(share), 4), "mean": round(float(p_PC.mean()), 4), "bits": round(float(bits), 4)}


def main(target: str, *runs: str) -> None:
    device, rows = resolve_device("auto"), []
    for run in runs:
        checkpoint = open_checkpoint(Path(run), print)
        model, tokenizer = checkpoint.model(device), checkpoint.tokenizer()
        assert isinstance(model, FreeTransformer)
        task = make_task("letters", checkpoint.recipe.data.params)
        assert isinstance(task, Letters)
        row: dict[str, Any] = {"run": Path(run).name, "kappa": model.latent.kappa}
        row |= {"flags": flags(model, tokenizer, task, device), "parts": parts(model, tokenizer, task)}
        rows.append(row)
        print(row, flush=True)
        Path(target).write_text(json.dumps(rows, indent=0), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
