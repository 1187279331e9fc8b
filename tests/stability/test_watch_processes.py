"""Two processes over gloo, in DistributedDataParallel and fully sharded, read what one process reads.

This file is also the program that torchrun starts twice; each process writes what it found to rank0.pt or rank1.pt.
"""

import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from legato.errors import LegatoValueError
from legato.stability.watch import watch

pytestmark = [pytest.mark.timeout(300), pytest.mark.network, pytest.mark.slow]
WIDTH = 16


class Block(nn.Module):
    """Causal attention of two heads, and a linear layer of an uneven number of rows."""

    def __init__(self):
        super().__init__()
        self.joint, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.ones(5, 5))

    def forward(self, x):
        """[B, T, D]."""
        q, k, v = self.joint(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return x + self.out(mixed) * self.scale.sum()


class Net(nn.Module):
    """Two blocks and a head."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, 7, bias=False)

    def forward(self, x):
        """[B, T, 7]."""
        for block in self.blocks:
            x = block(x)
        return self.head(x) / 10


def train(wrap, rank, processes, watched=True):
    """Four steps on this process's share of each batch: the readings, and the weights that are left."""
    torch.manual_seed(0)
    model = wrap(Net().double())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    watcher = watch(model, optimizer, every=2, exact_every=2)
    with watcher if watched else nullcontext():
        for step in range(4):
            batch = torch.randn(4, 6, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(batch.chunk(processes)[rank]).square().mean().backward()
            optimizer.step()
    weights = [getattr(part, "full_tensor", lambda part=part: part)() for part in model.parameters()]
    return [asdict(reading) for reading in watcher.readings], torch.cat([part.detach().flatten() for part in weights])


def sharded(model):
    """FSDP of each block and the rest."""
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    return model


def unlike(rank):
    """What is said if the processes do not see the same."""
    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        with watch(model, optimizer):
            x = torch.ones(1, 3, WIDTH, dtype=torch.float64)
            (model(x) if rank == 0 else model.blocks[0](x)).sum().backward()
            optimizer.step()
    except LegatoValueError as problem:
        return str(problem)
    return ""


def main(out):
    """Everything that is compared."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    wraps = {"ddp": DistributedDataParallel, "fsdp": sharded}
    found = {name: train(wrap, rank, 2) for name, wrap in wraps.items()}
    found |= {f"{name} unwatched": train(wrap, rank, 2, watched=False) for name, wrap in wraps.items()}
    found["unlike"] = unlike(rank)
    told = []
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, log=lambda table, step: told.append(step)):
        model(torch.ones(1, 3, WIDTH)).sum().backward()
        optimizer.step()
    torch.save(found | {"told": told}, out / f"rank{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes found; one start serves all tests."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_addr",
        "127.0.0.1",
        "--master_port",
        str(port),
    ]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def flat(value, path=""):
    """Every number of nested dicts and lists, by its path."""
    if isinstance(value, dict):
        return {key: number for name, part in value.items() for key, number in flat(part, f"{path}/{name}").items()}
    if isinstance(value, list):
        return {key: number for at, part in enumerate(value) for key, number in flat(part, f"{path}/{at}").items()}
    return {path: value}


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_read_what_one_reads(ranks, kind):
    alone, weights = train(lambda model: model, 0, 1)
    for found in ranks:
        readings, left = found[kind]
        assert len(readings) == len(alone) == 2
        for got, want in zip(readings, alone, strict=True):
            got, want = flat(got), flat(want)
            assert got.keys() == want.keys()
            words = {key for key, value in want.items() if not isinstance(value, float)}
            assert all(got[key] == want[key] for key in words)
            assert {key: got[key] for key in want if key not in words} == pytest.approx(
                {key: want[key] for key in want if key not in words}, rel=1e-8
            )
        torch.testing.assert_close(left, weights, rtol=1e-6, atol=1e-8)
    assert ranks[0][kind][0] == ranks[1][kind][0]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_not_one_bit_is_changed_in_several_processes(ranks, kind):
    assert all(torch.equal(found[kind][1], found[f"{kind} unwatched"][1]) for found in ranks)


def test_processes_that_see_different_things_are_told(ranks):
    assert all("the same attention, gradients and blocks in all processes" in found["unlike"] for found in ranks)


def test_the_first_process_logs(ranks):
    assert [found["told"] for found in ranks] == [[0], []]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # a thread of the sharded model may outlive the interpreter, which then aborts
