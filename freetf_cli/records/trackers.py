"""The result of `freetf export-metrics`."""

from __future__ import annotations

from dataclasses import dataclass

from freetf_cli.report.blocks import Facts, Report
from freetf_cli.report.units import count


@dataclass(frozen=True)
class TrackerExport:
    """An export to a tracker. records: how many were written; place: where the tracker stores them; view: the command that shows them."""

    run: str
    to: str
    place: str
    records: int
    view: str

    def report(self) -> Report:
        facts = [("tracker", self.to), ("written", f"{count(self.records)} records of metrics.jsonl"), ("place", self.place)]
        return Report("", [Facts(facts)], hints=[self.view])
