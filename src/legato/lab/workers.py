"""Processes that do trials: this one, joblib's loky workers on this machine, or a Ray cluster."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from legato import errors

BACKENDS = ("loky", "ray")
ORPHAN_SECONDS = 1.0
"""How long a worker may outlive the process that started it."""

Pool: TypeAlias = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]
"""(function, arguments of each call) -> results, in order. What a call raises stops all others."""


@contextmanager
def open_pool(workers: int, backend: str) -> Iterator[Pool]:
    """A pool that keeps its processes warm between calls; with one loky worker it is this process."""
    if backend not in BACKENDS:
        raise errors.choice("backend", backend, BACKENDS)
    if backend == "ray":
        with _ray(workers) as pool:
            yield pool
    elif workers == 1:
        yield lambda function, calls: [function(*arguments) for arguments in calls]
    else:
        with _loky(workers) as pool:
            yield pool


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch, BLAS and OpenMP compute with one thread, in a worker as in this process: another number gives other roundings."""
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    threads = torch.get_num_threads()
    try:
        with threadpool_limits(1):
            torch.set_num_threads(1)
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _loky(workers: int) -> Iterator[Pool]:
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky import get_reusable_executor

    def pool(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        tasks = Parallel(batch_size=1, max_nbytes=None)
        return list(tasks(delayed(function)(*arguments) for arguments in calls))

    own = {"initializer": _start, "initargs": (os.getpid(),)}
    try:
        with parallel_config("loky", n_jobs=workers, inner_max_num_threads=1, **own):
            yield pool
    except BaseException:
        get_reusable_executor().shutdown(wait=True, kill_workers=True)
        raise


def _start(parent: int) -> None:
    """Ctrl-C is for the parent, which stops its workers; a parent that was killed cannot, so a worker looks after itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="legato orphan watch", daemon=True).start()


@contextmanager
def _ray(workers: int) -> Iterator[Pool]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # legato calls nobody
    ray = errors.require("ray", extra="scale")
    from joblib import Parallel, delayed, parallel_config
    from ray.util.joblib import register_ray

    register_ray()
    ours = not ray.is_initialized()
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if ours and "RAY_ADDRESS" in os.environ:
        ray.init(**quiet)
    elif ours:
        ray.init(address="local", num_cpus=workers, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    try:
        with parallel_config("ray", n_jobs=workers), Parallel(batch_size=1, max_nbytes=None) as tasks:
            yield lambda function, calls: list(tasks(delayed(function)(*arguments) for arguments in calls))
    finally:
        if ours:
            ray.shutdown()
