"""Compare freetf's log-likelihoods of answers with those of lm-eval's own `HFLM` on the same exported weights, item by item.

    python scripts/hflm.py RUN DATA OUT.json      # RUN: a baseline; DATA: the folder of the data sets; needs freetf[eval,hf] and accelerate

RUN is exported to a folder, which transformers loads in float32. Both models then get the same requests of each task, through the same task
files. They ask the same question in this setting:

    add_bos_token     left out: HFLM lets the tokenizer decide, and the exported one puts the separator before each text, as freetf does
    prefix_token_id   left out: an empty prompt gets the tokenizer's bos_token, the separator
    max_length        the model's context, from config.json: both cut the beginning of a longer prompt

HFLM refuses an answer that is longer than the context, where freetf scores its end: such items are left out, and counted. With
add_bos_token=False, HFLM asks without the separator; how much that changes is
measured too.

Results are in docs/benchmarks.md, raw in docs/results/hflm-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from freetf_cli.evaluation.benchmarks.measure import Questions, contained, measure
from freetf_cli.evaluation.benchmarks.scoring import Scorer
from freetf_cli.exchange.huggingface import export
from freetf_cli.runs.checkpoint import open_model

TASKS = ("hellaswag", "winogrande", "piqa", "arc_easy", "openbookqa", "lambada", "mmlu")
SCORES = ("acc", "acc_char", "acc_completion")  # HFLM does not report the number of tokens, which acc_token needs


def compare(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Items of a task by both models: greatest difference of a log-likelihood in nats, scores, and items on which they agree."""
    assert [(one["doc"], one["prompt"]) for one in ours] == [(one["doc"], one["prompt"]) for one in theirs]
    pairs = [both for both in zip(ours, theirs, strict=True) if all(math.isfinite(one["loglikelihood"]) for one in both[1]["answers"])]
    answers = [pair for one, other in pairs for pair in zip(one["answers"], other["answers"], strict=True)]
    scores = [name for name in SCORES if name in ours[0]["scores"]]
    return {
        "items": len(pairs),
        "left_out": len(ours) - len(pairs),
        "answers": len(answers),
        "truncated": sum(one["truncated"] for one, _ in pairs),
        "largest": max(-one["loglikelihood"] for one, _ in answers),
        "difference": largest_difference(answers),
        "greedy": sum(one["greedy"] == other["greedy"] for one, other in answers),
        "equal": {name: sum(one["scores"][name] == other["scores"][name] for one, other in pairs) for name in scores},
        "scores": {name: [sum(both[i]["scores"][name] for both in pairs) / len(pairs) for i in (0, 1)] for name in scores},
    }


def largest_difference(answers: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> float:
    """The greatest difference of a log-likelihood, after the prompt or after "Answer:" alone, in nats."""
    kinds = [name for name in ("loglikelihood", "alone") if name in answers[0][0]]
    return max(abs(one[kind] - other[kind]) for one, other in answers for kind in kinds)


def hflm(folder: str) -> Any:
    """lm-eval's `HFLM`, which gives NaN to an answer that is longer than the context."""
    from lm_eval.models.huggingface import HFLM

    class Lenient(HFLM):  # type: ignore[misc]  # lm-eval has no types
        def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **settings: Any) -> list[tuple[float, bool]]:
            fits = [len(answer) <= self.max_length for _, _, answer in requests]
            asked = [request for request, fit in zip(requests, fits, strict=True) if fit]
            found = iter(super()._loglikelihood_tokens(asked, *args, **{**settings, "disable_tqdm": True}))
            return [next(found) if fit else (math.nan, False) for fit in fits]

    return Lenient(pretrained=folder, tokenizer=folder, dtype="float32", device="cpu", batch_size=16)


def run(folder: Path, data: Path, tasks: Sequence[str], limit: int) -> list[dict[str, Any]]:
    from freetf_cli.evaluation.benchmarks.adapter import RunLM

    checkpoint, model = open_model(folder, torch.device("cpu"), lambda text: print(text, file=sys.stderr))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place, contained():
        exported = str(Path(place) / "hf")
        export(checkpoint, model, Path(exported))
        ours = RunLM(Scorer(model), checkpoint.tokenizer())
        theirs = hflm(exported)
        for task in tasks:
            (one, items), (other, others) = (asked(lm, task, data, limit) for lm in (ours, theirs))
            theirs.add_bos_token = False
            _, bare = asked(theirs, task, data, limit)
            theirs.add_bos_token = None
            without, seconds = compare(items, bare)["difference"], [round(both.seconds, 1) for both in (one, other)]
            rows.append({"task": task, **compare(items, others), "without_separator": without, "seconds": seconds})
            print(line(rows[-1]), flush=True)
    return rows


def asked(lm: Any, task: str, data: Path, limit: int) -> tuple[Any, list[dict[str, Any]]]:
    """The score and the items of a task."""
    (score,), items = measure(lm, task, Questions(str(data), limit), lambda *_: nullcontext(lambda count: None))
    return score, items


def line(row: dict[str, Any]) -> str:
    """A row of the table in docs/benchmarks.md."""
    equal = ", ".join(f"`{name}` {number}" for name, number in row["equal"].items())
    scores = " / ".join(f"{value:.3f}" for value in next(reversed(row["scores"].values())))
    counts, without = f"{row['items']} | {row['answers']} | {row['truncated']}", row["without_separator"]
    return f"| `{row['task']}` | {counts} | {row['difference']:.1e} | {without:.1f} | {row['greedy']} | {equal} | {scores} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK")
    parser.add_argument("--limit", type=int, default=200, help="items of each task")
    options = parser.parse_args()
    import lm_eval
    import transformers

    rows = run(options.run, options.data, options.tasks, options.limit)
    versions = {"lm_eval": lm_eval.__version__, "transformers": transformers.__version__, "torch": str(torch.__version__)}
    options.out.write_text(json.dumps({"versions": versions, "limit": options.limit, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
