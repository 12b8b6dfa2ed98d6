"""`freetf sample`: its records, where Z and prompts come from, replay, and what it refuses."""

from __future__ import annotations

import hashlib
import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from freetf_cli.cli.app import main
from freetf_cli.runs.checkpoint import Checkpoint

SETTINGS = ["temperature", "top_k", "top_p", "max_tokens", "prompt_z", "precision", "checkpoint"]
FIELDS = ["schema_version", "prompt", "text", "group", "index", "seed", "prompt_index", *SETTINGS, "z"]
BEYOND = "the model was trained on rows of 14 tokens"
POSITIONS = 13  # input positions of a letters row of 14 characters
CODES = 16


@pytest.fixture
def sample(run_cli, free_run):
    """`sample("--count", 3)`: the records of `sample RUN --json`, of which stderr may only say that they are longer than the context."""

    def run(*words: object, of: Path | None = None, input: str | bytes | None = None) -> list[dict[str, Any]]:
        code, stdout, stderr = run_cli("sample", of or free_run, "--json", *words, input=input)
        assert (code, [line for line in stderr.splitlines() if BEYOND not in line]) == (0, [])
        return [json.loads(line) for line in stdout.splitlines()]

    return run


@pytest.fixture
def codes_file(tmp_path):
    """`codes_file([1, 2], {"z": [3]}, "text")`: a file with a line each."""

    def write(*lines: object) -> Path:
        path = tmp_path / "z.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
        return path

    return write


def texts(records: list[dict[str, Any]]) -> list[str]:
    return [record["text"] for record in records]


def codes(records: list[dict[str, Any]]) -> list[tuple[int, ...]]:
    return [tuple(record["z"]) for record in records]


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_records_fields(sample, free_run):
    weights = (free_run / "checkpoints" / "step-000006" / "model.safetensors").read_bytes()
    settings = [0.5, 3, 0.75, None, "posterior", "bf16", hashlib.sha256(weights).hexdigest()]
    (record,) = sample("--temperature", "0.5", "--top-k", "3", "--top-p", "0.75", "--precision", "bf16")
    assert [record[name] for name in SETTINGS] == settings
    for record in sample("--prompt", "B>", "--count", "3", "--seed", "7"):
        assert list(record) == FIELDS
        assert (record["schema_version"], record["prompt"], record["seed"]) == (1, "B>", 7)
        assert record["text"].startswith("B>")
        assert len(record["text"]) == POSITIONS + 1
        assert len(record["z"]) == POSITIONS
        assert all(type(code) is int and 0 <= code < CODES for code in record["z"])


def test_rows_come_prompt_by_prompt_and_group_by_group(sample):
    records = sample("--prompt", "A>", "--prompt", "B>", "-g", "2", "-n", "3")
    places = [(record["prompt"], record["group"], record["index"]) for record in records]
    assert places == [(prompt, group, index) for prompt in ("A>", "B>") for group in (0, 1) for index in (0, 1, 2)]


def test_without_a_prompt_the_datas_own_is_taken(sample):
    record, *others = sample()
    assert others == []
    assert record["prompt"][0] in "ABCD"
    assert record["prompt"][1:] == ">"


def test_text_beyond_the_context_is_warned_of_once(run_cli, free_run, tmp_path):
    """Rows have 14 tokens. Prompts that come one by one, and records with settings of their own, get no second warning."""
    told = [run_cli("sample", free_run, "--prompt", "A>", "--max-tokens", tokens, "--json") for tokens in (12, 13)]
    assert [done.stderr.count(BEYOND) for done in told] == [0, 1]
    assert run_cli("sample", free_run, "--prompt", "-", "--max-tokens", 13, input="A>\nB>\nA>\n").stderr.count(BEYOND) == 1
    assert run_cli("sample", free_run, "-q").stderr == ""
    longer = run_cli("sample", free_run, "--prompt", "A>", "--max-tokens", 20, "--json").stdout
    (tmp_path / "z.jsonl").write_text(told[1].stdout + longer)
    assert run_cli("sample", free_run, "--z", tmp_path / "z.jsonl").stderr.count(BEYOND) == 1


def test_a_prompt_longer_than_a_row_is_to_be_shortened(refused, free_run):
    line = refused("sample", free_run, "--prompt", "A>____________")
    assert "14 tokens" in line and "shorten it" in line and "--max-tokens" not in line


def test_max_tokens_counts_after_the_prompt(sample):
    for prompt, length in (("A>", 2 + 5), ("A>__", 4 + 5), ("A>", 2 + 30)):
        for record in sample("--prompt", prompt, "--max-tokens", length - len(prompt)):
            assert (len(record["text"]), len(record["z"])) == (length, length - 1)


def test_a_checkpoint_may_be_named(sample, free_run):
    assert sample(of=free_run / "checkpoints" / "step-000006") == sample()
    assert texts(sample("-n", "4", of=free_run / "checkpoints" / "step-000003")) != texts(sample("-n", "4"))


def test_the_folder_one_stands_in_may_be_named(sample, free_run, monkeypatch):
    want = sample()
    for folder in (free_run, free_run / "checkpoints" / "step-000006"):
        monkeypatch.chdir(folder)
        assert sample(of=Path()) == want


def test_a_run_may_be_called_like_a_checkpoint(sample, free_run, copied):
    run = copied(free_run)
    assert sample(of=run.rename(run.with_name("step-by-step"))) == sample()


def test_text_ends_at_its_separator(sample, text_run):
    records = sample("-n", "40", of=text_run)
    assert {record["prompt"] for record in records} == {""}
    lengths = {len(record["z"]) for record in records}
    assert min(lengths) < 12
    assert max(lengths) <= 24
    assert all("<|" not in text for text in texts(records))
    plain = [record for record in records if "\ufffd" not in record["text"]]
    assert plain
    for record in plain:  # separator, bytes, and the separator if it came: an input position for each but the last
        assert len(record["z"]) in {len(record["text"].encode()), len(record["text"].encode()) + 1}


def test_a_prompt_of_many_bytes(sample, text_run):
    record = sample("--prompt", "été", "--max-tokens", "1", "--temperature", "0", of=text_run)[0]
    assert len(record["z"]) == 1 + len("été".encode())


# --- Z ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt_z", ["posterior", "prior"])
def test_shared_is_one_z_a_group_prompt_included(sample, prompt_z):
    found = codes(sample("--z", "shared", "-g", "3", "-n", "4", "--prompt-z", prompt_z))
    groups = [set(found[start : start + 4]) for start in (0, 4, 8)]
    assert [len(group) for group in groups] == [1, 1, 1]
    assert len(set.union(*groups)) == 3
    assert (found == codes(sample("--z", "shared", "-g", "3", "-n", "4"))) is (prompt_z == "prior"), "the default of shared Z"


def test_rows_of_a_shared_z_are_still_drawn_apart(sample):
    assert len(set(texts(sample("--z", "shared", "-n", "6")))) > 1


def test_independent_is_one_z_a_row(sample):
    found = sample("-g", "2", "-n", "4")
    assert len(set(codes(found))) == 8
    assert found == sample("-g", "2", "-n", "4", "--z", "independent", "--prompt-z", "posterior")  # the defaults


def test_prompt_z_concerns_the_prompt_only(sample):
    posterior, prior = (codes(sample("-n", "20", "--prompt-z", kind)) for kind in ("posterior", "prior"))
    assert [z[2:] for z in posterior] == [z[2:] for z in prior]
    assert [z[:2] for z in posterior] != [z[:2] for z in prior]


def test_a_plan_in_the_prompts_own_z_is_pointed_out(run_cli, workshop, tmp_path):
    """Where only first positions infer Z, as many as the prompt has, it decides for all groups alike."""
    run = tmp_path / "run"
    assert run_cli("train", workshop / "free.toml", "--set", "latent.window=2", "-o", run, "-q")[0] == 0
    for words, said in (((), True), (("--prompt-z", "prior"), False), (("--z", "shared"), False), (("-q",), False)):
        code, stdout, stderr = run_cli("sample", run, "--count", "2", *words)
        assert code == 0 and len(stdout.splitlines()) == 2
        assert ("hint: " in stderr and "--prompt-z prior" in stderr) is said, stderr


def test_the_seed_decides_everything(sample):
    assert sample("-n", "5") == sample("-n", "5")
    one, other = sample("-n", "5", "--seed", "1"), sample("-n", "5", "--seed", "2")
    assert set(codes(one)).isdisjoint(codes(other))
    assert texts(one) != texts(other)


def test_fewer_rows_are_the_first_ones(sample):
    assert sample("-n", "2", "-g", "2") == [
        record for record in sample("-n", "5", "-g", "3") if record["index"] < 2 and record["group"] < 2
    ]


@pytest.mark.parametrize("prompts", [["A>"], ["A>", "B>", "C>__"]])
@pytest.mark.parametrize("kind", ["independent", "shared"])
def test_replay_of_a_file(sample, codes_file, prompts, kind):
    words = [word for prompt in prompts for word in ("--prompt", prompt)] + ["-g", "2", "-n", "3"]
    records = sample(*words, "--z", kind)
    assert sample(*words, "--z", codes_file(*records)) == records
    assert sample("--z", codes_file(*records)) == records


@pytest.mark.parametrize(
    "words",
    [["--temperature", "0.5"], ["--top-k", "2"], ["--top-p", "0.5"], ["--max-tokens", "20"], ["--seed", "7"], ["--precision", "bf16"]],
)
def test_a_replay_needs_no_option(sample, codes_file, words):
    records = sample("--prompt", "C>__", "-n", "3", *words)
    assert sample("--z", codes_file(*records)) == records


def test_records_are_replayed_in_any_order_and_mixture(sample, codes_file):
    records = sample("--prompt", "A>", "--prompt", "B>", "-g", "2", "-n", "2", "--seed", "3", "--max-tokens", "20") + sample("-n", "3")
    random.Random(0).shuffle(records)
    assert sample("--z", codes_file(*records)) == records


def test_replay_from_stdin(sample):
    records = sample("-n", "3")
    assert sample("--z", "-", input="".join(json.dumps(record) + "\n" for record in records)) == records


def test_replay_of_text_that_ended_early(sample, text_run, codes_file):
    records = sample("-n", "12", of=text_run)
    assert sample("--z", codes_file(*records), of=text_run) == records


def test_another_seed_keeps_a_given_z(sample, codes_file):
    records = sample("-n", "4")
    again = sample("-q", "--z", codes_file(*records), "--seed", "9")
    assert codes(again) == codes(records)
    assert texts(again) != texts(records)


@pytest.mark.parametrize(
    ("change", "words", "level", "said"),
    [
        ({}, ["--seed", "9"], "hint", "seed 9, not 0"),
        ({}, ["--prompt", "B>", "-n", "2"], "hint", "prompt 'B>', not 'A>'"),
        ({}, ["--prompt", "A>"], "hint", "more records than one for each prompt; --count"),
        ({}, ["--prompt-z", "prior"], "hint", "gives the prompt's Z too"),
        ({}, ["-g", "2"], "hint", "group 1, not 0, index 0, not 1"),
        ({}, ["--max-tokens", "4"], "hint", "length of z 5, not 13"),
        ({"checkpoint": "f" * 64}, [], "warning", "checkpoint "),
        ({"precision": "bf16"}, [], "warning", "precision 'fp32', not 'bf16'"),
        ({"text": "A>_"}, [], "warning", "text 'A>"),
        ({"z": [3] * 40}, [], "hint", "length of z 13, not 40"),
    ],
)
def test_what_is_not_replayed_is_told(run_cli, sample, free_run, codes_file, change, words, level, said):
    first, second = sample("--prompt", "A>", "-n", "2")
    path = codes_file(first, second | change)
    code, _, stderr = run_cli("sample", free_run, "--z", path, "--json", *words)
    assert (code, stderr.count("\n")) == (0, 1), stderr
    assert stderr.startswith(f"freetf: {level}: ") and said in stderr and str(path) in stderr


def test_another_checkpoints_records_are_told(run_cli, sample, free_run, codes_file):
    path = codes_file(*sample("-n", "2", of=free_run / "checkpoints" / "step-000003"))
    assert "warning: not a replay" in run_cli("-q", "sample", free_run, "--z", path).stderr


def test_a_stream_of_records_serves_one_prompt(refused, free_run):
    lines = "".join(json.dumps([code] * POSITIONS) + "\n" for code in range(1, 3))
    assert "a stream is read only once" in refused(
        "sample", free_run, "--prompt", "A>", "--prompt", "B>", "-n", "2", "--z", "-", input=lines
    )


def test_one_record_serves_all_rows(sample, codes_file):
    record = sample()[0]
    again = sample("-q", "-g", "2", "-n", "2", "--prompt", "A>", "--prompt", "B>", "--z", codes_file(record))
    assert codes(again) == [tuple(record["z"])] * 8


def test_bare_lists_empty_lines_and_spare_records_are_fine(sample, codes_file):
    lists = [[code] * POSITIONS for code in range(5)]
    path = codes_file("\ufeff" + json.dumps(lists[0]), "", lists[1], "", {"z": lists[2]}, lists[3], lists[4])
    assert codes(sample("-n", "3", "--z", path)) == [tuple(z) for z in lists[:3]]


def test_given_z_decides_the_text(sample, codes_file):
    assert len({sample("--z", codes_file([code] * POSITIONS), "--prompt", "A>")[0]["text"] for code in range(CODES)}) > 1


@pytest.mark.parametrize(
    ("given", "words"), [(3, ["-n", "4"]), (2, ["-g", "3"]), (299, ["-n", "300"]), (3, ["--prompt", "A>__", "-n", "2"])]
)
def test_too_few_records_are_refused_before_a_row_is_written(refused, free_run, codes_file, given, words):
    path = codes_file(*([0] * POSITIONS for _ in range(given)))
    line = refused("sample", free_run, "--prompt", "A>", *words, "--z", path)
    assert f"{given} records" in line


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ([CODES, *[0] * 12], "code 16 is outside 0 … 15"),
        ([0] * 12 + [-1], "code -1 is outside"),
        ({"z": [10**40] * 13}, "is outside"),
        ([0.0] * 13, "whole numbers"),
        (["3"] * 13, "whole numbers"),
        ([True] * 13, "whole numbers"),
        ({"text": "A>"}, "named 'z'"),
        ({"z": None}, "named 'z'"),
        ({"z": []}, "named 'z'"),
        (7, "named 'z'"),
        ({"z": [0], "temperature": "hot"}, "the record's temperature"),
        ('{"z": [0], "top_p": NaN}', "the record's top_p"),
        ({"z": [0], "seed": -1}, "the record's seed"),
        ({"z": [0], "prompt": 7}, "the record's prompt"),
        ("null", "named 'z'"),
        ('{"z": [0, 1', "not a line of JSON"),
        ("[" * 100_000, "not a line of JSON"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(refused, free_run, codes_file, line, what):
    path = codes_file([0] * POSITIONS, "", line)
    text = refused("sample", free_run, "-n", "2", "--z", path)
    assert what in text
    assert f"{path}, line 3" in text
    assert len(text) < 400


def test_a_bad_record_on_stdin(refused, free_run):
    assert "stdin, line 2" in refused("sample", free_run, "--z", "-", input="\n[99]\n")


def test_records_that_are_too_short(refused, free_run, codes_file):
    assert "12 codes, and 13 input positions" in refused("sample", free_run, "--z", codes_file([0] * 12))


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe[1]\n"])
def test_files_without_a_record(refused, free_run, tmp_path, content):
    path = tmp_path / "z.jsonl"
    path.write_bytes(content)
    assert str(path) in refused("sample", free_run, "--z", path)


@pytest.mark.parametrize("name", ["sharde", "no/such/file.jsonl", "{folder}"])
def test_a_z_that_is_no_file(refused, free_run, tmp_path, name):
    assert "shared" in refused("sample", free_run, "--z", name.format(folder=tmp_path))


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_prompts_from_stdin(sample, ends):
    fed = "\ufeff" + ends.join(["A>", "B>_", "C>"])
    assert [record["prompt"] for record in sample("--prompt", "-", input=fed)] == ["A>", "B>_", "C>"]


def test_stdin_and_named_prompts_stand_in_their_order(sample):
    records = sample("--prompt", "D>", "--prompt", "-", "--prompt", "C>", input="A>\nB>\n")
    assert [record["prompt"] for record in records] == ["D>", "A>", "B>", "C>"]
    assert records == sample(*(word for prompt in ("D>", "A>", "B>", "C>") for word in ("--prompt", prompt)))


def test_spaces_belong_to_a_prompt(sample, text_run):
    assert sample("--prompt", "-", of=text_run, input=" a \n")[0]["prompt"] == " a "


def test_an_empty_line_is_an_empty_prompt(sample, run_cli, free_run, text_run):
    """Row i answers line i."""
    assert [record["prompt"] for record in sample("--prompt", "-", of=text_run, input="a\n\nb\n")] == ["a", "", "b"]
    code, _, stderr = run_cli("sample", free_run, "--prompt", "-", input="A>\n\n")
    assert code == 2 and "the prompt is empty, and this model's data has no begin token" in stderr


def test_no_prompt_on_stdin_is_no_row(run_cli, free_run):
    assert run_cli("sample", free_run, "--prompt", "-", input="") == (0, "", "freetf: warning: no prompts read: stdin is empty\n")


def test_a_prompt_that_is_not_utf8(run_cli, refused, free_run):
    assert "stdin, line 1" in refused("sample", free_run, "--prompt", "-", input=b"B\xff>\n")
    second = run_cli("sample", free_run, "--prompt", "-", input=b"A>\nB\xff>\n")  # the first is answered by then
    assert (second.code, len(second.stdout.splitlines())) == (2, 1)
    assert "stdin, line 2" in second.stderr


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ("a>", "'a' is not in the tokenizer's vocabulary"),
        ("A>é", "'é'"),
        ("A>\n", r"'\n'"),
        ("", "empty"),
        ("A" * 14, "14 tokens"),
        ("A\udcff", "the text is not UTF-8"),
    ],
)
def test_a_prompt_that_cannot_be_read(refused, free_run, prompt, what):
    assert what in refused("sample", free_run, "--prompt", prompt)
    assert what in refused("sample", free_run, "--prompt", "A>", "--prompt", prompt)


def test_prompts_and_records_cannot_both_be_stdin(refused, free_run):
    assert "stdin" in refused("sample", free_run, "--prompt", "-", "--z", "-", input="A>\n")


# --- how tokens are chosen --------------------------------------------------------------------------------------------


def test_temperature_0_is_the_likeliest_text(sample, codes_file):
    path = codes_file([5] * POSITIONS)
    words = ["--prompt", "A>", "--z", path]
    greedy = sample(*words, "-n", "3", "--temperature", "0", "--seed", "1")
    assert len(set(texts(greedy))) == 1
    for like_it in (["--top-k", "1"], ["--top-p", "0"], ["--temperature", "1e-60"]):
        assert set(texts(sample(*words, "-n", "3", *like_it))) == set(texts(greedy))
    assert len(set(texts(sample(*words, "-n", "3")))) > 1


def test_top_k_and_top_p_narrow_the_choice(sample):
    def letters(*words: str) -> int:
        rows = texts(sample("--prompt", "A>", "-n", "60", "--temperature", "2", *words))
        return len({(place, char) for text in rows for place, char in enumerate(text)})

    everything = letters()
    assert letters("--top-k", "2") < everything
    assert letters("--top-p", "0.5") < everything
    assert letters("--top-k", "1000", "--top-p", "1") == everything


@pytest.mark.parametrize(
    "words",
    [
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--temperature", "inf"],
        ["--top-p", "1.5"],
        ["--top-p", "nan"],
        ["--top-k", "-1"],
        ["--count", "0"],
        ["--groups", "0"],
        ["--max-tokens", "0"],
        ["--max-tokens", "100000000"],
        ["--seed", "-1"],
        ["--prompt-z", "none"],
        ["--device", "tpu"],
    ],
)
def test_options_out_of_range(refused, free_run, words):
    assert words[0] in refused("sample", free_run, *words)


# --- streams ----------------------------------------------------------------------------------------------------------


def test_piped_output_is_plain_lines(run_cli, sample, free_run):
    code, stdout, stderr = run_cli("sample", free_run, "--z", "shared", "-g", "2", "-n", "3")
    assert (code, stderr) == (0, "")
    assert stdout.splitlines() == texts(sample("--z", "shared", "-g", "2", "-n", "3"))


def test_head_ends_quietly(shell, free_run):
    code, stdout, stderr = shell(f"freetf sample '{free_run}' -g {10**9} -n {10**9} | head -1")
    assert (code, stderr) == (141, "")
    assert stdout.count("\n") == 1


def test_a_length_beyond_memory_is_refused_in_words(refused, free_run):
    line = refused("sample", free_run, "--max-tokens", 10**8)
    assert "context is 13 tokens" in line and "train." not in line


@pytest.mark.parametrize(
    ("words", "boxes"),
    [
        (["--z", "shared"], 1),
        (["--z", "shared", "-g", "2", "-n", "2"], 2),
        (["-g", "2"], 2),
        (["-n", "2"], 0),
        (["-g", "2", "-n", "513"], 0),
    ],
)
def test_groups_of_text_are_boxes_in_a_terminal(text_run, monkeypatch, words, boxes):
    shown = io.StringIO()
    shown.isatty = lambda: True
    monkeypatch.setattr("freetf_cli.report.terminal.show_line", lambda spans: None)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", shown)
        assert main(["sample", str(text_run), *words]) == 0
    assert shown.getvalue().count("╭") == boxes


@pytest.mark.parametrize(("most", "boxes", "lines"), [(4, 1, 0), (3, 0, 4)])
def test_many_records_are_lines_in_a_terminal(free_run, codes_file, monkeypatch, most, boxes, lines):
    """Not boxes of the first BOXED sequences each."""
    records, shown, said = codes_file(*[[1] * POSITIONS] * 4), io.StringIO(), list[object]()
    shown.isatty = lambda: True
    monkeypatch.setattr("freetf_cli.cli.sample.BOXED", most)
    monkeypatch.setattr("freetf_cli.report.terminal.show_line", said.append)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", shown)
        assert main(["sample", str(free_run), "--z", str(records), "-n", "4", "--prompt", "A>"]) == 0
    assert (shown.getvalue().count("╭"), len(said)) == (boxes, lines)


def test_json_in_ascii_is_still_json(run_process, sample, text_run):
    words = ["sample", text_run, "--json", "--prompt", "été 😀", "--max-tokens", "2"]
    done = run_process(*words, env={"PYTHONIOENCODING": "ascii"})
    assert (done.code, done.stderr) == (0, "")
    assert [json.loads(line) for line in done.stdout.splitlines()] == sample("--prompt", "été 😀", "--max-tokens", "2", of=text_run)


def test_errors_under_json_are_an_object_on_stderr(run_cli, free_run, codes_file):
    code, stdout, stderr = run_cli("sample", free_run, "--json", "--z", codes_file([CODES] * POSITIONS))
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    error = json.loads(stderr)["error"]
    assert error["exit_code"] == 2
    assert error["where"].endswith("z.jsonl, line 1")


# --- baselines --------------------------------------------------------------------------------------------------------


def test_a_baselines_record_has_no_z(sample, baseline_run):
    records = sample("-n", "3", "-g", "2", of=baseline_run)
    assert [record["z"] for record in records] == [None] * 6
    assert list(records[0]) == FIELDS
    assert len(set(texts(records))) > 1


@pytest.mark.parametrize("kind", ["shared", "-", "z.jsonl"])
def test_a_baseline_has_no_z_to_share_or_give(refused, baseline_run, kind):
    assert "baseline" in refused("sample", baseline_run, "--z", kind, input="")


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "tokenizer.json", "MANIFEST.sha256"])
def test_a_named_checkpoint_that_is_damaged(refused, free_run, copied, name):
    folder = copied(free_run) / "checkpoints" / "step-000006"
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    assert str(folder) in refused("sample", folder)


def test_a_run_falls_back_with_a_warning(run_cli, sample, free_run, copied):
    run = copied(free_run)
    file = run / "checkpoints" / "step-000006" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    code, stdout, stderr = run_cli("-q", "sample", run, "--json", "-n", "2")
    assert code == 0
    assert stderr.startswith("freetf: warning: ")
    assert stderr.count("\n") == 1
    assert "step-000006" in stderr
    assert [json.loads(line) for line in stdout.splitlines()] == sample("-n", "2", of=free_run / "checkpoints" / "step-000003")


def test_the_newest_checkpoint_is_the_one_of_most_steps(sample, free_run, copied):
    """Names sort as text: step-1000000 before step-999999."""
    run = copied(free_run)
    folders = run / "checkpoints"
    (folders / "step-000003").rename(folders / "step-999999")
    (folders / "step-000006").rename(folders / "step-1000000")
    (folders / "step-000006.bak").mkdir()
    assert sample("-n", "3", of=run) == sample("-n", "3")


@pytest.mark.parametrize("make", ["nothing", "empty", "file"])
def test_what_is_not_a_run(refused, tmp_path, make):
    path = tmp_path / "x"
    if make == "empty":
        path.mkdir()
    if make == "file":
        path.write_text("hello")
    assert str(path) in refused("sample", path)


# --- Z of an example --------------------------------------------------------------------------------------------------


def test_z_from_an_example_is_the_posterior_of_the_example(sample, free_run):
    """At the example's positions it is what the encoder infers there; after them it is drawn."""
    row = sample("--prompt", "B>", "--seed", 3)[0]["text"]
    found = sample("--z-from", row[:5], "--prompt", "A>", "--count", 64, "--temperature", 0)
    assert all(len(record["z"]) == POSITIONS and record["prompt_z"] is None for record in found)
    model = Checkpoint.open(free_run / "checkpoints" / "step-000006").model(torch.device("cpu"))
    tokens = torch.tensor([Checkpoint.open(free_run / "checkpoints" / "step-000006").tokenizer().encode(row[:5])])
    with torch.inference_mode():
        ctx = model.context(tokens)
        logits = model.infer_latent(model.lower(tokens, ctx), tokens, ctx).bit_logits[0]
    bits = torch.tensor([[[code >> bit & 1 for bit in range(4)] for code in record["z"]] for record in found]).double()
    assert torch.allclose(bits[:, :5].mean(0), logits.sigmoid().double(), atol=0.25)  # four deviations of 64 draws
    assert torch.allclose(bits[:, 5:].mean(0), torch.tensor(0.5, dtype=torch.float64), atol=0.25)
    assert (bits[:, :5].mean(0) - logits.sigmoid().double()).abs().mean() < (1 - bits[:, :5].mean(0) - logits.sigmoid()).abs().mean()


def test_z_from_a_file_is_that_of_its_text(sample, run_cli, refused, free_run, tmp_path):
    file = tmp_path / "example.txt"
    file.write_text("A>A_\n")
    words = ["--prompt", "A>", "--count", 4]
    found = run_cli("sample", free_run, "--json", "--z-from", file, *words)
    assert found.code == 0 and str(file) in found.stderr
    assert [json.loads(line) for line in found.stdout.splitlines()] == sample("--z-from", "A>A_", *words)
    file.write_bytes(b"\xff")
    assert "not UTF-8" in refused("sample", free_run, "--z-from", file)


def test_z_from_an_example_is_one_z_a_row_or_a_group(sample):
    words = ["--z-from", "A>A_", "--prompt", "A>", "--prompt", "B>", "--groups", 2, "--count", 3]
    assert len({*codes(sample(*words))}) == 6  # the same six for both prompts
    shared = sample(*words, "--z", "shared")
    assert [codes(shared).index(z) for z in codes(shared)] == [0, 0, 0, 3, 3, 3] * 2
    assert len({*texts(shared[:3])}) > 1
    assert sample(*words) == sample(*words) != sample(*words, "--seed", 1)


def test_samples_like_an_example_are_replayed(sample, codes_file):
    found = sample("--z-from", "A>A_", "--count", 2, "--max-tokens", 4)
    assert all(len(record["z"]) == 5 for record in found)
    again = sample("--z", codes_file(*(json.dumps(record) for record in found)))
    assert (texts(again), codes(again)) == (texts(found), codes(found))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--z", "z.jsonl"], "--z-from and --z z.jsonl both give Z"),
        (["--prompt-z", "prior"], "--z-from gives the prompt's Z too"),
        (["--z-from", "ab"], "prompt 'ab'"),
    ],
)
def test_z_from_an_example_contradicts_other_sources(refused, free_run, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    Path("z.jsonl").write_text(json.dumps([1] * POSITIONS) + "\n")
    assert said in refused("sample", free_run, "--z-from", "A>", *words)


def test_a_baseline_has_no_z_of_an_example(refused, baseline_run):
    assert "it has no Z" in refused("sample", baseline_run, "--z-from", "A>")
