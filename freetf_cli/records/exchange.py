"""Results of `freetf export` and `freetf import`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from freetf_cli.report.blocks import Facts, Note, Report
from freetf_cli.report.units import count, number, size


@dataclass(frozen=True)
class LogitCheck:
    """How far the logits of freetf's model and of the Hugging Face folder differ on the same tokens."""

    by: str  # what computed the folder's logits, such as `transformers 5.23.0`
    greatest: float  # greatest absolute difference
    largest: float  # largest absolute logit of freetf
    positions: int  # number of positions compared, over the whole vocabulary

    def text(self) -> str:
        """`greatest difference 1.9e-06, of logits up to 8.1, in 96 positions, by transformers 5.23.0`."""
        where = f"of logits up to {number(self.largest, 1)}, in {count(self.positions)} positions"
        return f"greatest difference {self.greatest:.2g}, {where}, by {self.by}"


@dataclass(frozen=True)
class ExportResult:
    """The Hugging Face folder that was written. bytes: the size of all its files; shards: the number of weight files."""

    folder: str
    run: str
    kind: str
    parameters: int
    bytes: int
    shards: int
    logits: LogitCheck
    notes: list[str] = field(default_factory=list)

    def report(self) -> Report:
        free = self.kind == "free"
        facts = [
            ("folder", self.folder),
            ("model", "FreeTransformerForCausalLM (its code is in the folder)" if free else "LlamaForCausalLM"),
            ("parameters", count(self.parameters)),
            ("size", f"{size(self.bytes)}, weights in {self.shards} files" if self.shards > 1 else size(self.bytes)),
            ("logits", self.logits.text()),
        ]
        return Report("", [Facts(facts), *map(Note, self.notes)])


@dataclass(frozen=True)
class ImportResult:
    """The run that was made from a Hugging Face folder. logits: None if they were not compared, because transformers is not installed."""

    run: str
    folder: str
    checkpoint: str
    kind: str
    parameters: int
    tokenizer: str
    separator: str | None  # the token that begins and ends documents
    logits: LogitCheck | None
    notes: list[str] = field(default_factory=list)

    def report(self) -> Report:
        facts = [
            ("run", self.run),
            ("parameters", count(self.parameters)),
            ("tokenizer", self.tokenizer),
            ("separator", self.separator or "none"),
            ("logits", self.logits.text() if self.logits else "not compared: transformers is not installed"),
        ]
        run, recipe = shlex.quote(self.run), shlex.quote(f"{self.run}/recipe.toml")
        hints = (
            f"freetf sample {run} --prompt TEXT",
            f"freetf prepare TEXT -o DATA --tokenizer {shlex.quote(self.checkpoint)}/tokenizer.json",
            f"freetf train {recipe} -o RUN --set data.dir=DATA --init-from {run}",
        )
        return Report("", [Facts(facts), *map(Note, self.notes)], hints=hints)
