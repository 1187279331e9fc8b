"""Two processes over gloo: one level for both, gradients averaged through both estimators, and the steps of one process.

As a program, `FOLDER RANK`: writes what this process finds to FOLDER/rank0.pt or FOLDER/rank1.pt.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from legato.diffusion import (
    Denoiser,
    SmoothnessRegularizer,
    running_level,
    scaled_linear,
    unit_directions,
    variation,
    variation_penalty,
)

pytestmark = pytest.mark.timeout(300)
ROWS = 6


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 5)).double()

    def forward(self, x, t):
        return self.inside(x)


def numbers():
    """Noise and directions of the rows of both processes; a process draws its directions with its own seed."""
    generator = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn(2 * ROWS, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    t = torch.randint(1000, (2 * ROWS,), generator=generator)
    return x0, noise, t


def run(estimator, rank, share=1.0):
    torch.manual_seed(0)
    net = Net()
    told = Denoiser(nn.parallel.DistributedDataParallel(net), scaled_linear())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    term = SmoothnessRegularizer(estimator=estimator, share=share, seed=3)
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    x0, noise, t = (part[own] for part in numbers())
    for _ in range(3):
        optimizer.zero_grad()
        loss, output = term(told, x0, noise, t)
        (loss + (output - noise).square().mean()).backward()
        optimizer.step()
    return {"weights": torch.cat([w.detach().flatten() for w in net.parameters()]), "level": term.level}


def alone(estimator, share=1.0):
    """The same in one process, from the parts, with the directions of both."""
    torch.manual_seed(0)
    net = Net()
    told = Denoiser(net, scaled_linear())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    generators = [torch.Generator().manual_seed(3 + rank) for rank in range(2)]
    (x0, noise, t), level = numbers(), None
    for _ in range(3):
        part = round(share * ROWS)
        u = torch.cat([unit_directions(x0[:part], generator) for generator in generators])
        seen = torch.cat([torch.arange(part), ROWS + torch.arange(part)])
        norms = variation(told, x0[seen], noise[seen], t[seen], u, estimator=estimator).norms
        output = told.output(told.schedule.noisy(x0, noise, t), t)
        mean = norms.detach().mean()
        level = running_level(mean if level is None else level, norms.detach())
        optimizer.zero_grad()
        (variation_penalty(norms, level) + (output - noise).square().mean()).backward()
        optimizer.step()
    return torch.cat([w.detach().flatten() for w in net.parameters()]), level


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
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("estimator", ["exact", "fd"])
def test_two_processes_are_one_process(ranks, estimator, share):
    first, second = (found[f"{estimator} {share}"] for found in ranks)
    weights, level = alone(estimator, share)
    assert torch.equal(first["weights"], second["weights"])
    assert torch.equal(first["level"], second["level"])
    torch.testing.assert_close(first["weights"], weights, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(first["level"], level, rtol=1e-10, atol=0)


if __name__ == "__main__":
    OUT, RANK = Path(sys.argv[1]), int(sys.argv[2])
    torch.distributed.init_process_group("gloo", init_method=f"file://{OUT / 'meet'}", rank=RANK, world_size=2)
    FOUND = {f"{name} {share}": run(name, RANK, share) for name in ("exact", "fd") for share in (1.0, 0.5)}
    torch.save(FOUND, OUT / f"rank{RANK}.pt")
    torch.distributed.destroy_process_group()
    os._exit(0)  # a thread of the group may outlive the interpreter, which then aborts
