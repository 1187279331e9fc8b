"""`legato data` and `legato objectives`: what there is to choose from."""

from rich import box
from rich.console import Console
from rich.table import Column, Table


def data() -> None:
    """The table of data sets."""
    from legato.data.registry import TABLE

    table = Table(
        Column("name", no_wrap=True), "rows", "one input", "classes", "licence", "how to get it", box=box.SIMPLE_HEAD
    )
    for name, entry in TABLE.items():
        table.add_row(name, entry.rows, entry.shape, str(entry.classes), entry.licence, entry.get or "always there")
    console = Console()
    console.print(table)
    console.print("Your own: a .csv or .parquet file with --target COLUMN, or an .npz file with x and y.")


def objectives() -> None:
    """The table of objectives; parts are joined by +, parameters set as name:key=value."""
    from legato.studies.objectives import LOSSES, METHODS

    table = Table(Column("name", no_wrap=True), Column("parameters", no_wrap=True), "what it is", box=box.SIMPLE_HEAD)
    for name, method in METHODS.items():
        shown = ", ".join(f"{key}={p.default:g}" for key, p in method.parameters.items())
        table.add_row(name if name in LOSSES else f"+{name}", shown, method.summary)
    Console().print(table)
