"""`legato distill`: make a data set tiny."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from legato.distillation import Told


@dataclass(frozen=True)
class Distill:
    """Make a data set tiny: a few learned images a class, on which training comes close to training on all of them.

    Trains students on the result, on random, k-means and herding images and on all the data, and writes a page. The same command goes on
    where a stopped one was; a longer --minutes goes on from a finished one.
    """

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")] = "digits"
    """A name from `legato data`; a .csv, .parquet or .npz file; or a folder with one sub-folder of pictures a class."""
    ipc: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Images a class."""
    minutes: Annotated[float | None, tyro.conf.arg(metavar="N")] = 5.0
    """How long to learn, experts included; the comparison comes on top."""
    steps: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Outer steps, in the place of minutes: then the result is the same on every run."""
    target: Annotated[str | None, tyro.conf.arg(metavar="COLUMN")] = None
    """Of a table: the column of the class."""
    image_size: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Resize pictures to this many pixels a side."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where to look first."""
    net: Annotated[str, tyro.conf.arg(metavar="NET")] = "auto"
    """blocks (the ConvNet of the papers, for pictures), mlp, or pkg.module:factory. auto: blocks for pictures, else mlp."""
    width: Annotated[int, tyro.conf.arg(metavar="N")] = 16
    """Channels of blocks; the papers have 128."""
    depth: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of blocks. Default: by the size of the pictures."""
    parts: Literal["mtt", "ast"] = "mtt"
    """mtt: trajectory matching. ast: with all parts of AST at their official values, which are for long runs."""
    init: Literal["random", "kmeans-pixel", "kmeans-logit", "noise"] | None = None
    """What the images begin as. Default: random real ones, or what the parts say."""
    experts: Annotated[int, tyro.conf.arg(metavar="N")] = 5
    """Training runs to learn from, as many as fit in a third of the minutes."""
    zca: bool = False
    """White images: for colour."""
    augment: bool = False
    """DSA: for pictures that may be mirrored, turned and cut."""
    students: Annotated[int, tyro.conf.arg(metavar="N")] = 5
    """Networks trained for each arm and learning rate."""
    cross: bool = False
    """Also train other networks: mlp, wider, deeper, layer norm, resnet. Slow."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Of everything that is drawn, and of the validation cut."""
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "cpu"
    """Where to train: cpu, cuda, cuda:1, mps."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/distill")
    """Folder of tiny.safetensors, tiny.json, the page and, for pictures, tiny.png."""

    def run(self) -> None:
        """Distil, compare, and say where it is."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        from legato import data
        from legato.studies import distil, distil_page

        splits = data.load(
            self.data, target=self.target, image_size=self.image_size, seed=self.seed, data_dir=self.data_dir
        )
        asked = self._asked()
        print(
            f"{self.data}: {len(splits.train)} rows to learn from, {len(splits.validation)} to choose, {len(splits.test)} to report"
        )
        columns = (
            TextColumn("{task.description:8}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}", markup=False),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            tasks = {
                phase: bar.add_task(phase, total=1.0, words="", start=False)
                for phase in ("experts", "images", "students")
            }

            def log(told: "Told") -> None:
                bar.start_task(tasks[told.phase])
                bar.update(tasks[told.phase], completed=told.done, words=told.words)

            found = distil.make(splits, asked, self.out / "run", log)
        self.out.mkdir(parents=True, exist_ok=True)
        found.tiny.save(self.out / "tiny.safetensors")
        if splits.is_image:
            found.tiny.grid(self.out / "tiny.png")
        path = distil_page.write(found, asked, f"{self.data}, {self.ipc} a class", self._command(), self.out)
        console = Console()
        console.print(_table(distil_page.table(found.arms)))
        console.print(distil_page.verdict(found), style="bold", highlight=False, markup=False)
        print(f"\nset: {self.out / 'tiny.safetensors'}\npage: {path}")

    def _asked(self) -> Any:
        from legato.distillation import Schooling, preset
        from legato.studies.distil import Asked

        recipe, settings = preset(self.parts)
        settings = replace(settings, seed=self.seed, augment=self.augment, init=self.init or settings.init)
        return Asked(
            ipc=self.ipc, minutes=None if self.steps else self.minutes, steps=self.steps, net=self.net, width=self.width, depth=self.depth,
            settings=settings, recipe=replace(recipe, augment=self.augment), schooling=Schooling(augment=self.augment),
            experts=self.experts, zca=self.zca, students=self.students, cross=self.cross, device=self.device,
        )  # fmt: skip

    def _command(self) -> str:
        """What to type for the same again: what differs from the defaults, and no path of this machine."""
        told = [f"legato distill {Path(self.data).name}"]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("data", "data_dir", "out") and value != field.default:
                option = f"--{field.name.replace('_', '-')}"
                told.append(option if value is True else f"{option} {value}")
        return " ".join(told)


def _table(shown: Any) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(shown.columns):
        table.add_column(name, justify="right" if place else "left")
    for row in shown.rows:
        table.add_row(*(cell.text for cell in row))
    return table
