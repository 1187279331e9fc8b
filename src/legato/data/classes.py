"""A few classes of a data set, as a data set of its own."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from legato import errors
from legato.data.pool import Labelled, Pool


def keep_classes(pool: Pool, wanted: Sequence[str]) -> Pool:
    """The rows of the classes `wanted`, which are numbered in this order from 0.

    Args:
        wanted: names, or indices as text where no class has that name; two or more, each once.
    Raises: LegatoTypeError for one string; LegatoValueError for an unknown class, one class twice, and fewer than two.
    """
    chosen = [_index(name, pool.class_names) for name in wanted]
    names = tuple(pool.class_names[i] for i in chosen)
    if len(chosen) < 2 or len(set(chosen)) < len(chosen):
        raise errors.argument("classes", expected="two or more, each once", got=", ".join(names) or "none")
    code = np.full(len(pool.class_names), -1)
    code[chosen] = np.arange(len(chosen))

    def kept(file: Labelled) -> Labelled:
        rows = np.flatnonzero(code[file.targets] >= 0)
        return Labelled(file.inputs[rows], code[file.targets[rows]])

    small = replace(
        pool.each(kept),
        name=f"{pool.name}[{','.join(names)}]",
        group=None if pool.group is None else pool.group[code[pool.rows.targets] >= 0],
        class_names=names,
    )
    note = f"only the classes {', '.join(names)} were kept: {small.size:,} of {pool.size:,} rows"
    return replace(small, notes=(*pool.notes, note))


def _index(name: str, names: Sequence[str]) -> int:
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise errors.choice("classes", name, names)
