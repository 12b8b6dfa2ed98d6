"""The table `[data]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from freetf_cli.config.table import ConfigTable, Positive, known, module_names, rule

TASKS = module_names("tasks", without=("base", "factors", "open_ended", "questions"))
TaskName = Annotated[str, AfterValidator(known("task", TASKS)), Field(json_schema_extra={"enum": list(TASKS)})]


OF_TASKS = ("task", "params", "train_rows", "teacherless")


class DataConfig(ConfigTable):
    """The source of the sequences: a synthetic `task`, generated in memory, or a prepared folder `dir`."""

    task: TaskName | None = Field(None, description="synthetic task, generated in memory")
    params: dict[str, int | float | str] = Field(default_factory=dict, description="parameters of the task")
    train_rows: Positive | None = Field(
        None, le=1 << 24, description="rows of the task to train on, in another order in each epoch; default: endless fresh rows"
    )
    teacherless: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="share of a task's training rows whose inputs after the prompt are hidden: the model predicts all targets from it"
    )
    dir: str | None = Field(None, description="folder written by `freetf prepare` or `freetf gen-synthetic`")
    rows: Literal["auto", "documents", "packed"] = Field(
        "auto", description="one document per row, or windows over the packed stream; auto: documents for tasks, packed for text"
    )

    @classmethod
    def superseded(cls, base: Mapping[str, Any], over: Mapping[str, Any]) -> set[str]:
        """Naming one source of data drops the other; a new task drops the parameters of the old one."""
        dropped = set(OF_TASKS) if "dir" in over else set()
        if "task" in over:
            dropped |= {"dir"} if over["task"] == base.get("task") else {"dir", "params"}
        return dropped

    @rule("task", "dir")
    def _one_source(self) -> str | None:
        return "[data] needs exactly one of 'task' and 'dir'" if (self.task is None) == (self.dir is None) else None

    @rule("params", "task")
    def _params_are_a_tasks(self) -> str | None:
        return "data.params belongs to data.task; a prepared folder has its own" if self.params and self.task is None else None

    @rule("train_rows", "task")
    def _train_rows_are_a_tasks(self) -> str | None:
        belongs = self.train_rows is None or self.task is not None
        return None if belongs else "data.train_rows belongs to data.task; all rows of a prepared folder are used"

    @rule("teacherless", "task")
    def _teacherless_is_a_tasks(self) -> str | None:
        return "data.teacherless belongs to data.task" if self.teacherless and self.task is None else None
