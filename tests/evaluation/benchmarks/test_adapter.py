"""A run as a model of lm-eval: tokens of texts, and log-likelihoods of whole texts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from freetf_cli.config.recipe import ModelConfig
from freetf_cli.data.tokenizer import byte_level, characters
from freetf_cli.errors import InputError
from freetf_cli.evaluation.benchmarks.scoring import Scorer
from freetf_cli.latent.build import build_model, initialise_model

pytest.importorskip("lm_eval")
from freetf_cli.evaluation.benchmarks.adapter import RunLM

TOKENIZER = byte_level()
SEPARATOR = 256


@pytest.fixture(scope="module")
def lm() -> RunLM:
    model = build_model(ModelConfig(layers=2, width=16, heads=2, vocab=TOKENIZER.vocab_size, context=12), None)
    initialise_model(model, seed=0)
    return RunLM(Scorer(model.eval()), TOKENIZER)


def logs(lm: RunLM, prompt: list[int], answer: list[int]) -> float:
    """Log P(answer | prompt) by one plain pass."""
    logp = lm._scorer.model(torch.tensor([[*prompt, *answer[:-1]]])).logits[0, len(prompt) - 1 :].log_softmax(-1)
    return float(logp.gather(1, torch.tensor(answer)[:, None]).sum())


def ask(*args: object) -> SimpleNamespace:
    return SimpleNamespace(args=args)


@torch.inference_mode()
def test_texts_begin_with_the_separator(lm: RunLM) -> None:
    assert lm.tok_encode("ab") == [SEPARATOR, 97, 98] and lm.tok_encode("ab", add_special_tokens=False) == [97, 98]
    found = lm.loglikelihood([ask("ab", " cd"), ask("", "cd"), ask("ab ", "cd")])
    assert found[0][0] == pytest.approx(logs(lm, [SEPARATOR, 97, 98], [32, 99, 100]), abs=1e-4)
    assert found[1][0] == pytest.approx(logs(lm, [SEPARATOR], [99, 100]), abs=1e-4)
    assert found[2][0] == pytest.approx(found[0][0])  # a space at the end of the prompt belongs to the answer
    assert [len(one) for one in found] == [2, 2, 2] and found[1].record["tokens"] == 2


@torch.inference_mode()
def test_a_whole_text_has_every_token_predicted_once(lm: RunLM) -> None:
    text = list(b"abcdefghijklmnopqrstuvwxyz1234")  # 30 tokens, a context of 12
    short, long = lm.loglikelihood_rolling([ask("abc"), ask(bytes(text).decode())])
    assert short == pytest.approx(logs(lm, [SEPARATOR], text[:3]), abs=1e-4)
    windows = [([SEPARATOR], text[:12]), ([text[11]], text[12:24]), (text[17:24], text[24:])]  # the last has all the context that fits
    assert long == pytest.approx(sum(logs(lm, *window) for window in windows), abs=1e-3)


def test_equal_texts_have_equal_answers_and_a_character_that_is_unknown_is_named(lm: RunLM) -> None:
    one, other = lm.loglikelihood_rolling([ask("abc"), ask("abc")])
    assert one == other
    letters = RunLM(lm._scorer, characters("abc", separator=False))
    letters.task = "piqa"
    with pytest.raises(InputError, match="an item of piqa"):
        letters.loglikelihood([ask("ab", " c")])
    with pytest.raises(InputError, match="needs a separator"):
        letters.loglikelihood([ask("", "c")])
