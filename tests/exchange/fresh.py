"""Loads exported folders with transformers in a process that cannot import freetf_cli; test_transformers.py checks the output.

Usage: python -I fresh.py FOLDERS RESULT.json LOGITS.safetensors
"""

import importlib.abc
import json
import sys
from typing import Any

import torch
from safetensors.torch import save_file


class Blocked(importlib.abc.MetaPathFinder):
    """Blocks the import of freetf_cli, which an editable installation may make importable."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] == "freetf_cli":
            raise ImportError(f"{name}: a folder must not need freetf")


sys.meta_path.insert(0, Blocked())
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

folders, result, tensors = sys.argv[1:]
found: dict[str, Any] = {}


def load(name: str, **options: Any) -> tuple[Any, Any]:
    model, info = AutoModelForCausalLM.from_pretrained(f"{folders}/{name}", output_loading_info=True, **options)
    found[f"{name} loading"] = sorted(str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[kind])
    return model.eval(), AutoTokenizer.from_pretrained(f"{folders}/{name}", **options)


def refusal(function: Any, *args: Any, **options: Any) -> str:
    try:
        function(*args, **options)
    except ValueError as error:
        return str(error)
    return "accepted"


baseline, tokenizer = load("baseline")
free, free_tokenizer = load("free", trust_remote_code=True)
prompt = tokenizer("two", return_tensors="pt")
ids = prompt["input_ids"]
found["ids"] = ids.tolist(), free_tokenizer("two")["input_ids"]
found["text"] = tokenizer.decode(ids[0])
tokens = torch.arange(2 * 40).reshape(2, 40) * 7 % 256
z = torch.arange(2 * 40).reshape(2, 40) * 11 % 64
with torch.no_grad():
    logits = {"baseline": baseline(tokens).logits, "free": free(tokens, z=z).logits, "posterior": free.bit_logits(tokens)}
save_file({name: value.contiguous() for name, value in logits.items()}, tensors)

greedy = {"do_sample": False, "max_new_tokens": 20, "eos_token_id": None}
own = {"z": z[:1]}


def both(name: str, **options: Any) -> None:
    found[f"baseline {name}"] = baseline.generate(**prompt, **greedy, **options).tolist()
    found[f"free {name}"] = free.generate(**prompt, **greedy, **own, **options).tolist()


both("cache")
both("no cache", use_cache=False)
both("static", cache_implementation="static")
both("beams", num_beams=3, num_return_sequences=2)
found["beams, no cache"] = free.generate(**prompt, **greedy, **own, num_beams=3, num_return_sequences=2, use_cache=False).tolist()
found["other z"] = free.generate(**prompt, **greedy, z=z[1:]).tolist()
found["drawn"] = [free.generate(**prompt, **greedy, z_seed=seed).tolist() for seed in (4, 4, 5)]
found["three"] = free.generate(**prompt, **greedy, z_seed=4, num_return_sequences=3).tolist()
found["prior"] = free.generate(**prompt, **greedy, z_seed=4, prompt_z="prior").tolist()
found["by hand"] = free.generate(**prompt, **greedy, z=free.draw_z(1, 60, z_seed=4)).tolist()
found["no prompt"] = free.generate(**greedy, z=z[:1]).tolist()
free_codes = free.draw_z(3, 9, z_seed=1)
found["a row's codes"] = free_codes[:1, :5].tolist(), free.draw_z(1, 5, z_seed=1).tolist()
sampled = []
for _ in range(2):
    torch.manual_seed(3)
    sampled.append(free.generate(**prompt, do_sample=True, max_new_tokens=20, num_return_sequences=2).tolist())
found["sampled"] = sampled

short = tokens[:1, :3]
padded = torch.cat((torch.full((1, 2), 256), short), 1)
mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
rows = torch.cat((padded, tokens[1:, :5]))
shifted = torch.cat((z[:1, :2], z[:1, :-2]), 1)
found["padded"] = free.generate(rows, attention_mask=mask, z=torch.cat((shifted, z[1:])), **greedy)[0, 5:].tolist()
found["unpadded"] = free.generate(short, z=z[:1], **greedy)[0, 3:].tolist()
with torch.no_grad():
    difference = free.bit_logits(rows, mask)[0, 2:] - free.bit_logits(short)[0]
found["padded posterior"] = float(difference.abs().max())

for name in ("baseline", "free"):  # the code of the model cards
    with open(f"{folders}/{name}/README.md", encoding="utf-8") as card:  # noqa: PTH123
        code = card.read().split("```python\n")[1].split("```")[0]
    exec(code.replace("DIR", f"{folders}/{name}").replace("TEXT", "two"), {})

found["unknown"] = refusal(free.generate, **prompt, zz=1)
found["short z"] = refusal(free.generate, **prompt, **greedy, z=z[:1, :5])
found["rows of z"] = refusal(free.generate, **prompt, z=z.repeat(2, 1)[:3])
found["flat z"] = refusal(free.generate, **prompt, z=z[0])
found["fractions in z"] = refusal(free.generate, **prompt, z=z.float())
found["large z"] = refusal(free.generate, **prompt, z=z + 1000)
found["z as lists"] = torch.equal(free.generate(**prompt, **greedy, z=z[:1].tolist()), free.generate(**prompt, **greedy, z=z[:1]))
found["other prompt_z"] = refusal(free.generate, **prompt, prompt_z="prio")
found["z and z_seed"] = refusal(free.generate, **prompt, z=z[:1], z_seed=0)
found["z and prompt_z"] = refusal(free.generate, **prompt, z=z[:1], prompt_z="posterior")
found["no z"] = refusal(free, ids)
with open(result, "w", encoding="utf-8") as file:  # noqa: PTH123
    json.dump(found, file)
