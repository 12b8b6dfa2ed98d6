"""reviews: short, varied texts whose words follow their sentiment."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from freetf_cli.data.prepare import task_tokenizer
from freetf_cli.tasks import make_task
from freetf_cli.tasks.base import PAD
from freetf_cli.tasks.reviews import GENRES, SENTIMENTS, WORD, Reviews, grammar_of, parses, spell, vocabulary

GOLDEN = (  # rows 0 and 2,000 of seed 7: if they change, runs are no longer reproducible
    (
        "This comedy, The Paper Harbour across the Border, is about three cooks and one kitchen. I did not expect much of the camera work, "
        "and was amazed. Go and see it.",
        {"sentiment": "positive", "genre": "comedy"},
    ),
    (
        "I expected much of the music, and was let down. The acting is dull. The Patient Kitchen by the Sea: I cannot warn you enough.",
        {"sentiment": "negative", "genre": "comedy"},
    ),
)


def test_golden_rows() -> None:
    rows = [make_task("reviews", {}).examples(7, i, 1)[0] for i in (0, 2000)]
    assert tuple((row.text, row.factors) for row in rows) == GOLDEN


def test_reviews_are_short_varied_and_told_apart_by_their_words() -> None:
    rows = make_task("reviews", {}).examples(0, 0, 2000)
    assert max(len(row.text) for row in rows) <= 200 and all(row.text.isascii() for row in rows)
    assert len({row.text for row in rows}) == 2000, "held-out texts that stand in train too would measure what was memorised"
    assert not any("{" in row.text for row in rows)
    positive = sum(row.factors["sentiment"] == "positive" for row in rows)
    assert abs(positive - 1000) < 5 * math.sqrt(500)
    for row in rows:
        words = row.text.lower()
        other = "loved" if row.factors["sentiment"] == "negative" else "hated"
        assert other not in words


@pytest.mark.parametrize("tokens", ["bytes", "words"])
def test_every_text_is_read_and_its_sentiment_is_always_found(tokens: str) -> None:
    task = make_task("reviews", {"tokens": tokens})
    for example in task.examples(0, 0, 500):
        reading = task.read(example.text)
        assert reading.valid and reading.factors["sentiment"] == example.factors["sentiment"]
        assert reading.factors["genre"] in (example.factors["genre"], None)


def test_rows_of_words_spell_their_texts() -> None:
    task = make_task("reviews", {"tokens": "words"})
    tokenizer = task_tokenizer(task)
    rows = task.tokens(0, 0, 300)
    assert (rows.shape[1], tokenizer.vocab_size, tokenizer.separator) == (50, len(vocabulary()) + 1, len(vocabulary()))
    for row, example in zip(rows, task.examples(0, 0, 300), strict=True):
        ids = row[row != PAD].tolist()
        assert ids == [tokenizer.separator, *tokenizer.encode(example.text), tokenizer.separator]
        assert tokenizer.decode(ids) == example.text


def test_every_word_of_the_grammar_has_a_token() -> None:
    """Against texts of 20 reviews of every kind; each token is a single match of WORD."""
    assert all(re.fullmatch(WORD, word) for word in vocabulary())
    rng = np.random.default_rng(1)
    for sentiment in SENTIMENTS:
        for genre in GENRES:
            for _ in range(20):
                assert set(re.findall(WORD, spell("{review}", grammar_of(sentiment, genre), rng))) <= set(vocabulary())


def test_the_parser_finds_every_genre_that_can_have_written_a_text() -> None:
    """Against the generator: a text is read as the sentiments and genres that write it, and names one only if its words do."""
    rng = np.random.default_rng(0)
    for sentiment in SENTIMENTS:
        for genre in GENRES:
            for _ in range(20):
                text = spell("{review}", grammar_of(sentiment, genre), rng)
                words = [phrase for name in ("plot", "scene", "genre") for phrase in grammar_of(sentiment, genre)[name]]
                told = any(word in text for word in words)
                assert set(parses(text)) == {(sentiment, one) for one in (GENRES if not told else (genre,))}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The Silent Orchard at Noon? Stay at home. I loved the card game.",  # two sentiments
        "Another western about a bomb on a night train: The Silent Orchard at Noon. Stay at home.",  # two genres
        "The Silent Orchard at Noon? Stay at home. I hated the card game",
        " The Silent Orchard at Noon? Stay at home. I hated the card game.",
        "The Silent Orchard at Noon? Stay at home. I hated the card game.\n",
        "The Silent Orchard at Noon? Stay at homeX I hated the card game.",
    ],
)
def test_what_the_grammar_cannot_write_is_invalid(text: str) -> None:
    reading = make_task("reviews", {}).read(text)
    assert (reading.valid, reading.factors) == (False, {"sentiment": None, "genre": None})


def test_a_text_that_is_too_long_is_invalid() -> None:
    rng, texts = np.random.default_rng(2), []
    while not texts:
        text = spell("{review}", grammar_of("negative", "mystery"), rng)
        texts = [text] if len(text) > 150 else []
    task = make_task("reviews", {})
    assert isinstance(task, Reviews) and task.read(texts[0]).valid
    task.longest = len(texts[0]) - 1
    assert not task.read(texts[0]).valid
