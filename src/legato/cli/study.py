"""`legato study`: run a form of a study, or of all of them, and print the verdicts."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Column, Table

from legato import errors
from legato.lab.claims import Judged
from legato.studies import every, study
from legato.studies.every import Done
from legato.studies.spec import Form


def run(name: str, smoke: bool, confirm: bool, workers: int | None, out: Path | None, pack: bool) -> None:
    """Everything the command does."""
    if smoke and confirm:
        raise errors.argument("form", expected="--smoke or --confirm", got="both")
    form: Form = "smoke" if smoke else "confirm" if confirm else "full"
    if name == every.ALL:
        _all(form, workers, out, pack)
        return
    path, judged = study.run(name, form, workers=workers, out=out, packed=pack)
    if judged:
        _print({"": judged})
    print(_made(path))


def _all(form: Form, workers: int | None, out: Path | None, pack: bool) -> None:
    """Every study in turn, then one table of all verdicts.

    Raises: TrialError at the end where a study was stopped; those that lack what the form needs are only named.
    """
    done: list[Done] = []
    for one in every.run(form, workers=workers, out=out, packed=pack):
        done.append(one)
        print(f"{one.name}: {_came_of(one)}", flush=True)
    judged = {one.name: one.judged for one in done if one.judged}
    if judged:
        _print(judged)
    stopped = [one.name for one in done if one.problem]
    if stopped:
        fix = "see above; the same command goes on from there"
        raise errors.TrialError(
            errors.message("study all", expected="every study to finish", got=f"{', '.join(stopped)} stopped", fix=fix)
        )


def _came_of(one: Done) -> str:
    if one.path is None:
        return f"left out. {one.absent}" if one.absent else f"stopped. {one.problem}"
    return f"{one.seconds / 60:.1f} minutes, {_made(one.path)}"


def _made(path: Path) -> str:
    return f"{'tuned values' if path.suffix == '.json' else 'page'}: {path}"


def _print(judged: dict[str, Sequence[Judged]]) -> None:
    """The verdicts by study; a study without a name has no column of its own."""
    columns = [Column("verdict", no_wrap=True), Column("points [95%]", no_wrap=True), Column("claim")]
    named = any(judged)
    table = Table(*([Column("study", no_wrap=True)] if named else []), *columns, box=box.SIMPLE_HEAD)
    for name, rows in judged.items():
        for row in rows:
            table.add_row(*([name] if named else []), row.verdict, row.told, row.claim.words)
    Console().print(table)
