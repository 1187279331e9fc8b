"""Two processes over gloo have the losses of one: with rows that stay where they are, and with a file that both share.

As a program, `FOLDER RANK`: writes what this process finds to FOLDER/rank0.pt or FOLDER/rank1.pt.
"""

import copy
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DistributedSampler

from legato.flatness.mesa import MESA
from legato.flatness.records import Records
from legato.flatness.saf import SAF
from legato.flatness.sampler import TrajectorySampler

pytestmark = pytest.mark.timeout(300)
N, C, ROWS, EPOCHS = 25, 4, 4, 6
"""25 rows for two processes: one row comes twice in an epoch. ROWS are those of a batch in one process."""
OPTIONS = {"lam": 1.0, "tau": 2.0, "lag": 2, "start": 1, "dtype": torch.float64}


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 6, dtype=torch.float64, generator=generator)
    return x, torch.randint(C, (N,), generator=generator)


def orders(kind, epoch):
    """The rows of each of the two processes in an epoch."""
    found = []
    for rank in range(2):
        sampler = (
            TrajectorySampler(N, rank, 2, seed=3) if kind == "fixed" else DistributedSampler(range(N), 2, rank, seed=3)
        )
        sampler.set_epoch(epoch)
        found.append(torch.tensor(list(sampler)))
    return found


def train(term_of, kind, rank=None, restart_at=None):
    """Losses of each step and the weights at the end; without a rank, of one process with the batches of both."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, C)).double()
    called = net if rank is None else nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    (x, y), losses, term = data(), [], term_of(called)
    for epoch in range(EPOCHS):
        if epoch == restart_at:
            state = copy.deepcopy(term.state_dict())
            if rank is not None:
                torch.distributed.barrier()  # a new run begins when the old one is over
            term = term_of(called)
            term.load_state_dict(state)
        term.begin_epoch(epoch)
        parts = [order.split(ROWS) for order in orders(kind, epoch)]
        for pair in zip(*parts, strict=True):
            index = torch.cat(pair) if rank is None else pair[rank]
            output = called(x[index])
            loss = F.cross_entropy(output, y[index]) + term.penalty(output, (x[index], y[index], index))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            term.after_step(net)
            losses.append(loss.detach())
    term.begin_epoch(EPOCHS)
    return {"losses": torch.stack(losses), "weights": torch.cat([p.detach().flatten() for p in net.parameters()])}


def fixed(rank):
    return lambda model: SAF(N, C, rows=None if rank is None else TrajectorySampler(N, seed=3).rows, **OPTIONS)


def shared(path):
    def make(model):
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 0:
            time.sleep(0.2)  # the other one has to wait for the file
        return SAF(N, C, store=path, **OPTIONS)

    return make


def averaged(model):
    return MESA(model, lam=1.0, tau=2.0, start=1, horizon_epochs=1)


def naive(model):
    return SAF(N, C, **OPTIONS)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes found; one start serves all tests."""
    folder = tmp_path_factory.mktemp("processes")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__)), str(folder)]
    started = [subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE) for rank in range(2)]
    said = [process.communicate(timeout=280)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def check(found, want):
    """The mean over processes is the mean over rows, for their batches have equal lengths."""
    assert torch.equal(found[0]["weights"], found[1]["weights"])
    torch.testing.assert_close((found[0]["losses"] + found[1]["losses"]) / 2, want["losses"], rtol=1e-10, atol=0)
    torch.testing.assert_close(found[0]["weights"], want["weights"], rtol=1e-9, atol=1e-11)


@pytest.mark.network
def test_rows_that_stay_with_a_process_give_the_losses_of_one_table(ranks):
    check([found["fixed"] for found in ranks], train(fixed(None), "fixed"))
    assert [found["rows"] for found in ranks] == [13, 12]


@pytest.mark.network
@pytest.mark.parametrize("case", ["shared", "shared resumed"])
def test_a_shared_file_gives_the_losses_of_one_table_under_any_sampler(ranks, case):
    want = train(naive, "any")
    check([found[case] for found in ranks], want)
    assert not torch.allclose(want["losses"], train(fixed(None), "fixed")["losses"])


@pytest.mark.network
def test_two_processes_have_the_average_of_one(ranks):
    check([found["mesa"] for found in ranks], train(averaged, "any"))


@pytest.mark.network
def test_tables_of_ones_own_under_a_sampler_that_deals_rows_anew_are_noticed(ranks):
    for rank, found in enumerate(ranks):
        own = [set(orders("any", epoch)[rank].tolist()) for epoch in range(3)]
        (text,) = found["naive"]
        share = sum(int(row) in own[0] for row in orders("any", 2)[rank]) / 13
        assert f"only {share:.0%} of the rows in epoch 2 had a record of epoch 0" in text
        assert "TrajectorySampler" in text


def write(records, row):
    records.write(torch.tensor([row]), torch.full((1, C), float(row)), 0)


@pytest.mark.parametrize("store", ["shared", "file"])
def test_a_process_that_is_started_with_the_records_writes_into_them(store, tmp_path):
    records = Records(3, C, 1, store=tmp_path / "records.bin" if store == "file" else store)
    child = torch.multiprocessing.get_context("fork").Process(target=write, args=(records, 2))
    child.start()
    child.join(60)
    write(records, 1)
    past, valid = records.read(torch.arange(3), 1)
    assert valid.tolist() == [False, True, True]
    assert past[:, 0].tolist()[1:] == [1.0, 2.0]


def main(folder, rank):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    path = folder / "records.bin"
    found = {
        "fixed": train(fixed(rank), "fixed", rank),
        "rows": fixed(rank)(None).records.num_samples,
        "shared": train(shared(path), "any", rank),
        "shared resumed": train(shared(path), "any", rank, restart_at=4),
        "mesa": train(averaged, "any", rank),
    }
    with warnings.catch_warnings(record=True) as said:
        train(naive, "any", rank)
    found["naive"] = [str(warning.message) for warning in said if "of the rows" in str(warning.message)]
    torch.save(found, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()
    os._exit(0)  # a thread of the group may outlive the interpreter, which then aborts


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
