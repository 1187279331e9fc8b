"""The benchmark in small: every row is there and its figures are positive. Nothing here judges speed."""

from legato.bench import losses


def test_a_small_benchmark_measures_every_peer():
    rows = losses.run(1.0, shapes=((16, 8),))
    assert {row.shape for row in rows} == {(16, 8)}
    assert all(
        row.timing.milliseconds > 0 and row.timing.peer_milliseconds > 0 and row.timing.pairs > 0 for row in rows
    )
    assert all(row.timing.ratio.low <= row.timing.ratio.median <= row.timing.ratio.high for row in rows)
