"""`legato sharpness`: how sharp the minimum of a trained model is, by several measures, each with what it has to be read with."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from legato import errors
from legato.flatness.density import Density, spectral_density
from legato.flatness.lanczos import Eigenpairs
from legato.flatness.landscape import Landscape, Metric, Path, landscape, path_between
from legato.flatness.sharpness import Sharpness, check_ball, cut, m_sharpness, rise_standard_error, sam_sharpness
from legato.flatness.spectrum import block_eigenvalues, extreme_eigenvalues
from legato.flatness.surface import Loss, Surface
from legato.flatness.trace import hessian_trace
from legato.studies.sharpness_progress import Progress

LOW_LOSS = 0.02
"""Below this mean loss, sharpness of cross-entropy says little: it vanishes with the loss."""
NORMALISED = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm,
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What to measure, and how closely."""

    measures: tuple[str, ...] = (
        "sam",
        "pgd",
        "asam",
        "m-sharpness",
        "lambda",
        "trace",
        "density",
        "layers",
        "landscape",
    )
    radii: tuple[float, ...] = (0.05, 0.2)
    """Of the balls of sam, pgd and m-sharpness."""
    adaptive_radii: tuple[float, ...] = (0.5,)
    """Of asam's balls, which have no unit."""
    steps: int = 10
    """Of ascent, for pgd and asam."""
    group_rows: int = 64
    """m of m-sharpness."""
    eigenvalues: int = 3
    """How many of the largest; the smallest stands beside them."""
    tol: float = 1e-3
    """Relative tolerance of eigenvalues."""
    products: int = 200
    """Most products for the eigenvalues, for those of each layer, and for the trace."""
    trace_error: float = 0.05
    """Relative standard error of the trace at which to stop."""
    points: int = 15
    """On each axis of a landscape, odd."""
    span: float = 1.0
    """Of a landscape, in units of the filters' norms."""
    mode: str = "eval"
    """"eval", or "train" for batch normalisation by each batch's own statistics, and dropout."""
    seed: int = 0
    """Of everything that is drawn."""

    def __post_init__(self) -> None:
        for name in self.measures:
            if name not in MEASURES:
                raise errors.choice("measures", name, MEASURES)
        for name in ("measures", "radii", "adaptive_radii"):
            if not getattr(self, name):
                raise errors.argument(name, expected="one or more", got="none")
        for radius in (*self.radii, *self.adaptive_radii):
            check_ball(radius, self.steps, 0.0, 0)
        for name, least in (("steps", 2), ("group_rows", 1), ("eigenvalues", 1), ("products", 2), ("points", 3)):
            value = getattr(self, name)
            if value < least or (name == "points" and value % 2 == 0):
                odd = "an odd" if name == "points" else "a"
                raise errors.argument(name, expected=f"{odd} whole number >= {least}", got=value)


@dataclass(frozen=True)
class Reading:
    """One number, with what it has to be read with."""

    measure: str
    what: str
    value: float
    error: float | None
    """How far off it may be; None where that is not known."""
    error_of: str
    """What the error is: a standard error over rows, groups or probes, or a bound."""
    radius: float | None
    mode: str
    rows: int
    loss: float
    gradient_norm: float
    products: int
    """Products with the Hessian."""
    passes: int
    """Other passes over the data: values and gradients."""
    seconds: float


@dataclass(frozen=True)
class Report:
    """All that was measured of one model."""

    title: str
    settings: Settings
    weights: int
    rows: int
    loss: float
    gradient_norm: float
    readings: tuple[Reading, ...]
    notes: tuple[str, ...]
    """What a reader has to know before comparing these numbers with any others."""
    method: tuple[tuple[str, str], ...] = ()
    """Where the model and the data came from."""
    density: Density | None = None
    line: Landscape | None = None
    plane: Landscape | None = None
    path: Path | None = None

    @property
    def verdict(self) -> str:
        """The first numbers in words."""
        said = [f"The loss is {self.loss:.3g}"]
        by = {(r.measure, r.radius): r for r in reversed(self.readings)}
        balls = [r for (name, _), r in by.items() if name in ("pgd", "sam")]
        if balls:
            ball = min(balls, key=lambda r: (r.radius or 0.0, -r.value))
            said.append(f"within {ball.radius:g} of the weights it can rise by {ball.value:.3g} or more")
        if ("lambda", None) in by:
            said.append(f"the largest eigenvalue of its Hessian is {by['lambda', None].value:.3g}")
        words = "; ".join([said[0], " and ".join(said[1:])] if said[1:] else said)
        return (
            f"{words}. Measured on {self.rows} rows in {self.settings.mode} mode, where the gradient's norm is {self.gradient_norm:.3g}; "
            "by itself none of these numbers says how well the model generalises."
        )

    def write(self, folder: FilePath) -> FilePath:
        """Write sharpness.json, index.html and the plots; gives the path of index.html."""
        from legato.studies import sharpness_page

        return sharpness_page.write(self, folder)


def report(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Sequence[Any]],
    *,
    metric: Metric | None = None,
    between: nn.Module | None = None,
    title: str = "model",
    method: Sequence[tuple[str, str]] = (),
    progress: bool = False,
    **options: Any,
) -> Report:
    """Measure how sharp the minimum of a model is. The model is afterwards what it was, bit for bit.

    Args:
        model: any module with weights in float32 or float64.
        loss: `loss(output, targets) -> []`, the mean over a batch.
        batches: (inputs, targets, ...), the same rows each time they are gone through.
        metric: `(output, targets) -> mean over the rows`, to be drawn beside the loss, such as the share of wrong answers.
        between: another model of equal shape; adds the line from `model` to it.
        title, method: words for the page.
        progress: how far it is, on stderr.
        options: fields of `Settings`, by name.
    Raises: LegatoValueError or LegatoTypeError for an option that is unknown or out of range, fewer than 2 rows, and what `Surface`
        refuses.
    """
    for name in options:
        if name not in (known := [f.name for f in fields(Settings)]):
            raise errors.choice("option", name, known)
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    settings = Settings(**given)
    surface = Surface(model, loss, batches, settings.mode, seed=settings.seed)
    if surface.rows < 2:
        raise errors.argument("rows", expected="at least 2", got=surface.rows)
    at_start, slope = surface.value(), float(torch.linalg.vector_norm(surface.gradient()))
    asked = [name for name in MEASURES if name in settings.measures] + ["between"] * (between is not None)
    with warnings.catch_warnings(record=True) as said, Progress(asked, shown=progress) as bar:
        warnings.simplefilter("always", errors.LegatoWarning)
        job = _Job(surface, settings, at_start, slope, metric, between, bar.tick)
        readings = [reading for name in asked for reading in job.measured(name, bar)]
    notes = [*_notes(surface.model, job, readings), *dict.fromkeys(str(w.message) for w in said)]
    return Report(
        title, settings, surface.size, surface.rows, at_start, slope, tuple(readings), tuple(notes), tuple(method), **job.drawn
    )  # fmt: skip


@dataclass
class _Job:
    """One model under measurement."""

    surface: Surface
    settings: Settings
    loss: float
    gradient_norm: float
    metric: Metric | None
    other: nn.Module | None
    tick: Callable[[], None]
    drawn: dict[str, Any] = field(default_factory=dict)
    """What the page draws."""
    clock: float = 0.0

    def measured(self, name: str, bar: Progress) -> Iterator[Reading]:
        """The readings of one measure."""
        self.clock = time.perf_counter()
        bar.begin(name, PASSES[name](self.settings) if name in PASSES else None)
        yield from MEASURES[name](self) if name in MEASURES else _between(self)

    def dice(self) -> torch.Generator:
        """Each measure's own, so that none depends on which others were asked for."""
        return torch.Generator().manual_seed(self.settings.seed)

    def reading(
        self, measure: str, what: str, value: float, error: float | None = None, error_of: str = "", *,
        radius: float | None = None, products: int = 0, passes: int = 0,
    ) -> Reading:  # fmt: skip
        """With what it has to be read with, and the seconds since the last one."""
        before, self.clock = self.clock, time.perf_counter()
        known = error if error is not None and math.isfinite(error) else None
        return Reading(
            measure, what, value, known, error_of if known is not None else "", radius, self.settings.mode, self.surface.rows,
            self.loss, self.gradient_norm, products, passes, self.clock - before,
        )  # fmt: skip


def _ball(job: _Job, measure: str, what: str, found: Sharpness) -> Reading:
    error = rise_standard_error(job.surface, found.offset)
    passes = found.values + found.gradients + 2
    return job.reading(measure, what, found.sharpness, error, "over rows", radius=found.radius, passes=passes)


def _sam(job: _Job) -> Iterator[Reading]:
    for radius in job.settings.radii:
        yield _ball(job, "sam", "rise after one step", sam_sharpness(job.surface, radius))


def _pgd(job: _Job) -> Iterator[Reading]:
    steps = job.settings.steps
    for radius in job.settings.radii:
        yield _ball(job, "pgd", f"largest rise found, {steps} steps", sam_sharpness(job.surface, radius, steps))


def _asam(job: _Job) -> Iterator[Reading]:
    steps = job.settings.steps
    for radius in job.settings.adaptive_radii:
        found = sam_sharpness(job.surface, radius, steps, adaptive=True)
        yield _ball(job, "asam", f"largest rise found, {steps} steps, scaled ball", found)


def _m_sharpness(job: _Job) -> Iterator[Reading]:
    at = job.surface
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(at.seed)
        groups = [part for batch in at.batches for part in cut(batch, job.settings.group_rows)]
    for radius in job.settings.radii:
        found = m_sharpness(at.model, at.loss, groups, radius, mode=at.mode, seed=at.seed)
        what = f"one step a group of {found.group_rows} rows, mean"
        passes = found.values + found.gradients
        yield job.reading(
            "m-sharpness", what, found.sharpness, found.standard_error, "over groups", radius=radius, passes=passes
        )


def _lambda(job: _Job) -> Iterator[Reading]:
    ask = job.settings
    bottom = min(1, job.surface.size - 1)
    top = min(ask.eigenvalues, job.surface.size - bottom)
    found = extreme_eigenvalues(job.surface, top, bottom, ask.tol, max_products=ask.products, generator=job.dice())
    names = ["largest eigenvalue", *(f"eigenvalue {i}" for i in range(2, top + 1)), *["smallest eigenvalue"] * bottom]
    yield from _eigenvalues(job, "lambda", names, found)


def _eigenvalues(job: _Job, measure: str, names: Sequence[str], found: Eigenpairs) -> Iterator[Reading]:
    products = found.products
    for what, value, bound in zip(names, found.values.tolist(), found.residuals.tolist(), strict=True):
        yield job.reading(measure, what, value, bound, "bound", products=products)
        products = 0  # all come from the same ones


def _trace(job: _Job) -> Iterator[Reading]:
    ask = job.settings
    found = hessian_trace(job.surface, relative_error=ask.trace_error, max_products=ask.products, generator=job.dice())
    yield job.reading(
        "trace", "sum of the eigenvalues", found.trace, found.standard_error, "over probes", products=found.products
    )


def _density(job: _Job) -> Iterator[Reading]:
    probes = 3
    steps = min(40, max(2, job.settings.products // probes))
    found = job.drawn["density"] = spectral_density(job.surface, steps, probes, generator=job.dice())
    near = 0.01 * float(found.nodes.abs().max())
    shares = ((found.nodes.abs() <= near) * found.weights).sum(1)
    error = float(shares.std()) / math.sqrt(len(shares))
    what = "share below 1% of the largest size"
    yield job.reading("density", what, float(shares.mean()), error, "over probes", products=found.products)


def _layers(job: _Job) -> Iterator[Reading]:
    ask = job.settings
    for name, found in block_eigenvalues(
        job.surface, tol=ask.tol, max_products=ask.products, generator=job.dice()
    ).items():
        yield from _eigenvalues(
            job, "layers", [f"largest, layer {name}" if name else "largest, the whole model"], found
        )


def _landscape(job: _Job) -> Iterator[Reading]:
    ask = job.settings
    if all(p.dim() < 2 for p in job.surface.parameters):
        return
    for name, axes in (("line", 1), ("plane", 2)):
        found = landscape(
            job.surface, job.dice(), axes=axes, points=ask.points, span=ask.span, metric=job.metric, tick=job.tick
        )
        job.drawn[name] = found
        if axes == 1:
            rise = float(found.loss[[0, -1]].mean() - job.loss)
            what = f"mean rise at the ends of a random line, {ask.span:g} norms away"
            yield job.reading("landscape", what, rise, passes=ask.points)


def _between(job: _Job) -> Iterator[Reading]:
    assert job.other is not None
    found = job.drawn["path"] = path_between(
        job.surface, job.other, points=job.settings.points, metric=job.metric, tick=job.tick
    )
    passes = len(found.steps) * (2 if found.statistics == "re-estimated" else 1)
    yield job.reading("between", "barrier to the other model", found.barrier, passes=passes)


MEASURES: dict[str, Callable[[_Job], Iterator[Reading]]] = {
    "sam": _sam, "pgd": _pgd, "asam": _asam, "m-sharpness": _m_sharpness, "lambda": _lambda, "trace": _trace, "density": _density,
    "layers": _layers, "landscape": _landscape,
}  # fmt: skip
PASSES: dict[str, Callable[[Settings], int]] = {
    "landscape": lambda ask: ask.points + ask.points**2,
    "between": lambda ask: ask.points,
}
"""Of the measures whose length is known before."""


def error_share(output: Tensor, target: Tensor) -> Tensor:
    """Share of rows whose largest score is not at their class."""
    return (output.argmax(1) != target).double().mean()


def _notes(model: nn.Module, job: _Job, readings: Sequence[Reading]) -> Iterator[str]:
    if job.loss < LOW_LOSS:
        yield (
            f"The loss is {job.loss:.2g}. Near 0 the curvature of cross-entropy vanishes together with the loss, whatever the weights: "
            "do not compare these numbers with those of a model with another loss."
        )
    if any(isinstance(module, NORMALISED) for module in model.modules()):
        yield (
            "Some layers are normalised, so that the size of the weights before them means nothing, but decides every number here except "
            "asam's and the landscape's: halve those weights, and their eigenvalues are four times as large."
        )
    slopes = [
        r for r in readings if r.measure in ("sam", "pgd") and (r.radius or 0) * job.gradient_norm > 0.5 * r.value > 0
    ]
    if slopes:
        balls = ", ".join(dict.fromkeys(f"{r.radius:g}" for r in slopes))
        yield (
            f"Within {balls} of the weights most of the rise is the slope, radius times the gradient's norm: on these rows the weights are "
            "not at a minimum."
        )
