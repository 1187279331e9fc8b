"""`legato study`: run a form of a study and print its verdicts."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Column, Table

from legato.studies import study
from legato.studies.study import Form


def run(name: str, form: Form, workers: int | None, out: Path | None) -> None:
    """Everything the command does."""
    path, judged = study.run(name, form, workers=workers, out=out)
    if judged:
        table = Table(
            Column("verdict", no_wrap=True), Column("points [95%]", no_wrap=True), "claim", box=box.SIMPLE_HEAD
        )
        for row in judged:
            table.add_row(row.verdict, row.difference.text(100, 1) if row.difference else "", row.claim.words)
        Console().print(table)
    print(f"{'tuned rates' if form == 'full' else 'page'}: {path}")
