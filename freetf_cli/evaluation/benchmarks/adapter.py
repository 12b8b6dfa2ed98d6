"""Wraps a run as an lm-eval model. Requests are answered in batches, and the answers are saved after each batch."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.errors import InputError
from freetf_cli.evaluation import Stage
from freetf_cli.evaluation.benchmarks import metrics
from freetf_cli.evaluation.benchmarks.answers import Answers
from freetf_cli.evaluation.benchmarks.generating import TOGETHER, Continuation, continuations
from freetf_cli.evaluation.benchmarks.haystack import Room
from freetf_cli.evaluation.benchmarks.scoring import Scorer

Pair = tuple[Sequence[int], Sequence[int]]


class Answer(tuple[float, bool]):
    """The pair that lm-eval expects for a log-likelihood, (nats, is greedy). `record` holds all that is known of the answer."""

    record: Mapping[str, Any]

    def __new__(cls, record: Mapping[str, Any]) -> Answer:
        self = super().__new__(cls, (record["loglikelihood"], record["greedy"]))
        self.record = record
        return self


class RunLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A run's model and tokenizer for lm-eval. Texts begin with the separator, as documents do in training.

    answers: looked up before anything is computed; new answers are added to it. temperature: of generated text; None uses the task's.
    task: the name of the current task, part of each answer's key; set it before each task. truncated: the prompts whose beginning was cut
    off to fit the context.
    """

    def __init__(
        self,
        scorer: Scorer,
        tokenizer: Tokenizer,
        answers: Answers | None = None,
        stage: Stage | None = None,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        self._temperature = temperature
        self._scorer, self._tokenizer, self._stage = scorer, tokenizer, stage
        self.answers = Answers() if answers is None else answers
        self.task = ""
        self.truncated: set[str] = set()

    @property
    def room(self) -> Room:
        """What the model can read, for prompts that are made to fit."""
        tokenizer, context = self._tokenizer, self._scorer.model.config.context
        return Room(lambda text: len(tokenizer.encode(text, where=f"an item of {self.task}")), context)

    @property
    def eot_token_id(self) -> int:
        if self._tokenizer.separator is None:
            raise InputError("an empty prompt needs a separator token in front of the answer, and the run's tokenizer has none")
        return self._tokenizer.separator

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        separator = self._tokenizer.separator
        begin = [] if separator is None or add_special_tokens is False else [separator]
        return begin + self._tokenizer.encode(string, where=f"an item of {self.task}")

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Answer]:
        found: list[Answer] = super().loglikelihood(requests, disable_tqdm=True)  # progress is shown by `stage`
        return found

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[Answer]:
        keys = list(_keys(self.task, [text for text, _, _ in requests]))
        pairs = [(prompt, answer) for _, prompt, answer in requests]
        records = self._score(keys, pairs)
        self.truncated |= {text[0] for (text, _, _), record in zip(requests, records, strict=True) if record["truncated"]}
        return [Answer(record) for record in records]

    def _score(self, keys: Sequence[str], pairs: Sequence[Pair]) -> list[Mapping[str, Any]]:
        """The records of all pairs. A batch is computed as a whole or not at all, so that resuming gives the same numbers."""

        def compute(members: Sequence[int], rows: Any) -> dict[int, dict[str, Any]]:
            return {member: asdict(scored) for member, scored in self._scorer.score(rows)}

        batches = (([member for row in rows for member in row.members], rows) for rows in self._scorer.batches(pairs))
        return self._answered(keys, batches, compute)

    def _answered(
        self,
        keys: Sequence[str],
        batches: Iterator[tuple[list[int], Any]],
        compute: Callable[[Sequence[int], Any], Mapping[int, Mapping[str, Any]]],
    ) -> list[Mapping[str, Any]]:
        """The answers to all requests, in their order. A batch with an answer that is not saved yet is given to `compute`."""
        found: list[Mapping[str, Any]] = [{}] * len(keys)
        with self._progress(len(keys)) as advance:
            for members, batch in batches:
                records = self.answers.known([keys[member] for member in members])
                if records is None:
                    computed = compute(members, batch)
                    records = [computed[member] for member in members]
                    self.answers.add([keys[member] for member in members], records)
                for member, record in zip(members, records, strict=True):
                    found[member] = record
                advance(len(members))
        return found

    def _progress(self, total: int) -> Any:
        return nullcontext(lambda count: None) if self._stage is None else self._stage(self.task, total)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """The log-likelihoods of whole texts. lm-eval's windows cut a text to the model's context so that each token is predicted once."""
        pairs: list[Pair] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            most = self._scorer.model.config.context or len(tokens)
            windows = get_rolling_token_windows(token_list=tokens, prefix_token=self.eot_token_id, max_seq_len=most, context_len=1)
            for window in windows:
                pairs.append(make_disjoint_window(window))
                owners.append(number)
        keys = _keys(self.task, [requests[owner].args[0] for owner in owners])
        totals = [0.0] * len(requests)
        for owner, record in zip(owners, self._score(list(keys), pairs), strict=True):
            totals[owner] += record["loglikelihood"]
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Continuations up to the first stop string. Each of several equal requests has its own random streams."""
        keys = list(_keys(self.task, [list(request.args) for request in requests]))
        seen: Counter[str] = Counter()
        asked = []
        for context, settings in (request.args for request in requests):
            asked.append(Continuation.of(self.tok_encode(context), settings, self._scorer.model.config.context, seen[context]))
            seen[context] += 1

        def compute(members: Sequence[int], batch: Sequence[Continuation]) -> dict[int, dict[str, Any]]:
            texts = continuations(self._scorer, self._tokenizer, batch, self._temperature)
            return {m: {"text": text, "truncated": one.truncated} for m, one, text in zip(members, batch, texts, strict=True)}

        # Only requests with equal settings can share a batch.
        alike: dict[Any, list[int]] = {}
        for member, one in enumerate(asked):
            alike.setdefault((one.new_tokens, one.stops, one.temperature), []).append(member)
        chunks = (members[i : i + TOGETHER] for members in alike.values() for i in range(0, len(members), TOGETHER))
        batches = ((members, [asked[member] for member in members]) for members in chunks)
        self.truncated |= {request.args[0] for request, one in zip(requests, asked, strict=True) if one.truncated}
        return [str(record["text"]) for record in self._answered(keys, batches, compute)]


def _keys(task: str, requests: Sequence[Any]) -> Iterator[str]:
    """A key for each request: a hash of the task, the request, and how many equal requests came before it."""
    seen: Counter[str] = Counter()
    for request in requests:
        text = json.dumps([task, request], ensure_ascii=False)
        seen[text] += 1
        yield hashlib.sha256(f"{text}{seen[text]}".encode()).hexdigest()[:32]


def choices(doc: Mapping[str, Any], results: Sequence[Any]) -> metrics.Scores:
    """`metrics.choices` for the task files: the scores of a multiple-choice item."""
    return metrics.choices(doc, records(results))


def last_word(doc: Mapping[str, Any], results: Sequence[Any]) -> metrics.Scores:
    """`metrics.last_word` for the task files: whether greedy decoding gives the last word."""
    return metrics.last_word(doc, records(results))


def retrieval(doc: Mapping[str, Any], results: Sequence[Any]) -> metrics.Scores:
    """`metrics.retrieval` for the task files."""
    return metrics.retrieval(doc, records(results))


def all_attempts(responses: Sequence[Sequence[str]], docs: Any) -> list[list[str]]:
    """An lm-eval filter for the task files that keeps every generated program of each item."""
    return [list(one) for one in responses]


def not_run(doc: Mapping[str, Any], results: Sequence[Any]) -> metrics.Scores:
    """No scores. lm-eval must not run generated code; `measure.score_items` runs it in the sandbox later."""
    return {}


def records(results: Sequence[Any]) -> list[Any]:
    """Results as JSON values. Log-likelihoods become records, which are complete only for a `RunLM`; generated texts stay as they are."""
    return [_record(one) if isinstance(one, tuple) else one for one in results]


def _record(result: tuple[Any, ...]) -> Mapping[str, Any]:
    return result.record if isinstance(result, Answer) else {"loglikelihood": float(result[0]), "greedy": bool(result[1])}
