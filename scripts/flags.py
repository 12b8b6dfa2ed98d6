"""Measure where Z keeps the position and the noise of letters, and how large the flags in its codes are.

    python scripts/flags.py OUT.json RUN…      # RUN: folders of `freetf train` on letters; minutes each on a GPU

*Parts*: information by intervention, bits, where a group shares Z at some tokens only and every sequence draws the others.

*Flags*: at places before the target, the probabilities of the next character under many codes of that token drawn from the prior, with
everything else fixed. `share` is the share of codes under which "the target starts" (or the noise mark "!") is more likely than not;
`bits` is the information that the code carries about it. A flag of m bits that the prior sets has a share of 2^-m.

Results are in docs/experiments.md, raw in docs/results/flags-h200.json and flags-mini-cpu.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.device import resolve_device
from freetf_cli.errors import InputError
from freetf_cli.evaluation.probe.information import mutual_information
from freetf_cli.generation.sampling import SampleSpec, generate
from freetf_cli.latent.binary import BinaryLatent
from freetf_cli.model.decoder import Decoder
from freetf_cli.runs.checkpoint import open_checkpoint
from freetf_cli.tasks import make_task
from freetf_cli.tasks.factors import UNREAD, encode
from freetf_cli.tasks.letters import Letters

CODES = 512  # codes of a token, drawn from the prior


def parts(model: Decoder, bits: int, tokenizer: Tokenizer, task: Letters, groups: int, count: int) -> dict[str, list[float | None]]:
    """[I(shared part of Z; position), I(shared part of Z; noise)], bits, for each part of the tokens.

    None where too few groups have a target in all of their sequences.
    """
    positions, found = task.row_tokens - 1, {}
    ends = {"all": (0, positions), "first 2": (0, 2), "first 8": (0, 8), "after 2": (2, positions), "after 8": (8, positions)}
    random = np.random.default_rng(0)
    for name, (begin, end) in ends.items():
        codes = random.integers(2**bits, size=(groups, count, positions))
        codes[:, :, begin:end] = codes[:, :1, begin:end]
        spec = SampleSpec(task.row_tokens, groups=groups, count=count, given_z=codes.reshape(-1, positions).tolist(), seed=1)
        texts = [sample.text for sample in generate(model, tokenizer, [task.prompt(0, 0)], spec)]
        read = encode(task.factors, [reading.factors for reading in task.read_all(texts)])
        place, marks = read["position"].reshape(groups, count), read["noise"].reshape(groups, count, -1)
        whole = place[(place != UNREAD).all(1)]
        found[name] = [information(whole, task.places), information(marks, 2)]
        print(name, found[name], flush=True)
    return found


def information(values: np.ndarray, kinds: int) -> float | None:
    """I(Z; factor) from values [groups, sequences, …], bits."""
    try:
        return round(mutual_information(values, kinds, 0).information.value, 3) if len(values) else None
    except InputError:  # too few groups
        return None


@torch.no_grad()
def flags(model: Decoder, bits: int, tokenizer: Tokenizer, task: Letters, contexts: int) -> dict[str, dict[str, float]]:
    """The flags in codes of tokens before the target, for the start of the target and for noise."""
    prompt, random, device = task.prompt(0, 0), np.random.default_rng(1), model.embedding.weight.device
    spec = SampleSpec(task.row_tokens, groups=contexts, prompt_z="prior", seed=2)
    letter, mark = (tokenizer.encode(character, where="here")[0] for character in (prompt[0], "!"))
    seen: dict[str, list[Tensor]] = {"start": [], "noise": []}
    for sample in generate(model, tokenizer, [prompt], spec):
        tokens, codes = tokenizer.encode(sample.text, where="here"), sample.z
        assert codes is not None
        start = next((at for at in range(2, len(tokens)) if tokens[at] == letter), len(tokens))
        for at in random.integers(2, max(3, start), size=2):  # the code at `at` bears on the token at `at` + 1
            rows = torch.tensor(tokens[: at + 1], device=device).repeat(CODES, 1)
            z = torch.tensor(codes[: at + 1], device=device).repeat(CODES, 1)
            z[:, -1] = torch.from_numpy(random.integers(2**bits, size=CODES)).to(device)
            p = model(rows, z, last_only=True).logits[:, -1].softmax(-1)
            seen["start"].append(p[:, letter].cpu())
            seen["noise"].append(p[:, mark].cpu())
    return {name: flag(torch.stack(each)) for name, each in seen.items()}


def flag(p_PC: Tensor) -> dict[str, float]:
    """share, mean and bits of an event whose probability is p at each place under each code, [places, codes]."""

    def entropy(p: Tensor) -> Tensor:
        return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / np.log(2)

    bits = (entropy(p_PC.mean(1)) - entropy(p_PC).mean(1)).mean()
    share = (p_PC > 0.5).float().mean()
    return {"share": round(float(share), 4), "mean": round(float(p_PC.mean()), 4), "bits": round(float(bits), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--groups", type=int, default=256, help="groups that share a part of Z")
    parser.add_argument("--count", type=int, default=48, help="sequences of a group")
    parser.add_argument("--contexts", type=int, default=48, help="sequences in which flags are looked for")
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for run in chosen.runs:
        checkpoint = open_checkpoint(run, print)
        model, tokenizer = checkpoint.model(resolve_device("auto")), checkpoint.tokenizer()
        task = make_task("letters", checkpoint.recipe.data.params)
        assert isinstance(model.latent, BinaryLatent) and isinstance(task, Letters), "a Free model of bits, trained on letters"
        row: dict[str, Any] = {"run": run.name, "kappa": model.latent.kappa}
        row["flags"] = flags(model, model.latent.bits, tokenizer, task, chosen.contexts)
        row["parts"] = parts(model, model.latent.bits, tokenizer, task, chosen.groups, chosen.count)
        rows.append(row)
        print(row, flush=True)
        chosen.out.write_text(json.dumps(rows, indent=0), encoding="utf-8")


if __name__ == "__main__":
    main()
