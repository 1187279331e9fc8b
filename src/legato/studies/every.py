"""`legato study all`: a form of every study, one after the other; what one lacks stops none of the others."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from legato import errors
from legato.lab.claims import Judged
from legato.studies import experiment, study
from legato.studies.experiment import Experiment
from legato.studies.spec import Form

ALL = "all"
"""The name that stands for every study."""
ABSENT = (errors.DataNotFoundError, errors.MissingExtraError)
"""Errors that say that this machine has no such data or package; nothing is wrong then."""


@dataclass(frozen=True)
class Done:
    """What came of a study."""

    name: str
    seconds: float = 0.0
    path: Path | None = None
    """Its page, or tuned.json of the form `full`; None where it did not run to the end."""
    judged: Sequence[Judged] = ()
    absent: str = ""
    """What it needs and is not here, in words; it was left out."""
    problem: str = ""
    """What stopped it, in words."""


def run(form: Form, *, workers: int | None = None, out: Path | None = None, packed: bool = False) -> Iterator[Done]:
    """Finish a form of every study, in the table's order; each is given back as soon as it is done.

    Args:
        workers: processes side by side; default: the number of cores.
        out: each study has the folder OUT/NAME; default runs/study-all-FORM.
        packed: also write each store as one file, OUT/NAME.jsonl.xz.
    """
    folder = out or Path("runs") / f"study-{ALL}-{form}"
    for name in study.STUDIES:
        start = time.perf_counter()
        try:
            _need(name, form)
            path, judged = study.run(name, form, workers=workers, out=folder / name, packed=packed)
        except (*ABSENT, Untuned) as problem:
            yield Done(name, absent=str(problem))
        except errors.LegatoError as problem:
            yield Done(name, time.perf_counter() - start, problem=str(problem))
        else:
            yield Done(name, time.perf_counter() - start, path, judged)


class Untuned(Exception):
    """A study that tunes has no committed values yet; the text says which command makes them."""


def _need(name: str, form: Form) -> None:
    """Raises Untuned where `confirm` has nothing to confirm."""
    spec = study.named(name)
    if isinstance(spec, Experiment):
        tunes = spec.tune is not None
    else:
        tunes = any(part.fixed_rate is None for part in spec.parts.values())
    if form != "confirm" or not tunes:
        return
    try:
        experiment.committed(name)
    except errors.LegatoValueError as problem:
        raise Untuned(str(problem)) from problem
