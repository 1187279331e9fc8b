"""What the benchmark measures is what happened."""

import numpy as np
import pytest
import torch

from legato.bench.memory import peak_bytes
from legato.bench.timing import compare, median_interval


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the steps of a test advance."""
    now = [0.0]
    monkeypatch.setattr("legato.bench.timing.time.process_time", lambda: now[0])

    def step(seconds):
        def work():
            now[0] += seconds

        return work

    return step


def test_a_step_of_twice_the_work_has_ratio_two(clock):
    timing = compare(clock(0.004), clock(0.002), seconds=10.0, pairs=40)
    assert timing.ratio.median == pytest.approx(2.0)
    assert timing.same.median == pytest.approx(1.0)
    assert (timing.milliseconds, timing.peer_milliseconds) == pytest.approx((4.0, 2.0))
    assert timing.pairs == 40


def test_blocks_are_palindromes_so_that_drift_cancels(monkeypatch):
    """With a clock that slows down from call to call, equal steps still come out equal."""
    calls, clock = [], [0.0, 0.0]

    def process_time():
        clock[0] += 1
        clock[1] += clock[
            0
        ]  # the n-th reading comes n ticks after the last: each step takes two ticks more than the one before
        return clock[1]

    monkeypatch.setattr("legato.bench.timing.time.process_time", process_time)
    timing = compare(lambda: calls.append("ours"), lambda: calls.append("peer"), seconds=10.0, pairs=8)
    assert calls[:6] == ["peer", "ours", "peer", "peer", "ours", "peer"]
    assert len(calls) == 6 * (1 + 8 // 2)
    assert timing.ratio.median == timing.ratio.low == timing.ratio.high == timing.same.median == 1.0


def test_the_least_number_of_pairs_is_done_without_time(clock):
    assert compare(clock(1), clock(1), seconds=0.0, least=6).pairs == 6


def test_threads_are_given_back(clock):
    before = torch.get_num_threads()
    compare(clock(1), clock(1), seconds=0.0)
    assert torch.get_num_threads() == before


def test_the_interval_of_a_median():
    assert median_interval(np.full(10, 3.0)).high == 3.0
    values = np.random.default_rng(1).normal(size=401)
    found = median_interval(values)
    assert found.median == np.median(values)
    assert found.high - found.low == pytest.approx(
        2 * 1.96 * 1.2533 / np.sqrt(401), rel=0.3
    )  # sd of a median: 1.2533/sqrt(n)


def test_peak_memory_is_what_lives_at_once():
    def one_after_the_other():
        for _ in range(3):
            torch.empty(2**20)

    def together():
        return [torch.empty(2**20) for _ in range(3)] and None

    assert peak_bytes(one_after_the_other) == 4 * 2**20
    assert peak_bytes(together) == 12 * 2**20
