"""reviews: short, varied texts whose words follow their sentiment."""

from __future__ import annotations

import math

import numpy as np
import pytest

from freetf_cli.tasks import make_task
from freetf_cli.tasks.reviews import GENRES, SENTIMENTS, grammar_of, parses, spell

GOLDEN = (  # rows 0 and 2,000 of seed 7: if they change, runs are no longer reproducible
    (
        "The Crooked Guest in Winter, a quiet western: gold under a graveyard. I did not expect much of the script, and was amazed. "
        "See it twice.",
        {"sentiment": "positive", "genre": "western"},
    ),
    (
        "This comedy, The Golden Promise across the Border, is about three cooks and one kitchen. See it twice.",
        {"sentiment": "positive", "genre": "comedy"},
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


@pytest.mark.parametrize("longest", [90, 200])
def test_every_text_is_read_and_its_sentiment_is_always_found(longest: int) -> None:
    task = make_task("reviews", {"longest": longest})
    examples = task.examples(0, 0, 500)
    assert max(len(example.text) for example in examples) <= longest and task.row_tokens == longest + 2
    for example in examples:
        reading = task.read(example.text)
        assert reading.valid and reading.factors["sentiment"] == example.factors["sentiment"]
        assert reading.factors["genre"] in (example.factors["genre"], None)


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
    text = "The Silent Orchard at Noon? Stay at home. I hated the card game. ".strip()
    long = next(e.text for e in make_task("reviews", {}).examples(0, 0, 100) if len(e.text) > 100)
    assert make_task("reviews", {"longest": 100}).read(text).valid
    assert make_task("reviews", {}).read(long).valid and not make_task("reviews", {"longest": 100}).read(long).valid
