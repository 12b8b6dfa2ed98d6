"""reviews: short positive and negative film reviews from a small grammar, the example that opens the paper's section 2.

    {"text": "I saw The Borrowed Journey on the Hill, a western, alone. I left the cinema angry.",
     "factors": {"sentiment": "negative", "genre": "western"}}

A sentiment (positive or negative, each with probability 1/2) and one of five genres are drawn first; every phrase depends on them.
Each review names its film, one of 6,144 titles: of 1,000 held-out texts, hardly one stands among 9,000 others too. Texts are ASCII, at
most 200 characters long and tokenized as bytes; a row is `SEP text SEP`. The task has no parameters. The entropy of the texts has no
closed form, since different derivations can give the same text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from freetf_cli.tasks.base import BLOCK_ROWS, PAD, Example, Param, Rows, Task

LONGEST = 200  # characters
SEPARATOR = 256  # as in the byte tokenizer
SENTIMENTS = ("negative", "positive")
GENRES = ("comedy", "drama", "thriller", "western", "mystery")

# {name} stands for one of the phrases of that name: those of the sentiment, of the genre, or of every review.
Grammar = dict[str, tuple[str, ...]]
ANY: Grammar = {
    "part": ("acting", "script", "music", "camera work", "editing", "first act", "ending", "dialogue", "cast", "pacing"),
    "size": ("small", "long", "low-budget", "much discussed", "two-hour", "quiet", "noisy", "third", "debut"),
    "maker": ("a new director", "an old hand", "a team of students", "two brothers", "a former actor", "a studio in a hurry"),
    "when": ("last night", "on Friday", "with my sister", "at a festival", "on a rainy day", "in a full house", "alone"),
    "title": ("The {which} {thing} {where}",),
    "which": (
        *("Silent", "Second", "Golden", "Broken", "Hidden", "Last", "Borrowed", "Northern"),
        *("Paper", "Patient", "Crooked", "Burning", "Distant", "Empty", "Winter", "Iron"),
    ),
    "thing": (
        *("Orchard", "Bridge", "Letter", "Harbour", "Garden", "Witness", "Piano", "Lantern"),
        *("Stranger", "Window", "Promise", "Island", "Mirror", "Journey", "Tower", "Shadow"),
        *("Kitchen", "Station", "River", "Portrait", "Guest", "Secret", "Voyage", "Wedding"),
    ),
    "where": (
        *("at Midnight", "by the Sea", "in Winter", "of the North", "on the Hill", "at Noon", "in Room Nine", "across the Border"),
        *("without a Name", "after the War", "on Platform Two", "under Glass", "in the Dark", "of Our Town", "from Nowhere", "in July"),
    ),
    "opening": (
        "I saw {title}, a {genre}, {when}.",
        "{title} is a {size} {genre} by {maker}.",
        "This {genre}, {title}, is about {plot}.",
        "Another {genre} about {plot}: {title}.",
        "{title}, a {size} {genre}: {plot}.",
    ),
    "review": (
        "{opening} {verdict}",
        "{opening} {detail} {verdict}",
        "{praise}, {title} {effect}. {verdict}",
        "{opening} The {part} is {quality}, and the {part} {quality} too.",
        "{title}? {verdict} {detail}",
        "{detail} {detail} {title}: {verdict}",
    ),
}
PLOTS = {
    "comedy": ("a wedding that nobody wants", "three cooks and one kitchen", "a lost dog and its six owners", "a town without mirrors"),
    "drama": ("a fisherman and his daughter", "a teacher who goes blind", "the last summer of a farm", "two sisters and a will"),
    "thriller": ("a bomb on a night train", "a nurse who knows too much", "a stolen list of names", "a pilot with no past"),
    "western": ("a sheriff who cannot shoot", "a railway and a stubborn widow", "gold under a graveyard", "two riders and one horse"),
    "mystery": ("a clock that stops at nine", "a body in a bookshop", "twins who never met", "a painting that changes"),
}
SCENES = {
    "comedy": ("the dinner with the in-laws", "the speech in the lift", "the chase on bicycles"),
    "drama": ("the talk in the hospital", "the letter at the end", "the silence after the storm"),
    "thriller": ("the hunt through the harbour", "the call at midnight", "the fight on the stairs"),
    "western": ("the duel in the rain", "the ride across the salt", "the card game"),
    "mystery": ("the questions in the library", "the locked greenhouse", "the last clue"),
}
BY_SENTIMENT: dict[str, Grammar] = {
    "positive": {
        "quality": ("superb", "a delight", "sharp", "full of life", "better than ever", "touching", "clever"),
        "praise": ("Warm and witty", "Bold and strange", "Fresh from start to finish", "Beautifully shot", "Tense and smart"),
        "effect": ("kept me smiling to the end", "won me over at once", "never puts a foot wrong", "earns every minute"),
        "detail": (
            "The {part} is {quality}.",
            "I loved {scene}.",
            "Above all, {scene} is {quality}.",
            "I did not expect much of the {part}, and was amazed.",
        ),
        "verdict": (
            "See it twice.",
            "One of the best films of the year.",
            "I left the cinema happy.",
            "Go and see it.",
            "A {genre} to remember.",
            "I cannot recommend it enough.",
        ),
    },
    "negative": {
        "quality": ("dreadful", "a bore", "flat", "without any life", "worse than ever", "clumsy", "dull"),
        "praise": ("Cold and empty", "Loud and lazy", "Stale from start to finish", "Badly lit", "Slow and silly"),
        "effect": ("sent me to sleep", "lost me at once", "trips over its own feet", "wastes every minute"),
        "detail": (
            "The {part} is {quality}.",
            "I hated {scene}.",
            "Above all, {scene} is {quality}.",
            "I expected much of the {part}, and was let down.",
        ),
        "verdict": (
            "Stay at home.",
            "One of the worst films of the year.",
            "I left the cinema angry.",
            "Ask for your money back.",
            "A {genre} to forget.",
            "I cannot warn you enough.",
        ),
    },
}


class Reviews(Task):
    """Film reviews with a known sentiment and genre. Both must be read from the words, by a classifier, so there are no exact factors."""

    label = "sentiment"
    separator = True
    alphabet = None
    row_tokens = LONGEST + 2
    PARAMS: ClassVar[Mapping[str, Param]] = {}

    def draw(self, rng: np.random.Generator) -> Rows:
        examples = [review(rng) for _ in range(BLOCK_ROWS)]
        tokens = np.full((BLOCK_ROWS, self.row_tokens), PAD, np.int64)
        tokens[:, 0] = SEPARATOR
        for row, example in zip(tokens, examples, strict=True):
            size = len(example.text)
            row[1 : size + 1] = np.frombuffer(example.text.encode("ascii"), np.uint8)
            row[size + 1] = SEPARATOR
        return Rows(tokens, examples.__getitem__)

    def prompt(self, seed: int, index: int) -> str:
        """Empty: a review begins after the separator."""
        return ""

    def entropy(self) -> dict[str, float]:
        return {"sentiment": 1.0, "genre": float(np.log2(len(GENRES)))}


def review(rng: np.random.Generator) -> Example:
    """One review. The text is drawn again until it is short enough; the factors are not."""
    sentiment, genre = str(rng.choice(SENTIMENTS)), str(rng.choice(GENRES))
    grammar = {**ANY, **BY_SENTIMENT[sentiment], "genre": (genre,), "plot": PLOTS[genre], "scene": SCENES[genre]}
    while len(text := spell("{review}", grammar, rng)) > LONGEST:
        pass
    return Example(text, {"sentiment": sentiment, "genre": genre})


def spell(phrase: str, grammar: Grammar, rng: np.random.Generator) -> str:
    """The phrase with every {name} replaced by one of its phrases, recursively."""

    def choose(match: re.Match[str]) -> str:
        options = grammar[match[1]]
        return spell(options[rng.integers(len(options))], grammar, rng)

    return re.sub(r"\{(\w+)\}", choose, phrase)
