"""How many Hessian products the top eigenvalue costs: ours, and what a user would take instead."""

import copy
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from legato.flatness.lanczos import RULES
from legato.flatness.spectrum import top_eigenvalues
from legato.flatness.surface import Surface
from legato.nets import build

NETS: dict[str, tuple[int, ...]] = {"mlp": (64,), "convnet": (1, 8, 8)}
CLASSES, EPOCHS, TRAINING, ROWS = 10, 5, 1500, 500
ERROR = 1e-6
"""Of the eigenvalue, relative to it."""
TOLERANCES = (1e-1, 1e-2, 3e-3, 1e-3, 1e-4, 1e-6)
"""What a solver is told; with the fewest products of those that end within ERROR it is compared."""
BASES = (6, 8, 10, 20)
"""Vectors between two restarts of eigsh; 20 is its default."""
SEEDS = (0, 1, 2)
Run = tuple[int, float]
"""Products, and the eigenvalue they led to."""
Solver = Callable[["Problem", int], list[Run]]


@dataclass(frozen=True, eq=False)
class Problem:
    """A trained network on digits, in float64, so that no solver is judged by its rounding."""

    surface: Surface
    start: NDArray[np.float64]
    """The start vector that ours draws from the seed, the same for all who take one."""
    true: float
    """The top eigenvalue, by a residual of 1e-12."""


@dataclass(frozen=True)
class ProductRow:
    """Ours against a peer on one network: medians over start vectors."""

    part: str
    """What was measured."""
    peer: str
    """What it was measured against."""
    shape: tuple[int, ...]
    """(trainable weights,)."""
    products: float
    """Of ours to the error, at its best rule and tolerance."""
    peer_products: float | None
    """Of the peer, at its best setting; None where no setting reached the error, or where the peer was not run."""
    asked: float
    """Of ours when it is asked for that error and stops by itself, rule "value"."""
    bar: float | None = None
    """The largest ratio of products that we ask for."""
    installed: bool = True
    """Whether the peer was run."""
    note: str = ""
    """What to know about the peer's number, or why there is none."""

    @property
    def met(self) -> bool | None:
        """Whether ours took at most the bar times the products of the peer; None without a bar or a peer."""
        if self.bar is None or not self.installed:
            return None
        return self.peer_products is None or self.products <= self.bar * self.peer_products


@dataclass(frozen=True)
class ProductCase:
    """One such comparison, before it is measured."""

    part: str
    peer: str
    net: str
    solver: Solver
    needs: str = ""
    """The module that the peer comes in."""
    bar: float | None = None
    note: str = ""

    def measure(self, seconds: float = 0.0) -> ProductRow:
        """Products of both; they are counted, so `seconds` is of no use here."""
        problems = [problem(self.net, seed) for seed in SEEDS]
        fill = partial(
            ProductRow, self.part, self.peer, (problems[0].surface.size,), _median(ours, problems),
            asked=_median(asked, problems), bar=self.bar,
        )  # fmt: skip
        if self.needs and find_spec(self.needs) is None:
            return fill(peer_products=None, installed=False, note="not installed")
        found = _median(self.solver, problems)
        return fill(peer_products=found if found < math.inf else None, note=self.note)


def cases() -> list[ProductCase]:
    """Every comparison of the top eigenvalue; a peer that is not installed has a row that says so."""
    told = "stopped by the true value: it has no rule of its own"
    short = "its vectors are 1e-6 short of length 1, so its values are 2e-6 too small"
    peers: list[tuple[str, Solver, str, float | None, str]] = [
        ("scipy eigsh on our products", scipy_eigsh, "", 1.0, ""),
        ("curvlinops + scipy eigsh", curvlinops_eigsh, "curvlinops", 1.0, ""),
        ("power iteration", power_iteration, "", 0.5, told),
        ("hessian-eigenthings Lanczos", eigenthings_lanczos, "hessian_eigenthings", None, told),
        ("hessian-eigenthings power iteration", eigenthings_power, "hessian_eigenthings", 0.5, ""),
        ("PyHessian", pyhessian_power, "pyhessian", 0.5, short),
    ]
    part = f"top eigenvalue to {ERROR:g}"
    return [
        ProductCase(f"{part}, {net}", name, net, solver, needs, bar, note)
        for net in NETS
        for name, solver, needs, bar, note in peers
    ]


@cache
def problem(net: str, seed: int) -> Problem:
    """The network after a few epochs of SGD, its loss on some of the rows, and one of the start vectors."""
    surface, true = _trained(net)
    return Problem(surface, torch.randn(1, surface.size, generator=_generator(seed))[0].double().numpy(), true)


@cache
def _trained(net: str) -> tuple[Surface, float]:
    digits = load_digits()
    inputs = torch.tensor(digits.data[:TRAINING] / 16, dtype=torch.float32).view(-1, *NETS[net])
    target = torch.tensor(digits.target[:TRAINING])
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = build(net, NETS[net], CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(EPOCHS):
        for rows in torch.randperm(TRAINING, generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[rows]), target[rows]).backward()
            optimizer.step()
    surface = Surface(model.double(), F.cross_entropy, [(inputs[:ROWS].double(), target[:ROWS])])
    return surface, float(top_eigenvalues(surface, tol=1e-12).values[0])


def ours(task: Problem, seed: int) -> list[Run]:
    """`top_eigenvalues` by either rule, at the same tolerances as the peers."""
    found = [
        top_eigenvalues(task.surface, tol=tol, rule=rule, generator=_generator(seed))
        for tol in TOLERANCES
        for rule in RULES
    ]
    return [(pairs.products, float(pairs.values[0])) for pairs in found]


def asked(task: Problem, seed: int) -> list[Run]:
    """`top_eigenvalues(surface, tol=1e-6, rule="value")`, as a user calls it who knows no more."""
    pairs = top_eigenvalues(task.surface, tol=ERROR, rule="value", generator=_generator(seed))
    return [(pairs.products, float(pairs.values[0]))]


def scipy_eigsh(task: Problem, seed: int) -> list[Run]:
    """scipy's ARPACK over `surface.product`."""
    with task.surface.held() as product:
        return _eigsh(lambda v: product(torch.from_numpy(np.ascontiguousarray(v))).numpy(), task)


def curvlinops_eigsh(task: Problem, seed: int) -> list[Run]:
    """scipy's ARPACK over the Hessian of curvlinops."""
    surface = task.surface
    hessian = import_module("curvlinops").HessianLinearOperator(
        surface.model.eval(), nn.CrossEntropyLoss(), surface.parameters, surface.batches, check_deterministic=False
    )
    return _eigsh(hessian.to_scipy(np.float64).matvec, task)


def _eigsh(product: Callable[[NDArray[np.float64]], NDArray[np.float64]], task: Problem) -> list[Run]:
    runs = []
    for basis in BASES:
        for tol in TOLERANCES:
            counted = _Counted(product)
            operator = LinearOperator((len(task.start), len(task.start)), matvec=counted, dtype=np.float64)
            (value,) = eigsh(operator, k=1, which="LA", tol=tol, ncv=basis, v0=task.start, return_eigenvectors=False)
            runs.append((counted.calls, float(value)))
    return runs


def power_iteration(task: Problem, seed: int) -> list[Run]:
    """v <- H v / |H v|, value v' H v, stopped by the true value, as no rule of its own could do better."""
    vector, runs = torch.from_numpy(task.start / np.linalg.norm(task.start)), []
    with task.surface.held() as product:
        for step in range(1, 301):
            image = product(vector)
            runs.append((step, float(vector @ image)))
            vector = image / image.norm()
            if _fewest(runs, task.true) < math.inf:
                break
    return runs


def eigenthings_lanczos(task: Problem, seed: int) -> list[Run]:
    """The Lanczos of hessian-eigenthings, whose number of steps the user sets."""
    package, operator = _eigenthings(task)
    runs = []
    for steps in range(2, 21):
        found = package.lanczos(operator, k=1, max_iter=steps, which="LA", seed=seed, tol=ERROR)
        runs.append((steps, float(found.eigenvalues[0])))
    return runs


def eigenthings_power(task: Problem, seed: int) -> list[Run]:
    """The power iteration of hessian-eigenthings by its own rule."""
    package, operator = _eigenthings(task)
    runs = []
    for tol in TOLERANCES:
        counted = _Counted(operator.matvec)
        with _replaced(operator, "matvec", counted):
            found = package.deflated_power_iteration(operator, k=1, max_iter=200, tol=tol, seed=seed)
        runs.append((counted.calls, float(found.eigenvalues[0])))
    return runs


def _eigenthings(task: Problem) -> tuple[Any, Any]:
    package = import_module("hessian_eigenthings")
    surface = task.surface
    return package, package.HessianOperator(
        surface.model.eval(), surface.batches, package.supervised_loss(nn.CrossEntropyLoss())
    )


def pyhessian_power(task: Problem, seed: int) -> list[Run]:
    """The power iteration of PyHessian by its own rule, on a copy, since it leaves gradients behind."""
    module = import_module("pyhessian.hessian")
    model, runs = copy.deepcopy(task.surface.model), []
    instrument = module.hessian(model, nn.CrossEntropyLoss(), data=task.surface.batches[0], cuda=False)  # type: ignore[index]
    for tol in (*TOLERANCES, 1e-7, 1e-8):
        counted = _Counted(module.hessian_vector_product)
        with torch.random.fork_rng(devices=[]), _replaced(module, "hessian_vector_product", counted):
            torch.default_generator.manual_seed(seed)
            values, _ = instrument.eigenvalues(maxIter=200, tol=tol, top_n=1)
        runs.append((counted.calls, float(values[0])))
    model.zero_grad()
    return runs


class _Counted:
    """A function, and how often it was called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.function(*arguments)


@contextmanager
def _replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _median(solver: Solver, problems: list[Problem]) -> float:
    """Over the start vectors, of the fewest products that led to the error."""
    return statistics.median(_fewest(solver(task, seed), task.true) for seed, task in zip(SEEDS, problems, strict=True))


def _fewest(runs: list[Run], true: float) -> float:
    return min((products for products, value in runs if abs(value - true) <= ERROR * abs(true)), default=math.inf)
