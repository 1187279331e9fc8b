"""`legato data` and `legato objectives`: what there is to choose from."""

from rich import box
from rich.console import Console
from rich.table import Column, Table

OWN = """Your own data: a .csv or .parquet file with --target COLUMN; an .npz file with x and y; a folder of
pictures with one sub-folder a class; or a folder of IDX files, as MNIST and its relatives come in.
For --task language: python, perl-doc, python-doc, anarchism, gcide, or any text file or folder."""


def data(data_dir: str | None = None) -> None:
    """The table of data sets, where each is on this machine, and the commands that fetch what is not."""
    from legato.data.places import data_folder
    from legato.data.table import TABLE

    folder = data_folder(data_dir)
    table = Table(
        Column("name", no_wrap=True, style="bold"),
        Column("rows", no_wrap=True, justify="right"),
        Column("one input", no_wrap=True, justify="right"),
        Column("classes", no_wrap=True, justify="right"),
        Column("licence", no_wrap=True),
        Column("on this machine", overflow="fold"),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    commands: dict[str, int] = {}
    for name, entry in TABLE.items():
        place = entry.where(folder)
        if not place:
            number = commands.setdefault(entry.get, len(commands) + 1)
            place = f"[dim]get ({number})[/dim]"
        table.add_row(name, entry.rows, entry.shape, str(entry.classes), entry.licence, place)
    console = Console(highlight=False)
    console.print(table)
    for command, number in commands.items():
        lines = command.replace(" && dpkg-deb", " &&\n    dpkg-deb")
        console.print(f"({number}) {lines}", markup=False, soft_wrap=True)
    console.print(OWN, soft_wrap=True)


def objectives() -> None:
    """The table of objectives; parts are joined by +, parameters set as name:key=value."""
    from legato.studies.methods import METHODS, MODIFIERS

    table = Table(Column("name", no_wrap=True), Column("parameters", no_wrap=True), "what it is", box=box.SIMPLE_HEAD)
    for name, method in METHODS.items():
        shown = ", ".join(f"{key}={p.default:g}" for key, p in method.parameters.items())
        table.add_row(f"+{name}" if name in MODIFIERS else name, shown, method.summary)
    Console().print(table)
