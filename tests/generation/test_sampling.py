"""Generation: the cache, the sources of Z, and streams that do not depend on the batch."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.data.tokenizer import Tokenizer, characters
from freetf_cli.errors import FreetfError, InputError
from freetf_cli.generation import sampling
from freetf_cli.generation.choose import choose_tokens
from freetf_cli.generation.sampling import SampleSpec, _Purpose, figure4_samples, generate
from freetf_cli.latent.binary import BinaryLatent, Encoder, bit_logits, sample_codes
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.samples import Sample
from freetf_cli.streams import keyed

CONFIG = ModelConfig(layers=4, width=32, heads=4, kv_heads=2, vocab=6, context=12)
SPEC = SampleSpec(total=13, count=3, groups=2, seed=5)


@pytest.fixture
def letters() -> Tokenizer:
    return characters("abcdef", separator=False)


@pytest.fixture
def free() -> Decoder:
    model = build_model(CONFIG, LatentConfig(kappa=1.0, bits=4, table_std=10.0))
    initialise_model(model, 10)
    torch.nn.init.normal_(model.embedding.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    return model.eval()


def encoder_of(model: Decoder) -> Encoder:
    assert isinstance(model.latent, BinaryLatent)
    return model.latent.encoder


def run(model: Any, tokenizer: Tokenizer, spec: SampleSpec = SPEC, prompts: tuple[str, ...] = ("ab",)) -> list[Sample]:
    return list(generate(model, tokenizer, prompts, spec))


def test_rows_come_group_by_group_with_a_code_for_each_input_position(free: Decoder, letters: Tokenizer) -> None:
    rows = run(free, letters, prompts=("ab", "c"))
    assert [(row.prompt, row.group, row.index) for row in rows] == [(p, g, i) for p in ("ab", "c") for g in (0, 1) for i in (0, 1, 2)]
    for row in rows:
        assert row.text.startswith(row.prompt)
        assert len(row.text) == 13
        assert row.z is not None
        assert len(row.z) == 12
        assert all(0 <= code < 16 for code in row.z)


def test_greedy_generation_is_the_argmax_of_the_full_forward(free: Decoder, letters: Tokenizer) -> None:
    for row in run(free, letters, replace(SPEC, temperature=0)):
        tokens, z = torch.tensor([letters.encode(row.text)]), torch.tensor([row.z])
        with torch.no_grad():
            logits = free(tokens[:, :-1], z).logits
        assert torch.equal(logits.argmax(-1)[:, 1:], tokens[:, 2:])


@pytest.mark.parametrize("kind", ["multi-token", "differential", "talking-heads"])
def test_greedy_generation_is_the_argmax_with_any_attention(kind: str, letters: Tokenizer) -> None:
    model = build_model(CONFIG.model_validate(CONFIG.model_dump() | {"attention": kind}), LatentConfig(kappa=1.0, bits=4, table_std=10.0))
    initialise_model(model, 0)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    test_greedy_generation_is_the_argmax_of_the_full_forward(model.eval(), letters)  # type: ignore[arg-type]


def test_the_encoder_reads_the_prompt_once_and_no_block_runs_twice(free: Decoder, letters: Tokenizer) -> None:
    calls: list[str] = []
    encoder_of(free).register_forward_hook(lambda *_: calls.append("encoder"))
    for index, block in enumerate(free.blocks):
        block.register_forward_hook(lambda *_, index=index: calls.append(f"block {index}"))
    run(free, letters, replace(SPEC, prompt_z="posterior"))
    assert calls.count("encoder") == 1
    assert [calls.count(f"block {index}") for index in range(4)] == [11] * 4  # the prompt, then ten single positions
    calls.clear()
    run(free, letters, replace(SPEC, prompt_z="prior"))
    assert calls.count("encoder") == 0


def test_shared_z_is_shared_by_a_group_and_independent_is_not(free: Decoder, letters: Tokenizer) -> None:
    for prompt_z in ("posterior", "prior"):
        shared = run(free, letters, replace(SPEC, z="shared", prompt_z=prompt_z))  # type: ignore[arg-type]
        assert shared[0].z == shared[1].z == shared[2].z != shared[3].z == shared[4].z
        assert len({row.text for row in shared[:3]}) > 1  # each row still draws its own tokens
        independent = run(free, letters, replace(SPEC, prompt_z=prompt_z))  # type: ignore[arg-type]
        assert len({tuple(row.z or ()) for row in independent}) == 6


def test_the_prompts_z_comes_from_the_encoder(free: Decoder, letters: Tokenizer) -> None:
    with torch.no_grad():
        tokens = torch.tensor([letters.encode("ab")])
        ctx = free.context(tokens)
        logits = bit_logits(free.infer_latent(free.lower(tokens, ctx), tokens, ctx))
    encoder_of(free).to_bit_logits.weight.data *= 100  # a posterior that is nearly certain
    certain = sample_codes(100 * logits, torch.full((1, 2, 4), 0.5))[0].tolist()
    rows = run(free, letters, replace(SPEC, count=8))
    assert sum(row.z is not None and row.z[:2] == certain for row in rows) > 12
    rows = run(free, letters, replace(SPEC, count=8, prompt_z="prior"))
    assert sum(row.z is not None and row.z[:2] == certain for row in rows) < 4


def test_a_row_does_not_depend_on_its_batch(free: Decoder, letters: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    together = run(free, letters, prompts=("ab", "cd", "e"))
    monkeypatch.setattr("freetf_cli.generation.batch.MOST_ROWS", {"cpu": 1})
    assert run(free, letters, prompts=("ab", "cd", "e")) == together
    fewer = run(free, letters, replace(SPEC, count=2))
    assert [row for row in together if row.prompt == "ab" and row.index < 2] == fewer


def test_replaying_z_gives_the_same_texts(free: Decoder, letters: Tokenizer) -> None:
    rows = run(free, letters, prompts=("ab", "c"))
    again = run(free, letters, replace(SPEC, given_z=[row.z or [] for row in rows]), prompts=("ab", "c"))
    assert [replace(row, prompt_z="posterior") for row in again] == rows
    one = run(free, letters, replace(SPEC, given_z=[rows[3].z or []]))
    assert {tuple(row.z or ()) for row in one} == {tuple(rows[3].z or ())}


def test_given_z_decides_the_text(free: Decoder, letters: Tokenizer) -> None:
    texts = {run(free, letters, replace(SPEC, temperature=0, count=1, groups=1, given_z=[[code] * 12]))[0].text for code in range(16)}
    assert len(texts) > 1


@pytest.mark.parametrize(
    ("given", "what"), [([[0] * 12] * 5, "too few for row 6"), ([[0] * 11], "11 codes, and 12 input positions"), ([[]] * 6, "0 codes")]
)
def test_a_given_z_that_does_not_fit_is_refused(free: Decoder, letters: Tokenizer, given: list[list[int]], what: str) -> None:
    with pytest.raises(InputError, match=what):
        run(free, letters, replace(SPEC, given_z=given))


def test_records_for_one_prompt_serve_every_prompt(free: Decoder, letters: Tokenizer) -> None:
    given = [[code] * 12 for code in range(6)]
    rows = run(free, letters, replace(SPEC, given_z=given), prompts=("ab", "c"))
    assert [row.z for row in rows] == given * 2


def test_a_baseline_has_no_z(letters: Tokenizer) -> None:
    model = build_model(CONFIG, None)
    initialise_model(model, 0)
    rows = run(model.eval(), letters)
    assert [row.z for row in rows] == [None] * 6
    assert len({row.text for row in rows}) > 1


def test_max_tokens_counts_after_the_prompt(free: Decoder, letters: Tokenizer) -> None:
    rows = run(free, letters, replace(SPEC, new_tokens=20), prompts=("ab", "c"))
    assert {(row.prompt, len(row.text), len(row.z or ())) for row in rows} == {("ab", 22, 21), ("c", 21, 20)}


@pytest.mark.parametrize(("prompt", "what"), [("abcdefabcdefa", "13 tokens"), ("abX", "'X'"), ("", "empty")])
def test_prompts_that_cannot_be_read_are_named(free: Decoder, letters: Tokenizer, prompt: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        run(free, letters, prompts=(prompt,))


def test_text_ends_at_the_separator_and_replays(free: Decoder) -> None:
    tokenizer = characters("abcde", separator=True)
    rows = run(free, tokenizer, replace(SPEC, count=20), prompts=("",))
    assert {len(row.text) for row in rows} != {12}
    for row in rows:
        ended = len(row.z or ()) == len(row.text) + 1  # separator, text, separator: an input for each but the last
        assert ended or len(row.z or ()) == len(row.text) == 12
    again = run(free, tokenizer, replace(SPEC, count=20, given_z=[row.z or [] for row in rows]), prompts=("",))
    assert [replace(row, prompt_z="posterior") for row in again] == rows


def test_tokens_follow_the_distribution() -> None:
    logits = torch.tensor([0.5, -1.0, 2.0, 0.0]).expand(4001, 4)
    noise = torch.linspace(0, 1 - 1e-6, 4001)
    for temperature in (1.0, 0.5):
        drawn = choose_tokens(logits, noise, temperature)
        want = torch.softmax(logits[0] / temperature, 0)
        assert torch.allclose(torch.bincount(drawn, minlength=4) / 4001, want, atol=1e-3)


def test_top_k_top_p_and_zero_temperature() -> None:
    logits = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1])).expand(1001, 4)
    noise = torch.linspace(0, 1 - 1e-6, 1001)

    def drawn(**settings: Any) -> set[int]:
        return set(choose_tokens(logits, noise, **settings).tolist())

    assert drawn(top_k=2) == {0, 1}
    assert drawn(top_k=9) == {0, 1, 2, 3}
    assert drawn(top_p=0.5) == {0, 1}
    assert drawn(top_p=0.0) == {0}
    assert drawn(top_p=0.95) == {0, 1, 2, 3}
    assert drawn(top_k=3, top_p=0.5) == {0, 1}
    assert drawn(temperature=0) == {0}


def test_an_impossible_token_is_never_drawn() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    assert choose_tokens(logits, torch.tensor([1 - 1e-9], dtype=torch.float64)).item() == 1


def test_figure4_has_one_blue_group_and_green_ones(free: Decoder, letters: Tokenizer) -> None:
    found = figure4_samples(free, letters, "ab", SampleSpec(total=13, count=3), groups=2)
    assert {name: len(rows) for name, rows in found.items()} == {"independent": 3, "shared": 6}
    assert len({tuple(row.z or ()) for row in found["shared"]}) == 2
    assert found["shared"][0].seed != found["independent"][0].seed  # or the tokens' draws of both would be the same


def test_random_streams_are_distinct() -> None:
    """Z, the Z of the prompt, and the tokens each have a stream, and so has each row, prompt and seed."""
    keys = [
        (seed, purpose, place) for seed in (0, 1) for purpose in _Purpose for place in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0))
    ]
    assert len({float(keyed(seed, purpose, *place).random()) for seed, purpose, place in keys}) == len(keys)


def test_many_rows_begin_with_a_small_batch(free: Decoder, letters: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    generated = sampling.generate_batch
    monkeypatch.setattr(sampling, "generate_batch", lambda model, rows, *rest: sizes.append(len(rows)) or generated(model, rows, *rest))
    next(generate(free, letters, ["ab"], replace(SPEC, count=10**9, groups=10**9)))
    assert sizes == [sampling.FIRST_ROWS]


def test_out_of_memory_names_the_length(free: Decoder, letters: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(sampling, "generate_batch", full)
    with pytest.raises(FreetfError, match="9 tokens a sequence; the model's context is 12; lower --max-tokens"):
        run(free, letters, replace(SPEC, new_tokens=9))


def test_one_prompt_is_answered_before_the_next_is_read(free: Decoder, letters: Tokenizer) -> None:
    asked: list[str] = []

    def prompts() -> Iterator[str]:
        for prompt in ("ab", "cd"):
            asked.append(prompt)
            yield prompt

    rows = generate(free, letters, prompts(), replace(SPEC, count=1, groups=1), together=False)
    first = next(rows)
    assert asked == ["ab"]
    assert [first, *rows] == run(free, letters, replace(SPEC, count=1, groups=1), prompts=("ab", "cd"))
