"""What all tests share: one thread, no network, a fresh cache, and the property-test profile."""

import os
import signal
import socket
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # in the background Ctrl-C is ignored, also by all that is started from here
    signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile("legato", max_examples=40, deadline=None, derandomize=True)
hypothesis.settings.load_profile("legato")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket to anything but this machine is an error: legato never calls home."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family in (socket.AF_INET, socket.AF_INET6) and host not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a user cache of its own, so that no test sees what another or the user has left."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("LEGATO_DATA", raising=False)
    return cache
