"""evaluate with benchmarks, through lm-eval, on tiny data and without a network."""

from __future__ import annotations

import dataclasses
import json
import random
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from freetf_cli.evaluation.benchmarks import BENCHMARKS
from freetf_cli.evaluation.benchmarks.metrics import KINDS
from freetf_cli.records.benchmarks import Benchmarks
from tests.evaluation.benchmarks.data import write_all

pytest.importorskip("lm_eval")


MADE = [one.name for one in BENCHMARKS.values() if not one.in_all and not one.grid]
NAMES = ",".join(["all", *MADE])
CODE = ("--allow-code-execution", "--attempts", 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("offline")
def test_all_benchmarks_without_a_network(run_cli: Callable, text_run: Path, data: Path, tmp_path: Path) -> None:
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    done = run_cli("evaluate", text_run, "--task", NAMES, "--data", data, "--samples", 3, "-o", tmp_path / "out", "--json", *CODE)
    assert (done.code, done.stderr) == (0, "")
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    found = json.loads(done.stdout)
    assert (found["kind"], found["z"], found["draws"]) == ("free", "posterior-prompt", 3)
    assert [one["task"] for one in found["tasks"]] == [*(name for name in BENCHMARKS if BENCHMARKS[name].in_all), *MADE]
    for one in found["tasks"]:
        assert one["metric"] == BENCHMARKS[one["task"]].metric and one["metric"] in one["scores"]
        items = lines(tmp_path / "out" / f"{one['task']}.jsonl")
        assert len(items) == one["items"] >= 2
        assert one["truncated"] == sum(item["truncated"] for item in items)
        values = [item["scores"][one["metric"]] for item in items]
        score = one["scores"][one["metric"]]
        assert score["value"] == pytest.approx(np.mean(values))
        assert score["low"] is None or score["low"] <= score["value"] <= score["high"]
        for item in items:
            assert item["scores"] == KINDS[BENCHMARKS[one["task"]].kind](item["doc"], item.get("outcomes", item["answers"]))
            if BENCHMARKS[one["task"]].kind in ("choices", "last_word"):
                assert all(answer["stderr"] >= 0 and answer["tokens"] > 0 for answer in item["answers"])
                assert all(("alone" in answer) == (one["metric"] == "acc_completion") for answer in item["answers"])
            else:
                assert all(isinstance(answer, str) for answer in item["answers"])
    assert json.loads((tmp_path / "out" / "result.json").read_text())["tasks"] == found["tasks"]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("recipe", ["text-mini-free", "text-mini-baseline"])
def test_long_prompts_by_depth_and_length(recipe: str, run_cli: Callable, data: Path, tmp_path: Path) -> None:
    """Prompts are made for the context of the run, a Free model's and a baseline's; a page has heat maps, and --rescore the same tables."""
    small = ("model.context=400", "train.steps=2", "train.warmup=1", "train.batch=2", "eval.sequences=4", "eval.every=2")
    train = ["train", recipe, "--smoke", "-o", tmp_path / "run", "-q", *(word for setting in small for word in ("--set", setting))]
    done = run_cli(*train)
    assert done.code == 0, done.stderr
    asked = ["evaluate", tmp_path / "run", "--task", "needles,babilong", "--data", data, "--limit", 30, "--samples", 2]
    done = run_cli(*asked, "-o", tmp_path / "out", "--report", tmp_path / "long.html", "--json", "-q")
    assert done.code == 0, done.stderr
    needles, babi = json.loads(done.stdout)["tasks"]
    assert [grid["title"] for grid in needles["grids"]] == [f"{n} needles, given haystack" for n in (2, 4, 6)]
    assert {(tuple(grid["rows"]), tuple(grid["columns"])) for grid in needles["grids"]} == {(("0", "25", "50", "75", "100"), ("400",))}
    assert [grid["chance"][0] for grid in needles["grids"]] == pytest.approx([1 / 2, 1 / 4, 1 / 6])
    assert (babi["grids"][0]["rows"], babi["grids"][0]["columns"]) == (["qa1", "qa2", "qa3", "qa4", "qa5"], ["0", "400"])
    assert needles["truncated"] == babi["truncated"] == 0 and needles["shots"] == 0
    for one in (needles, babi):
        items = lines(tmp_path / "out" / f"{one['task']}.jsonl")
        cells = [cell["value"] for grid in one["grids"] for row in grid["scores"] for cell in row]
        assert len(items) == one["items"] and one["scores"]["acc"]["value"] == pytest.approx(
            np.mean([item["scores"]["acc"] for item in items])
        )
        assert np.mean(cells) == pytest.approx(one["scores"]["acc"]["value"]) and one["chance"] < 0.5
    page = (tmp_path / "long.html").read_text(encoding="utf-8")
    assert page.count("needles: 4 needles, given haystack") >= 2 and page.count("<svg") >= 4
    again = json.loads(run_cli("evaluate", "--rescore", tmp_path / "out", "--json").stdout)["tasks"]
    assert [one["grids"] for one in again] == [babi["grids"], needles["grids"]]
    shown = run_cli("evaluate", "--rescore", tmp_path / "out").stdout
    assert "depth" in shown and "babilong, score [95 %]" in shown


def test_a_table_in_the_terminal(run_cli: Callable, text_run: Path, data: Path) -> None:
    done = run_cli("evaluate", text_run, "--task", "piqa,boolq", "--data", data, "--limit", 1, "--z", "prior", "--samples", 2)
    assert done.code == 0, done.stderr
    assert "piqa" in done.stdout and "acc_completion" in done.stdout and "prior, 2 draws" in done.stdout and "0.500" in done.stdout


def test_limit_and_examples(run_cli: Callable, text_run: Path, data: Path, tmp_path: Path) -> None:
    asked = ["evaluate", text_run, "--data", data, "--samples", 1, "--limit", 1, "-q"]
    for task, shots, mark in (("arc_easy", 2, "Why?"), ("mmlu", 3, "Answer:"), ("winogrande", 1, "won."), ("piqa", 1, "Open door")):
        assert run_cli(*asked, "--task", task, "--fewshot", shots, "-o", tmp_path / task).code == 0
        (item,) = lines(tmp_path / task / f"{task}.jsonl")
        assert item["prompt"].count(mark) == shots + (task != "winogrande"), item["prompt"]
        assert json.loads((tmp_path / task / "result.json").read_text())["tasks"][0]["shots"] == shots
    assert "Open door a" in item["prompt"] and "Open door b\nAnswer: sing" in item["prompt"]  # the other item, never itself
    done = run_cli(*asked, "--task", "arc_easy", "--fewshot", 4)
    assert done.code == 2 and "arc_easy has 3 examples" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--task", "piqa"), "--task piqa needs the folder of its data set; --data DIR"),
        (("--task", "piqa", "--data", "docs"), "no file for piqa"),
        (("--task", "piqa", "--split", "val"), "a benchmark has no --split"),
        (("--task", "likelihood", "--limit", 3), "only benchmarks have --limit"),
        (("--task", "likelihood", "--task", "piqa"), "--task likelihood is measured alone"),
        (("--task", "piqa", "--resume"), "-o DIR"),
        (("--task", ","), "--task needs a name"),
        (("--task", "likelihood", "--paper", 1), "only benchmarks have --paper"),
        (("--task", "likelihood", "--min", 0.5), "only benchmarks have --min"),
        (("--task", "piqa", "--min", "much"), "--min 'much': not a score from 0 to 1; for example --min 0.3"),
        (("--task", "piqa", "--min", "piqa=50"), "not a score from 0 to 1"),
        (("--task", "piqa", "--min", "pica=0.5"), "'pica' is not measured; did you mean 'piqa'?"),
        (("--task", "lambada_openai", "--checkpoints", "last-third"), "lambada_openai is a task of lm-eval's own; measure its checkpoints"),
        (("--task", "piqa,mbpp", "--data", "docs"), "--task mbpp runs the code that the model writes; --allow-code-execution permits it"),
    ],
)
def test_what_is_refused(refused: Callable, text_run: Path, options: tuple, said: str) -> None:
    assert said in refused("evaluate", text_run, *options)


def test_right_and_wrong_programs(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through lm-eval, with a model that writes a right program, a wrong one, one that never ends, and one that calls exit()."""
    from contextlib import nullcontext

    from lm_eval.api.model import LM

    from freetf_cli.evaluation.benchmarks import measure

    texts = {"humaneval": "    return 2 * x", "mbpp": "def f(x):\n    return 2 * x\n"}

    class Writer(LM):
        loglikelihood = loglikelihood_rolling = None

        def generate_until(self, requests: list) -> list[str]:
            right = texts[self.task.removesuffix("_plus")]
            return [right, right.replace("2", "3"), right.replace("2 * x", "f(x - 1) if x else f(1)"), "    exit()"][: len(requests)] * 2

    for name in ("humaneval", "humaneval_plus", "mbpp", "mbpp_plus"):
        monkeypatch.setitem(BENCHMARKS, name, replace(BENCHMARKS[name], seconds=1.0))
        asked = measure.Questions(str(data), attempts=4, allow_code=True, limit=2)
        (score,), items = measure.measure(Writer(), name, asked, lambda *_: nullcontext(lambda count: None))
        assert [item["outcomes"][0] for item in items] == ["passed"] * 2
        assert all("passed" not in item["outcomes"][1:] for item in items)
        assert {metric: found.value for metric, found in score.scores.items()} == {"pass@1": 0.25, "pass@4": 1.0}


def test_another_model_of_lm_eval_is_scored_alike(data: Path) -> None:
    """A model that prefers short answers and reports no token counts, like lm-eval's HFLM."""
    from contextlib import nullcontext

    from lm_eval.api.model import LM

    from freetf_cli.evaluation.benchmarks import measure

    class Short(LM):
        generate_until = loglikelihood_rolling = None

        def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:
            return [(-float(len(request.args[1])), False) for request in requests]

    (score,), items = measure.measure(Short(), "hellaswag", measure.Questions(str(data)), lambda *_: nullcontext(lambda count: None))
    assert items[0]["answers"][0] == {"loglikelihood": -7.0, "greedy": False} and not items[0]["truncated"]
    assert {metric: found.value for metric, found in score.scores.items()} == {"acc": 0.0, "acc_char": 0.5} and score.stderr is None
    (score,), items = measure.measure(Short(), "openbookqa", measure.Questions(str(data)), lambda *_: nullcontext(lambda count: None))
    assert items[0]["answers"][1] == {"loglikelihood": -9.0, "greedy": False, "alone": -9.0}  # " a desert"
    assert score.metric == "acc_completion" and score.scores["acc_completion"].value == 0.5  # all are worth 0: the first


def test_a_kernel_that_confines_little_is_named(run_cli: Callable, text_run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from freetf_cli.evaluation.benchmarks import sandbox

    asked = ["evaluate", text_run, "--task", "humaneval", "--data", data, "--limit", 1, "--allow-code-execution", "-q"]
    monkeypatch.setattr(sandbox, "confinement", lambda: ["network"])
    assert "does not confine the processes and files of generated code" in run_cli(*asked).stderr
    monkeypatch.setattr(sandbox, "confinement", lambda: list(sandbox.CONFINED))
    assert run_cli(*asked).stderr == ""


def test_options_are_checked_before_the_sandbox_is_tried(refused: Callable, text_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from freetf_cli.evaluation.benchmarks import sandbox

    def tried() -> list[str]:
        raise AssertionError("the sandbox was tried")

    monkeypatch.setattr(sandbox, "confinement", tried)
    for options in (("--task", "humaneval", "--split", "val"), ("--task", "likelihood"), ("--task", "helaswag,humaneval"), ("--task", ",")):
        refused("evaluate", text_run, *options, "--allow-code-execution")


def test_a_score_below_the_minimum_ends_with_3(run_cli: Callable, text_run: Path, data: Path, tmp_path: Path) -> None:
    asked = ["evaluate", text_run, "--task", "hellaswag,lambada", "--data", data, "--samples", 1, "-q"]
    done = run_cli(*asked, "-o", tmp_path / "out", "--min", 0.1, "--min", "hellaswag=0", "--json")
    assert done.code == 3 and "a score is below --min: lambada 0.000 < 0.1" in done.stderr and "hellaswag" not in done.stderr
    assert [one["task"] for one in json.loads(done.stdout)["tasks"]] == ["hellaswag", "lambada"]  # the result is there all the same
    assert run_cli("evaluate", "--rescore", tmp_path / "out", "--min", 0).code == 0
    assert run_cli("evaluate", "--rescore", tmp_path / "out", "--min", "lambada=0.01").code == 3


def test_evaluations_are_scored_again_side_by_side(run_cli: Callable, text_run: Path, data: Path, tmp_path: Path) -> None:
    for z in ("prior", "posterior-prompt"):
        done = run_cli("evaluate", text_run, "--task", "piqa", "--data", data, "--samples", 2, "--z", z, "-o", tmp_path / z, "-q")
        assert done.code == 0, done.stderr
    words = ["evaluate", "--rescore", tmp_path / "prior", "--rescore", tmp_path / "posterior-prompt"]
    found = [json.loads(line) for line in run_cli(*words, "--json", "--report", tmp_path / "both.html").stdout.splitlines()]
    assert [(one["z"], one["folder"], len(one["tasks"])) for one in found] == [
        ("prior", str(tmp_path / "prior"), 1),
        ("posterior-prompt", str(tmp_path / "posterior-prompt"), 1),
    ]
    fields = {"schema_version", *(field.name for field in dataclasses.fields(Benchmarks))}
    (alone,) = run_cli(*words[:3], "--json").stdout.splitlines()
    for one in (*found, json.loads(alone)):  # one shape, whether there are several or not
        assert one.keys() == fields == json.loads((Path(one["folder"]) / "result.json").read_bytes()).keys()
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    shown = run_cli(*words).stdout
    assert f"{tmp_path / 'prior'}" in page and f"{tmp_path / 'posterior-prompt'}" in page
    assert shown.index(f"{text_run}: {tmp_path / 'prior'}") < shown.index(f"{text_run}: {tmp_path / 'posterior-prompt'}")


def test_an_unknown_name_and_a_name_of_lm_eval(run_cli: Callable, text_run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    from freetf_cli.evaluation.benchmarks import TASKS

    whole = TaskManager.__init__

    def small(self: TaskManager, **settings: object) -> None:
        """lm-eval's own index takes 12 s to build: ours stands for it, with the data that it would download."""
        metadata = {**settings.pop("metadata"), "data": str(data)}
        whole(self, **{"include_path": str(TASKS), **settings, "include_defaults": False, "metadata": metadata})

    monkeypatch.setattr(TaskManager, "__init__", small)
    for name, near in (("helaswag", "hellaswag"), ("likelyhood", "likelihood"), ("lm-eval:pikca", "piqa")):
        done = run_cli("evaluate", text_run, "--task", name)
        assert done.code == 2 and f"there is no task '{name}'; did you mean '{near}'?" in done.stderr
    done = run_cli("evaluate", text_run, "--task", "lm-eval:piqa", "--json", "--samples", 1)
    assert done.code == 0, done.stderr
    (score,) = json.loads(done.stdout)["tasks"]
    assert (score["task"], score["metric"], score["items"]) == ("piqa", "acc", 2) and score["scores"]["acc"]["low"] is not None


def test_an_interrupted_evaluation_is_resumed(
    run_cli: Callable, text_run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of a batch's answers; the resumed one computes the other batches only, and ends with the same bytes."""
    from freetf_cli.evaluation.benchmarks import scoring

    monkeypatch.setattr(scoring, "rows_at_once", lambda model, context: 2)
    asked = ["evaluate", text_run, "--task", "hellaswag,piqa", "--data", data, "--samples", 2]
    assert run_cli(*asked, "-o", tmp_path / "whole").code == 0
    scored, computed = scoring.Scorer.score, []

    def interrupted(self: scoring.Scorer, rows: list) -> object:
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append(rows)
        return scored(self, rows)

    monkeypatch.setattr(scoring.Scorer, "score", interrupted)
    assert run_cli(*asked, "-o", tmp_path / "cut").code == 130
    answers = tmp_path / "cut" / "answers.jsonl"
    written = answers.read_text(encoding="utf-8")
    answers.write_text(written + '{"key": "12', encoding="utf-8")  # a process that was killed while it wrote
    monkeypatch.setattr(scoring.Scorer, "score", lambda self, rows: computed.append(rows) or scored(self, rows))
    done = run_cli(*asked, "-o", tmp_path / "cut", "--resume", "--json")
    assert done.code == 0, done.stderr
    for name in ("hellaswag.jsonl", "piqa.jsonl", "answers.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = [row for batch in computed for row in batch]
    assert len(rows) == len({(row.tokens, row.prompt) for row in rows}) and 0 < len(written.splitlines()) < len(rows)


def test_a_folder_of_another_evaluation_is_not_mixed_up(
    refused: Callable, run_cli: Callable, text_run: Path, data: Path, tmp_path: Path
) -> None:
    asked = ["evaluate", text_run, "--task", "piqa", "--data", data, "--samples", 2, "-o", tmp_path / "out"]
    assert run_cli(*asked, "-q").code == 0
    assert "has an evaluation" in refused(*asked)
    assert "draws was 2, not 3" in refused(*asked, "--samples", 3, "--resume")
    assert "z was posterior-prompt, not prior" in refused(*asked, "--z", "prior", "--resume")
    assert run_cli(*asked, "--task", "boolq", "--limit", 1, "--resume").code == 0  # more questions are not another evaluation
    (tmp_path / "out" / "settings.json").write_text("[", encoding="utf-8")
    assert "settings of the evaluation are damaged" in refused(*asked, "--resume")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert "not empty" in refused(*asked[:-1], tmp_path / "full")


def test_items_are_scored_again_without_model_and_data(
    run_cli: Callable, refused: Callable, text_run: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    tasks = "winogrande,mmlu,gsm8k,mbpp"
    done = run_cli("evaluate", text_run, "--task", tasks, "--data", data, "--samples", 2, "--limit", 2, "-o", out, "--json", *CODE)
    first = {one["task"]: {**one, "seconds": 0} for one in json.loads(done.stdout)["tasks"]}
    again = json.loads(run_cli("evaluate", "--rescore", out, "--allow-code-execution", "--json").stdout)
    assert {one["task"]: {**one, "seconds": 0} for one in again["tasks"]} == first
    assert (again["kind"], again["steps"], again["z"], again["draws"]) == ("free", [40], "posterior-prompt", 2)
    file = out / "winogrande.jsonl"
    changed = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for item in changed:
        for i, answer in enumerate(item["answers"]):
            answer["loglikelihood"] = -1.0 if i == item["doc"]["gold"] else -2.0
    (tmp_path / "alone.jsonl").write_text("".join(json.dumps(item) + "\n" for item in changed), encoding="utf-8")
    done = run_cli("evaluate", "--rescore", tmp_path / "alone.jsonl", "--json")
    assert json.loads(done.stdout)["tasks"][0]["scores"]["acc"]["value"] == 1.0 and json.loads(done.stdout)["kind"] is None
    assert run_cli("evaluate", "--rescore", tmp_path / "alone.jsonl").code == 0
    assert "--allow-code-execution permits it" in refused("evaluate", "--rescore", out / "mbpp.jsonl")
    assert "--rescore has no RUN; name each folder with a --rescore" in refused("evaluate", "--rescore", out, out)
    assert "not an item" in refused("evaluate", "--rescore", out / "settings.json")
    assert "has no items" in refused("evaluate", "--rescore", data)
    assert "missing argument 'RUN'" in refused("evaluate", "--task", "piqa")


def test_the_mean_over_the_last_third(
    run_cli: Callable, refused: Callable, text_run: Path, copied: Callable, data: Path, tmp_path: Path
) -> None:
    """Of checkpoints 10, 30 and 40 the last two; each item's score is its mean over them."""
    import shutil

    run = copied(text_run)
    last = run / "checkpoints" / "step-000040"
    for step in (10, 30):
        shutil.copytree(last, last.with_name(f"step-{step:06d}"))
    asked = ["evaluate", run, "--task", "arc_easy", "--data", data, "--samples", 1, "--checkpoints", "last-third"]
    done = run_cli(*asked, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["steps"]) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["result.json", "step-000030", "step-000040"]
    one = json.loads(run_cli(*asked[:-2], "--json").stdout)
    assert found["tasks"][0]["scores"]["acc"]["value"] == one["tasks"][0]["scores"]["acc"]["value"]
    assert "mean over steps" in run_cli(*asked).stdout
    items = tmp_path / "out" / "step-000030" / "arc_easy.jsonl"
    lines = [json.loads(line) for line in items.read_text().splitlines()]
    right = sum(line["scores"]["acc"] for line in lines)
    for line in lines:  # every answer of one checkpoint is right, of the other as before
        for number, answer in enumerate(line["answers"]):
            answer["loglikelihood"] = float(number == line["doc"]["gold"])
    items.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = json.loads(run_cli("evaluate", "--rescore", tmp_path / "out", "--json").stdout)
    assert again["steps"] == found["steps"]
    assert again["tasks"][0]["scores"]["acc"]["value"] == pytest.approx((1 + right / len(lines)) / 2)
    items.write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    assert "not all checkpoints have the items of arc_easy.jsonl" in refused("evaluate", "--rescore", tmp_path / "out")
    assert "needs a run with checkpoints" in refused("evaluate", last, *asked[2:])


def test_means_of_items_over_checkpoints() -> None:
    from freetf_cli.evaluation.benchmarks.run import mean_scores
    from freetf_cli.records.benchmarks import Score

    def found(values: list[float]) -> tuple:
        score = Score("piqa", "acc_char", 20, 0, {}, 0.5, 0, 0.1, 1.0)
        return [score], [{"doc": {"choices": ["a", "b"]}, "scores": {"acc_char": value}} for value in values]

    (score,) = mean_scores([found([1.0] * 10 + [0.0] * 10), found([1.0] * 5 + [0.0] * 15)])
    estimate = score.scores["acc_char"]
    assert estimate.value == pytest.approx(0.375) and estimate.low < 0.25 < 0.5 < estimate.high
    assert score.seconds == 2.0 and score.stderr == pytest.approx(0.1)


def test_the_papers_figures_beside_measured_ones(run_cli: Callable, refused: Callable, text_run: Path, data: Path, tmp_path: Path) -> None:
    asked = ["evaluate", text_run, "--task", "piqa", "--data", data, "--samples", 1]
    assert run_cli(*asked, "-o", tmp_path / "first", "-q").code == 0
    done = run_cli(*asked, "--paper", 3, "--beside", tmp_path / "first")
    assert done.code == 0, done.stderr
    assert "paper: baseline last third mean" in done.stdout and "0.812" in done.stdout and "not measured here" in done.stdout
    assert "paper: free 1/4 bit" in run_cli("evaluate", "--rescore", tmp_path / "first", "--paper", 1).stdout
    assert "--beside needs the table to show" in refused(*asked, "--beside", tmp_path / "first")
    assert "no result" in refused(*asked, "--paper", 1, "--beside", tmp_path)
