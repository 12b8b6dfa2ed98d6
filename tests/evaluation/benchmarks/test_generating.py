"""Generated answers: the same texts as sampling makes, cut at the stop strings."""

from __future__ import annotations

import pytest

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.data.tokenizer import byte_level
from freetf_cli.evaluation.benchmarks.generating import Continuation, continuations
from freetf_cli.evaluation.benchmarks.scoring import Scorer
from freetf_cli.generation.decode_loop import DecodeLoop
from freetf_cli.generation.sampling import SampleSpec, generate
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.model.decoder import Decoder

TOKENIZER = byte_level()


@pytest.fixture(scope="module")
def model() -> Decoder:
    """A model that writes many bytes, and whose Z matters."""
    config = ModelConfig(layers=2, width=16, heads=2, vocab=TOKENIZER.vocab_size, context=40)
    made = build_model(config, LatentConfig(bits=4, kappa=1.0, table_std=20.0))
    initialise_model(made, seed=0)
    return made.eval()


def asked(text: str, number: int = 0, **settings: object) -> Continuation:
    return Continuation.of([TOKENIZER.separator, *TOKENIZER.encode(text)], {"max_gen_toks": 12, **settings}, 40, number)


def test_the_prompt_decides_and_not_the_batch(model: Decoder) -> None:
    scorer = Scorer(model)
    both = continuations(scorer, TOKENIZER, [asked("What?"), asked("Who was it?")])
    assert both == [continuations(scorer, TOKENIZER, [asked(text)])[0] for text in ("What?", "Who was it?")]


def test_equal_requests_have_their_own_z(model: Decoder) -> None:
    """Greedy texts differ by Z alone; a temperature of 0 in place of the request's makes them greedy."""
    texts = continuations(Scorer(model), TOKENIZER, [asked("What?", number) for number in range(6)])
    assert len(set(texts)) > 1
    sampled = [asked("What?", number, temperature=1.0) for number in range(6)]
    assert continuations(Scorer(model), TOKENIZER, sampled, temperature=0.0) == texts
    assert continuations(Scorer(model), TOKENIZER, sampled) != texts


def test_z_of_the_prompt_follows_the_scorer(model: Decoder) -> None:
    batch = [asked("What?", number) for number in range(8)]
    assert continuations(Scorer(model, z="prior"), TOKENIZER, batch) != continuations(Scorer(model), TOKENIZER, batch)


def test_a_text_ends_before_the_first_stop_string(model: Decoder) -> None:
    (whole,) = continuations(Scorer(model), TOKENIZER, [asked("What?")])
    stop, later = whole[3:5], whole[6:8]
    (cut,) = continuations(Scorer(model), TOKENIZER, [asked("What?", until=[later, stop, "never there"])])
    assert cut == whole[: whole.index(stop)] != whole


def test_settings_and_room() -> None:
    one = asked("x" * 60, until="\n", do_sample=False, temperature=0.7)
    assert (one.new_tokens, len(one.prompt), one.truncated, one.stops, one.temperature) == (12, 29, True, ("\n",), 0.0)
    assert one.prompt == tuple(TOKENIZER.encode("x" * 29))
    assert asked("x", max_gen_toks=400).new_tokens == 20  # half of the context
    assert asked("x", temperature=0.7).temperature == 0.7 and asked("x", do_sample=True).temperature == 1.0
    assert not asked("x").truncated


def test_the_text_is_what_sampling_makes(model: Decoder) -> None:
    """Greedy, with a latent that has no effect on it: `freetf sample` makes the same text."""
    plain = build_model(ModelConfig(layers=2, width=16, heads=2, vocab=TOKENIZER.vocab_size, context=40), None)
    initialise_model(plain, seed=0)
    (sample,) = generate(plain.eval(), TOKENIZER, ["What?"], SampleSpec(total=40, new_tokens=12, temperature=0.0))
    (text,) = continuations(Scorer(plain), TOKENIZER, [asked("What?")])
    assert sample.text == "What?" + text


def test_stopping_early_changes_no_text(model: Decoder) -> None:
    """The texts are those that run to their full length and are cut afterwards, also of rows that have their stop string late or never."""
    texts = [f"What is {letter}?" for letter in "abcdefghijkl"]
    whole = continuations(Scorer(model), TOKENIZER, [asked(text, max_gen_toks=20) for text in texts])
    for stops in ([whole[0][2:4]], [whole[0][1], whole[1][9]], [whole[2][12:14], "never there"]):
        wanted = [min((text[: text.index(stop)] for stop in stops if stop in text), key=len, default=text) for text in whole]
        assert wanted != whole
        assert continuations(Scorer(model), TOKENIZER, [asked(text, max_gen_toks=20, until=stops) for text in texts]) == wanted


def test_a_batch_ends_with_its_last_stop_string(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    read = DecodeLoop._read
    monkeypatch.setattr(DecodeLoop, "_read", lambda loop, token, t: steps.append(int(t)) or read(loop, token, t))
    (whole,) = continuations(Scorer(model), TOKENIZER, [asked("What?", max_gen_toks=20)])
    full = len(steps)
    (cut,) = continuations(Scorer(model), TOKENIZER, [asked("What?", max_gen_toks=20, until=[whole[2:5]])])
    assert whole.startswith(cut) and len(steps) - full < 8 < full
    never = asked("Who was it?", max_gen_toks=20, until=["never there"])
    assert len(continuations(Scorer(model), TOKENIZER, [never])) == 1 and len(steps) > 2 * full
