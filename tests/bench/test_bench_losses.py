"""The benchmark in small: every row is there and its figures are positive. Nothing here judges speed."""

import pytest
import torch

from legato.bench import losses, peers
from legato.errors import DataNotFoundError
from legato.losses import comp_sum_loss


def test_a_small_benchmark_measures_every_case():
    cases = [
        *losses.table_cases((16, 8)),
        *losses.ensloss_cases((16,)),
        *losses.attack_cases((4, 1, 8, 8)),
        *losses.fused_cases((16, 8, 32)),
    ]
    rows = [case.measure(0.02) for case in cases]
    assert [(row.part, row.peer) for row in rows] == [(case.part, case.peer) for case in cases]
    for row in rows:
        assert row.timing.milliseconds > 0
        assert row.timing.ratio.low <= row.timing.ratio.median <= row.timing.ratio.high
        assert row.timing.pairs > 0


@pytest.mark.parametrize("gce", [peers.softmax_gather_gce, peers.keras_style_gce])
def test_the_peers_compute_the_same_loss(gce):
    h, y = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(9) % 4
    torch.testing.assert_close(gce(h, y, 0.7), comp_sum_loss(h, y, 1.7))


def test_the_official_code_is_run_without_its_device(tmp_path):
    with pytest.raises(DataNotFoundError, match="official"):
        peers.official_ensloss(tmp_path / "losses.py")
    (tmp_path / "losses.py").write_text(
        'class ensLoss:\n    def __call__(self, f, y):\n        return (f * y).to("cuda").sum()\n'
    )
    assert peers.official_ensloss(tmp_path / "losses.py")(torch.ones(2), torch.ones(2)) == 2
