"""A study that is no comparison of objectives: trials of its own, its own measures of each claim, the same three forms."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from legato import errors
from legato.lab import claims
from legato.lab.claims import Judged
from legato.lab.page import Page, Panel
from legato.lab.runner import Study
from legato.lab.runner import run as run_study
from legato.lab.store import Store
from legato.lab.trial import Outcome, Record
from legato.studies import study_page, verdicts
from legato.studies.spec import Form


@dataclass(frozen=True)
class Experiment:
    """A paper's study, made of any trials."""

    paper: str
    """arXiv number."""
    title: str
    trial: Callable[[Any, Path], Outcome]
    """(config, scratch folder) -> what it measured; a function of a module, since workers are sent it by name."""
    trials: Callable[[Form, Mapping[str, Any], Sequence[Record]], Sequence[Any]]
    """(form, committed values, records so far) -> every config that can be named now; asked again until nothing is new. The committed
    values are those of `tune`, and empty but for the form `confirm`."""
    measures: Callable[[Sequence[Record]], Mapping[str, ArrayLike]]
    """Claim id -> [S] by how much the claim holds, one number a seed, in the claim's unit."""
    panels: Callable[[Sequence[Record]], Sequence[Panel]]
    """Sections of the page, drawn from the records alone."""
    tune: Callable[[Sequence[Record]], Mapping[str, Any]] | None = None
    """What the form `full` chose: plain data, to be committed as studies/tuned/NAME.json. None where nothing is chosen."""
    schema: int = 1
    """To be raised when the meaning of a config changes."""
    cut: str = ""
    """What the committed run leaves out, and why."""


def measure(name: str, experiment: Experiment, form: Form, folder: Path, *, workers: int) -> list[Record]:
    """Finish the trials of a form in `folder`.

    Raises: LegatoValueError when `confirm` has no committed values yet.
    """
    values = committed(name) if form == "confirm" and experiment.tune else {}
    store = Store(folder, name, experiment.schema)
    store.write_config({"name": name, "form": form})
    asked = Study(experiment.trial, partial(experiment.trials, form, values))
    return run_study(asked, store, workers=workers)


def judge(name: str, experiment: Experiment, records: Sequence[Record]) -> list[Judged]:
    """Give every claim of the paper that this study looks at its verdict, corrected over all of them."""
    return claims.judge(verdicts.claims_for(name, experiment.paper), experiment.measures(records))


def page(
    name: str, experiment: Experiment, form: Form, records: Sequence[Record], judged: Sequence[Judged], machine: str
) -> Page:
    """The claims with their verdicts on top, then what the experiment has to show."""
    seconds = sum(record.seconds for record in records)
    method = (
        ("trials", str(len(records))),
        ("machine", machine),
        *study_page.method_lines(name, experiment.paper, experiment.cut, form, seconds),
    )
    return study_page.assemble(name, experiment.title, form, judged, experiment.panels(records), method)


def committed(name: str) -> dict[str, Any]:
    """What the form `full` chose and the package holds. Raises LegatoValueError when there is nothing."""
    try:
        found: dict[str, Any] = json.loads((files("legato.studies") / "tuned" / f"{name}.json").read_text("utf-8"))
    except FileNotFoundError as problem:
        fix = f"legato study {name}, then commit its tuned.json as studies/tuned/{name}.json"
        raise errors.argument("form", expected="committed values", got="none", fix=fix) from problem
    return found
