"""`legato labels`: which labels look wrong."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import tyro

if TYPE_CHECKING:
    from rich.table import Table

    from legato.studies.labels import Found

Text: TypeAlias = Annotated[str | None, tyro.conf.arg(metavar="TEXT")]
SHOWN = 10


@dataclass(frozen=True)
class Labels:
    """Which labels of my data look wrong?

    Trains small networks on all rows, records what they say of each row on the way, and ranks the labels that they take long to
    believe. Writes suspects.csv and a page. A suspicion is no proof; with --label-noise it first flips labels that it then has to find.
    """

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")] = "fashion-mini"
    """A name from `legato data`, a CSV or Parquet file (with --target), an .npz file with x and y, or a folder with one sub-folder of pictures a class."""
    objective: Annotated[str, tyro.conf.arg(metavar="OBJECTIVE")] = "ce"
    """What the networks are trained with; `legato objectives` lists them."""
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")] = "auto"
    """auto, mlp, convnet, resnet, or pkg.module:factory with factory(input_shape, num_classes) -> torch.nn.Module."""
    epochs: Annotated[int, tyro.conf.arg(metavar="N")] = 10
    """Passes through the data. Few are better: in many, wrong labels are learnt by heart."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 64
    """Rows a step."""
    learning_rate: Annotated[float | Literal["auto"], tyro.conf.arg(metavar="auto|RATE")] = "auto"
    """Of SGD with momentum, constant. auto: 0.01."""
    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """Trainings whose records are averaged."""
    label_noise: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.0
    """Flip this share of the labels first, and say how many of them are found."""
    noise_kind: Literal["symmetric", "pair", "instance"] = "symmetric"
    """symmetric: to any other class; pair: to the next class; instance: to a class that depends on the row."""
    measure: Literal["loss", "confidence", "margin", "forgetting"] = "margin"
    """What to rank by. margin: area under the margin; loss: mean cross-entropy; confidence: mean probability; forgetting: forgotten answers."""
    top: Annotated[int, tyro.conf.arg(metavar="N")] = 100
    """How many suspects suspects.csv holds; 0 writes every row."""
    target: Text = None
    """Column of a table that holds the class."""
    classes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CLASS ...")] = ()
    """Keep only these classes."""
    image_size: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Resize pictures to this many pixels a side."""
    data_dir: Text = None
    """Where to look for data sets first."""
    download: bool = False
    """Allow a data set to be fetched from the network."""
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "cpu"
    """Where to train: cpu, cuda, cuda:1, mps."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of the page and suspects.csv. Default: runs/labels-NAME-OF-DATA."""

    def run(self) -> None:
        """Print the first suspects, and where the list and the page are."""
        from rich.console import Console

        from legato.studies import labels, labels_page
        from legato.studies.prepared import Source

        if self.top < 0:
            from legato import errors

            raise errors.argument("top", expected="a whole number >= 0", got=self.top)
        source = Source(
            self.data, self.target, classes=self.classes, image_size=self.image_size, data_dir=self.data_dir, download=self.download
        )  # fmt: skip
        found = labels.find(
            labels.Question(
                source, self.objective, self.model, self.epochs, self.batch_size,
                labels.LEARNING_RATE if self.learning_rate == "auto" else self.learning_rate,
                self.seeds, self.label_noise, self.noise_kind, self.measure, self.device, progress=True,
            )
        )  # fmt: skip
        folder = self.out or Path("runs") / f"labels-{Path(self.data).stem}"
        page = labels_page.write(found, folder, self.top)
        console = Console()
        console.print(*_tables(found))
        console.print(f"{found.verdict}\n", style="bold", highlight=False, markup=False)
        print(f"suspects: {folder / 'suspects.csv'}\npage: {page}")


def _tables(found: "Found") -> "list[Table]":
    from rich import box
    from rich.markup import escape
    from rich.table import Column, Table

    from legato.studies.labels import words_of

    suspects = Table(
        "rank", "row", "given", "suggested", "suspicion", box=box.SIMPLE_HEAD, title="The most suspicious labels"
    )
    for rank, place in enumerate(found.order[:SHOWN], start=1):
        row = found.names[place] if found.names else str(found.row[place])
        given, suggested = (
            escape(words_of(found.class_names, code)) for code in (found.given[place], found.suggested[place])
        )
        suspects.add_row(str(rank), escape(row), given, suggested, f"{found.suspicion[place]:.3f}")
    scores = found.scores()
    if not scores:
        return [suspects]
    numbers = (Column(name, no_wrap=True) for name in ("AP", "AUC", "AP of one seed", "AUC of one seed"))
    title = f"Flipped labels found: average precision and area under the curve; a random ranking has {found.flipped.mean():.3f} and 0.5"
    test = Table("measure", *numbers, box=box.SIMPLE_HEAD, title=title, pad_edge=False, padding=(0, 1, 0, 0))
    for score in scores:
        ones = (score.precision_of_one.text(), score.auc_of_one.text())
        test.add_row(score.measure, f"{score.precision:.3f}", f"{score.auc:.3f}", *ones)
    return [suspects, test]
