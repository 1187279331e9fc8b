"""`legato study`: run a form of a study and print its verdicts."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Column, Table

from legato import errors
from legato.studies import study
from legato.studies.spec import Form


def run(name: str, smoke: bool, confirm: bool, workers: int | None, out: Path | None, pack: bool) -> None:
    """Everything the command does."""
    if smoke and confirm:
        raise errors.argument("form", expected="--smoke or --confirm", got="both")
    form: Form = "smoke" if smoke else "confirm" if confirm else "full"
    path, judged = study.run(name, form, workers=workers, out=out, packed=pack)
    if judged:
        table = Table(
            Column("verdict", no_wrap=True), Column("points [95%]", no_wrap=True), "claim", box=box.SIMPLE_HEAD
        )
        for row in judged:
            table.add_row(row.verdict, row.told, row.claim.words)
        Console().print(table)
    print(f"{'tuned rates' if form == 'full' else 'page'}: {path}")
