"""Tables that come with the R packages kernlab and mlbench, read from Debian's packages of them without R."""

import lzma
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from legato import errors
from legato.data import places
from legato.data.encoding import encode
from legato.data.pool import Array, Labelled, Pool, fingerprint
from legato.data.tabular import columns_of

PARTS = ("inputs", "targets", "classes", "features", "notes")
LIBRARIES = ("/usr/lib/R/site-library", "/usr/local/lib/R/site-library", "/usr/lib/R/library")
UCI = "see UCI"
NOT_STATED = "not stated"


@dataclass(frozen=True)
class RTable:
    """A data frame of an R package, and how a classification task is made of it."""

    package: str
    frame: str
    """The name of the .rda file and of the data frame in it."""
    target: str
    rows: int
    columns: int
    """Of the matrix, after text has become columns."""
    sha256: str
    """Fingerprint of inputs and targets, as `Provenance.sha256` has it."""
    citation: str
    values: int = 2
    """Classes of the target."""
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of each class -> values of the target, in the order of the class indices; rows of other values are left out.
    Empty: every value is a class."""
    licence: str = UCI
    drop: tuple[str, ...] = ()
    """Columns that are no features."""
    notes: tuple[str, ...] = ()
    """What a reader of results should know."""


LETTER = RTable(
    "mlbench", "LetterRecognition", "lettr", 20000, 16, "7e38f157189cdd919a2b7ac25b2bf69bc56e464271ab528fdd4bbae096eabee9",
    "Frey and Slate 1991, Letter Recognition Using Holland-style Adaptive Classifiers, Machine Learning 6", 26,
)  # fmt: skip
SATELLITE = RTable(
    "mlbench", "Satellite", "classes", 6435, 36, "a16ee4bed6e41860e0e779880832943cb80d2da1e6e26c9cd2731baaea113088",
    "Srinivasan 1993, Statlog (Landsat Satellite), UCI", 6,
)  # fmt: skip
DNA = RTable(
    "mlbench", "DNA", "Class", 3186, 180, "3849c1f92733c66a3579c842bfd30077fef4fbae466217b1f1ffe4cccc3cbb5e",
    "Noordewier, Towell, Shavlik 1991, Molecular Biology (Splice-junction Gene Sequences), UCI, in Statlog's form", 3,
)  # fmt: skip
POOR = ("-10.000)", "[10.000-15.000)", "[15.000-20.000)", "[20.000-25.000)", "[25.000-30.000)", "[30.000-40.000)", "[40.000-50.000)")  # fmt: skip
TABLES: dict[str, RTable] = {
    "spam": RTable(
        "kernlab", "spam", "type", 4601, 57, "fc7e8fbd9a58605fba76981abf050bedd25c896ab07afde382430c4879ea6e77",
        "Hopkins, Reeber, Forman, Suermondt 1999, Spambase, UCI",
        classes={"nonspam": ("nonspam",), "spam": ("spam",)},
    ),
    "musk": RTable(
        "kernlab", "musk", "Class", 476, 166, "ae32eddfc97355ff5f4c912b047290b027ca48f2c2a07694160e33ab056b3b84",
        "Chapman and Jain 1994, Musk (Version 1), UCI",
        classes={"non-musk": ("0",), "musk": ("1",)},
        notes=("rows are 476 shapes of 92 molecules; which belong together is not recorded, so one molecule can be in training and test",),
    ),
    "ticdata": RTable(
        "kernlab", "ticdata", "CARAVAN", 9822, 565, "a6c13be3480990b759cbee5d7400bc40dfd5f0d0499bd41884f526a13f454bc0",
        "van der Putten and van Someren 2000, CoIL Challenge 2000: The Insurance Company Case",
        classes={"no insurance": ("noinsurance",), "insurance": ("insurance",)},
        notes=("1,442 rows repeat an earlier row, so a row can be in training and test",),
    ),
    "promotergene": RTable(
        "kernlab", "promotergene", "Class", 106, 228, "cd557dbb25a2dbf069248ab3e34b9e90ea0dfd9169b491f1b7a3a02276f8fd4e",
        "Towell, Shavlik, Noordewier 1990, Refinement of Approximate Domain Theories by Knowledge-Based Neural Networks, AAAI-90",
        classes={"no promoter": ("-",), "promoter": ("+",)},
    ),
    "income": RTable(
        "kernlab", "income", "INCOME", 8993, 84, "b695a5b1eac820b0282952a851693ec101df4e37bad18bcb6af137754aa5a6ff",
        "Hastie, Tibshirani, Friedman 2001, The Elements of Statistical Learning (marketing survey of 1987)",
        classes={"below 50,000": POOR, "50,000 or more": ("[50.000-75.000)", "[75.000-")},
        licence=NOT_STATED,
        notes=(
            "the nine ranges of yearly household income were made two: below 50,000, and 50,000 or more",
            "668 rows repeat an earlier row, so a row can be in training and test",
        ),
    ),
    "sonar": RTable(
        "mlbench", "Sonar", "Class", 208, 60, "c73a9370f3a7edcc1fa06de113f845356ce8b7ac43c1548ad29529108ee7d70d",
        "Gorman and Sejnowski 1988, Analysis of Hidden Units in a Layered Network Trained to Classify Sonar Targets, Neural Networks 1",
        classes={"rock": ("R",), "mine": ("M",)},
    ),
    "ionosphere": RTable(
        "mlbench", "Ionosphere", "Class", 351, 34, "6caf2633ba61241e393b42e2902d47f0f9bd9db03a2ce53b71c5b675b4622297",
        "Sigillito, Wing, Hutton, Baker 1989, Classification of Radar Returns from the Ionosphere Using Neural Networks",
        classes={"bad": ("bad",), "good": ("good",)},
        notes=("column V2 is 0 in every row",),
    ),
    "pima": RTable(
        "mlbench", "PimaIndiansDiabetes", "diabetes", 768, 8, "335098261873b9a8c08f617bb2cbba5e43f303c42e3a534ffa02470258312311",
        "Smith, Everhart, Dickson, Knowler, Johannes 1988, Using the ADAP Learning Algorithm to Forecast the Onset of Diabetes Mellitus",
        classes={"negative": ("neg",), "positive": ("pos",)},
        licence=NOT_STATED,
        notes=("zeros in glucose, pressure, triceps, insulin and mass mean that nothing was recorded; they were left as they are",),
    ),
    "breast-cancer": RTable(
        "mlbench", "BreastCancer", "Class", 699, 9, "7c2bbf57c9736ad251190ace03c6275727f25d118854e2a01a6842dd3db1aa85",
        "Wolberg and Mangasarian 1990, Multisurface Method of Pattern Separation for Medical Diagnosis, PNAS 87",
        classes={"benign": ("benign",), "malignant": ("malignant",)},
        drop=("Id",),
        notes=("Id was left out: it names the sample; 645 different ones in 699 rows",),
    ),
    "house-votes": RTable(
        "mlbench", "HouseVotes84", "Class", 435, 48, "efe87073daaae16b1d308488e9e4b2b967c8e4202ddc56cba1a9584908054f5a",
        "Schlimmer 1987, Congressional Voting Records of 1984, UCI",
        classes={"democrat": ("democrat",), "republican": ("republican",)},
    ),
    "letter": replace(
        LETTER, rows=1497, sha256="5de9c2f64d6144764d0362673c760af3bfb03281deaf453662d47b924aa5653a", classes={"K": ("K",), "R": ("R",)},
        notes=("the letters K and R of letter-26",),
    ),
    "satellite": replace(
        SATELLITE, rows=2134, sha256="c304b22a98d87482a281afa938b37ce7ff66b14a838f0de6a7fa40f0dc6fc82a", classes={"damp grey soil": ("damp grey soil",), "very damp grey soil": ("very damp grey soil",)},
        notes=("the classes damp grey soil and very damp grey soil of satellite-6",),
    ),
    "dna": replace(
        DNA, sha256="ece51a8f20664529f0ca9524990aefcd0e562d7767e63502f1b1fb37849fa3dd", classes={"neither": ("n",), "junction": ("ei", "ie")},
        notes=("the two kinds of splice junction in dna-3, ei and ie, were made one class",),
    ),
    "letter-26": LETTER,
    "satellite-6": SATELLITE,
    "dna-3": DNA,
}  # fmt: skip


def read(name: str, data_dir: Path | None, download: bool) -> Pool:
    """One of `TABLES`, from the first place that has it.

    Raises: DataNotFoundError with every place tried and the command that fetches it; MissingExtraError without rdata.
    """
    table = TABLES[name]
    (inputs, targets, classes, features, notes), origin = on_disk(name).read(data_dir, download)
    pool = Pool(
        name=name,
        rows=Labelled(inputs, targets),
        class_names=tuple(classes.tolist()),
        feature_names=tuple(features.tolist()),
        origin=origin,
        licence=table.licence,
        citation=table.citation,
        notes=(*table.notes, *notes.tolist()),
    )
    if pool.sha256 == table.sha256:
        return pool
    return replace(pool, notes=(*pool.notes, f"other rows than those of the release of {table.package} that legato was tried with"))  # fmt: skip


def on_disk(name: str) -> places.OnDisk:
    """Where a table is looked for, and how it is read."""
    table = TABLES[name]
    below = f"{table.package}/data"
    return places.OnDisk(
        name=name,
        parts=PARTS,
        layouts=(".", "data", below, *(f"{library[1:]}/{below}" for library in LIBRARIES)),
        system=tuple(places.Place(f"system: r-cran-{table.package}", Path(library, below)) for library in LIBRARIES),
        find=partial(_find, table),
        decode=partial(_decode, table),
        is_known=partial(_is_known, table),
        fix=f"{command(table.package)}, or name the folder of {table.frame}.rda with data_dir",
    )


def command(package: str) -> str:
    """The line that fetches an R package's data without root, to where legato looks."""
    folder = places.shown(places.cache_folder())
    return f"mkdir -p {folder} && apt-get download r-cran-{package} && dpkg-deb -x r-cran-{package}_*.deb {folder}"


def _find(table: RTable, folder: Path) -> tuple[Path, ...] | None:
    file = folder / f"{table.frame}.rda"
    return (file,) if file.is_file() else None


def _is_known(table: RTable, arrays: list[Array]) -> bool:
    return fingerprint(arrays[:2]) == table.sha256


def _decode(table: RTable, files: tuple[Path, ...]) -> list[Array]:
    """The matrix, the class indices, and the words of `PARTS`."""
    columns = columns_of(_frame(table, files[0]))
    for name in (table.target, *table.drop):
        if name not in columns:
            raise errors.DataError(errors.message(files[0].name, expected=f"a column {name}", got=", ".join(columns)))
    values = columns[table.target].values
    classes = table.classes or {value: (value,) for value in sorted(set(values))}
    code = {value: i for i, group in enumerate(classes.values()) for value in group}
    codes = np.array([code.get(value, -1) for value in values], dtype=np.int64)
    matrix, names, notes = encode([columns], [name for name in columns if name not in (table.target, *table.drop)])
    kept = codes >= 0
    words = [np.array(list(text), dtype=str) for text in (classes, names, notes)]
    return [matrix[kept], codes[kept], *words]


def _frame(table: RTable, file: Path) -> Any:
    rdata = errors.require("rdata", extra="tabular")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of attributes of R that no data frame needs
            return rdata.read_rda(file)[table.frame]
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, lzma.LZMAError, zlib.error) as problem:
        raise errors.DataError(
            f"{file.name}: not a readable R file with the data frame {table.frame}: {problem}. Fix: fetch it again."
        ) from problem
