"""In place of torch, whose import takes seconds, for programs that only run the studies of `squares`."""

from types import SimpleNamespace

cuda = SimpleNamespace(is_available=lambda: False)


def get_num_threads() -> int:
    return 1


def set_num_threads(threads: int) -> None:
    assert threads == 1
