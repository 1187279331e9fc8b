"""`legato sharpness`: how sharp the minimum of a trained model is."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from rich.table import Table

    from legato.studies.sharpness import Report

Measure = Literal["sam", "pgd", "asam", "m-sharpness", "lambda", "trace", "density", "layers", "landscape"]


@dataclass(frozen=True)
class Sharpness:
    """How sharp is the minimum that my training found?

    Measures a model that `legato compare --save-model` or `legato.training.save_model` wrote, on rows of a data set: rise of the loss
    nearby, eigenvalues, trace and density of its Hessian, and landscapes; each with its error and its cost.
    """

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """The model's folder."""
    data: Annotated[str, tyro.conf.arg(metavar="DATA")]
    """A name that `legato data` lists, a file or a folder: what the model was trained on."""
    target: Annotated[str | None, tyro.conf.arg(metavar="COLUMN")] = None
    """The column of the class, in a table."""
    image_size: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """For a folder of pictures: the size they are brought to."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where to look for the data first."""
    rows: Annotated[int, tyro.conf.arg(metavar="N")] = 2000
    """On how many rows to measure, at most."""
    split: Literal["train", "validation", "test"] = "train"
    """Of the data; sharpness is about the loss that was minimised, so usually train."""
    radius: Annotated[tuple[float, ...], tyro.conf.arg(metavar="X ...")] = (0.05, 0.2)
    """Of the balls of sam, pgd and m-sharpness."""
    adaptive_radius: Annotated[tuple[float, ...], tyro.conf.arg(metavar="X ...")] = (0.5,)
    """Of asam's balls, which scale with the weights."""
    measures: tuple[Measure, ...] = (
        "sam", "pgd", "asam", "m-sharpness", "lambda", "trace", "density", "layers", "landscape",
    )  # fmt: skip
    """Which ones."""
    steps: Annotated[int, tyro.conf.arg(metavar="N")] = 10
    """Of ascent, for pgd and asam."""
    group_rows: Annotated[int, tyro.conf.arg(metavar="M")] = 64
    """Rows of a group of m-sharpness."""
    products: Annotated[int, tyro.conf.arg(metavar="N")] = 200
    """Most products with the Hessian for the eigenvalues, for those of each layer, and for the trace."""
    points: Annotated[int, tyro.conf.arg(metavar="N")] = 15
    """On each axis of a landscape, odd."""
    batch_rows: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Rows that go through the model at once. Default: by the size of an input; lower it where memory is short."""
    between: Annotated[Path | None, tyro.conf.arg(metavar="CHECKPOINT2")] = None
    """Also the line from the model to this one, of equal shape."""
    mode: Literal["eval", "train"] = "eval"
    """eval: running statistics, no dropout. train: each batch's own statistics, and dropout."""
    model: Annotated[str | None, tyro.conf.arg(metavar="PKG.MODULE:FACTORY")] = None
    """For a model of your own: the import path of its factory again, since building it runs it."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Of the rows and of everything else that is drawn."""
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "cpu"
    """A device of torch, such as cuda."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/sharpness")
    """Folder of sharpness.json and the page."""

    def run(self) -> None:
        """Print the table and where the page is."""
        from rich.console import Console

        from legato.studies.prepared import Source
        from legato.studies.sharpness_saved import Question, measure

        folder = str(self.data_dir) if self.data_dir else None
        source = Source(self.data, target=self.target, image_size=self.image_size, data_dir=folder)
        options = {
            "measures": self.measures, "radii": self.radius, "adaptive_radii": self.adaptive_radius, "steps": self.steps,
            "group_rows": self.group_rows, "products": self.products, "points": self.points, "mode": self.mode, "seed": self.seed,
        }  # fmt: skip
        question = Question(
            self.checkpoint,
            source,
            self.rows,
            self.split,
            self.between,
            self.batch_rows,
            self.model,
            self.device,
            options,
        )
        found = measure(question, progress=True)
        console = Console()
        console.print(_table(found))
        for note in found.notes:
            console.print(f"{note}\n", highlight=False, markup=False)
        console.print(found.verdict, style="bold", highlight=False, markup=False)
        print(f"\npage: {found.write(self.out)}")


def _table(found: "Report") -> "Table":
    from rich import box
    from rich.table import Table

    from legato.studies.sharpness_page import COLUMNS, cells

    title = f"{found.title}: loss {found.loss:.4g}, gradient norm {found.gradient_norm:.3g}, {found.rows} rows, {found.settings.mode} mode"
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    shown = [
        place for place, name in enumerate(COLUMNS) if name != "passes"
    ]  # the page has them, a terminal has no room
    for name in (COLUMNS[place] for place in shown):
        words = name in ("measure", "what")  # only words may be broken, numbers never
        table.add_column(name, justify="left" if words or name == "of" else "right", no_wrap=not words, overflow="fold")
    for reading in found.readings:
        told = cells(reading)
        table.add_row(*(told[place] for place in shown))
    return table
