"""Two processes over gloo take the steps that one process takes: DistributedDataParallel averages the gradients of both passes.

As a program, `FOLDER RANK`: writes what this process finds to FOLDER/rank0.pt or FOLDER/rank1.pt.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from legato.flatness.looksam import LookSAM
from legato.flatness.msam import MSAM
from legato.flatness.sam import ASAM, SAM

pytestmark = pytest.mark.timeout(300)
METHODS = {"SAM": SAM, "ASAM": ASAM, "LookSAM": LookSAM, "MSAM": MSAM}
ROWS = 16


def run(kind, rank=0, processes=1):
    """Weights after four steps of two micro-batches, of which only the last is averaged, and the state of the method."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    called = nn.parallel.DistributedDataParallel(net) if processes > 1 else net
    method = kind(called, radius=0.2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2 * ROWS, 6, dtype=torch.float64, generator=generator)[rank::processes]
    y = torch.randint(4, (2 * ROWS,), generator=generator)[rank::processes]
    half = len(x) // 2

    def closure():
        optimizer.zero_grad()
        if processes > 1:
            with called.no_sync():
                (F.cross_entropy(called(x[:half]), y[:half]) / 2).backward()
        else:
            (F.cross_entropy(called(x[:half]), y[:half]) / 2).backward()
        loss = F.cross_entropy(called(x[half:]), y[half:]) / 2
        loss.backward()
        return loss.detach()

    for _ in range(4):
        method.gradients(closure)
        nn.utils.clip_grad_norm_(net.parameters(), 0.3)
        optimizer.step()
    return {
        "weights": torch.cat([weight.detach().flatten() for weight in net.parameters()]),
        "state": method.state_dict(),
    }


def of_a_rank_that_overflows(rank):
    """The second process alone has a loss that is not finite; both see it and leave out the second pass."""
    net = nn.Linear(2, 2)
    called = nn.parallel.DistributedDataParallel(net)
    calls = [0]

    def closure():
        calls[0] += 1
        loss = called(torch.ones(3, 2)).sum() * (float("inf") if rank else 1.0)
        loss.backward()
        return loss.detach()

    SAM(called).gradients(closure)
    return {"calls": calls[0], "finite": bool(net.weight.grad.isfinite().any())}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes found; one start serves all tests."""
    folder = tmp_path_factory.mktemp("processes")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__)), str(folder)]
    started = [subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE) for rank in range(2)]
    for process in started:
        _, text = process.communicate(timeout=280)
        assert process.returncode == 0, text.decode()[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.network
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_are_one_process(ranks, name):
    first, second = (found[name] for found in ranks)
    want = run(METHODS[name])
    assert torch.equal(first["weights"], second["weights"])
    torch.testing.assert_close(first["weights"], want["weights"], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(first["state"], want["state"], rtol=1e-8, atol=1e-10)


@pytest.mark.network
def test_an_overflow_in_one_process_is_one_in_all(ranks):
    assert [found["overflow"] for found in ranks] == [{"calls": 1, "finite": False}] * 2


if __name__ == "__main__":
    OUT, RANK = Path(sys.argv[1]), int(sys.argv[2])
    torch.distributed.init_process_group("gloo", init_method=f"file://{OUT / 'meet'}", rank=RANK, world_size=2)
    FOUND = {name: run(kind, RANK, 2) for name, kind in METHODS.items()}
    FOUND["overflow"] = of_a_rank_that_overflows(RANK)
    torch.save(FOUND, OUT / f"rank{RANK}.pt")
    torch.distributed.destroy_process_group()
    os._exit(0)  # a thread of the group may outlive the interpreter, which then aborts
