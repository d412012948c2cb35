"""Findings about a dataset and how they are shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        level: "ok", "warning" or "error".
        check: what was looked at.
        message: what was found.
        advice: what to do; "" if nothing.
    """

    level: Level
    check: str
    message: str
    advice: str = ""


@dataclass
class DataReport:
    """Findings about a dataset; prints as a table with rich.

    Attributes:
        title: name of the dataset.
        findings: in the order of the checks.
        picture: path of the picture, None if it was not drawn.
    """

    title: str
    findings: list[Finding] = field(default_factory=list)
    picture: Path | None = None

    @property
    def level(self) -> Level:
        """The worst level of all findings."""
        levels: tuple[Level, ...] = ("error", "warning", "ok")
        return next((lv for lv in levels if any(f.level == lv for f in self.findings)), "ok")

    def add(self, level: Level, check: str, message: str, advice: str = "") -> None:
        """Append a finding."""
        self.findings.append(Finding(level, check, message, advice))

    def __rich__(self) -> Table:
        """A table for the terminal."""
        from rich.table import Table

        table = Table(title=self.title, title_justify="left", show_edge=False, pad_edge=False)
        table.add_column("")
        table.add_column("check", no_wrap=True)
        table.add_column("finding")
        marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "error": "[red]error[/]"}
        for f in self.findings:
            text = f.message + (f"\n[dim]-> {f.advice}[/]" if f.advice else "")
            table.add_row(marks[f.level], f.check, text)
        return table
