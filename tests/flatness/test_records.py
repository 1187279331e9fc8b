"""The table of outputs against a dictionary that remembers everything; its files, its limits, its states."""

import math
import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legato.errors import LegatoValueError, LegatoWarning
from legato.flatness import records as module
from legato.flatness import storage
from legato.flatness.records import Records, claim, claim_all, record_bytes

N, C = 6, 3


class Diary:
    """The slow twin of `Records`: every output of every epoch."""

    def __init__(self, lag):
        self.lag, self.pages = lag, {}

    def write(self, index, logits, epoch):
        for row, output in zip(index.tolist(), logits, strict=True):
            if output.isfinite().all():
                self.pages.setdefault((row, epoch), output.clone())

    def check(self, records, index, epoch):
        past, valid = records.read(index, epoch)
        assert past.isfinite().all()
        for row, output, known in zip(index.tolist(), past, valid.tolist(), strict=True):
            assert known == ((row, epoch - self.lag) in self.pages)
            if known:
                assert torch.equal(output, self.pages[row, epoch - self.lag])


def outputs(rows, seed=0, dtype=torch.float32):
    return torch.randn(rows, C, generator=torch.Generator().manual_seed(seed)).to(dtype)


batches = st.lists(st.lists(st.integers(0, N - 1), max_size=5), max_size=3)


@given(st.lists(batches, max_size=7), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_each_row_reads_what_it_said_lag_epochs_ago(epochs, lag, slow, seed):
    """Rows come in any order, not at all, in several batches of an epoch, or twice in one batch; some outputs are NaN."""
    records, diary = Records(N, C, lag), Diary(lag)
    with pytest.MonkeyPatch.context() as patch:
        if slow:  # what a device does, where no value is read
            patch.setattr(module, "claim_all", lambda *arguments: False)
        for epoch, visits in enumerate(epochs):
            for visit in visits:
                index = torch.tensor(visit, dtype=torch.int64)
                said = outputs(len(visit), seed := seed + 1)
                said[:, 1].masked_fill_(
                    torch.rand(len(visit), generator=torch.Generator().manual_seed(seed)) < 0.2, math.inf
                )
                for _ in range(2):
                    diary.check(records, index, epoch)
                    records.write(index, said, epoch)
                    diary.write(index, said, epoch)
                diary.check(records, index, epoch)


@given(st.lists(st.integers(0, N - 1), max_size=6), st.lists(st.integers(0, N - 1), max_size=6))
def test_the_quick_claim_is_the_careful_one(before, now):
    said = outputs(len(now))
    stamps = torch.full((N + 1,), -1, dtype=torch.int32)
    stamps[before] = 4
    other = stamps.clone()
    rows = torch.tensor(now, dtype=torch.int64)
    finite, first = claim(stamps, rows, said, 4)
    assert claim_all(other, rows, said, 4) == bool(first.all())
    assert finite.all()
    assert torch.equal(claim(other, rows, said, 4)[1], first), (
        "a quick claim that fails leaves nothing that hinders the careful one"
    )


def test_the_counts_are_right():
    records = Records(N, C, 1)
    said = outputs(4)
    said[1, 2] = math.nan
    records.write(torch.tensor([0, 1, 2, 2]), said, 0)
    assert (records.dropped, records.repeated) == (1, 1)
    records.write(torch.tensor([0, 3]), said[2:], 0)
    records.write(torch.tensor([0, 3]), said[2:], 0, count=False)
    assert (records.dropped, records.repeated) == (1, 2)
    records.write(torch.tensor([0, 3]), said[2:], 1)
    assert (records.dropped, records.repeated) == (1, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_tables_are_clipped_and_not_infinite(dtype):
    records = Records(N, C, 1, dtype=dtype)
    said = torch.tensor([[1e5, -1e9, 0.5], [3e4, 1.0, 2.0]])
    records.write(torch.tensor([0, 1]), said, 0)
    past, valid = records.read(torch.tensor([0, 1]), 1)
    assert past.dtype == dtype
    assert valid.all()
    assert torch.equal(past, said.clamp(-6e4, 6e4).to(dtype))
    assert past.isfinite().all()


def test_a_float16_sum_that_overflows_is_no_infinity():
    records = Records(N, C, 1)
    records.write(torch.tensor([0]), torch.full((1, C), 4e4, dtype=torch.float16), 0)
    assert records.dropped == 0
    assert records.read(torch.tensor([0]), 1)[1].all()


def test_float64_is_kept_to_the_last_bit():
    records = Records(N, C, 1, dtype=torch.float64)
    said = outputs(N, dtype=torch.float64) / 3
    records.write(torch.arange(N), said, 0)
    assert torch.equal(records.read(torch.arange(N), 1)[0], said)


def test_what_is_under_way_is_written_at_the_next_call():
    """What a CUDA device does, with an event that has to be waited for."""
    records, diary, waited = Records(N, C, 1), Diary(1), []
    said, index = outputs(2), torch.tensor([3, 1])
    records._later = (index, said, SimpleNamespace(synchronize=lambda: waited.append(1)), 0, True)
    diary.write(index, said, 0)
    diary.check(records, torch.arange(N), 1)
    assert waited == [1]
    assert records._later is None


def run(records, epochs, start=0):
    """Full epochs of outputs that tell where they are from; returns what was read."""
    read = []
    for epoch in range(start, epochs):
        for rows in torch.arange(N).split(2):
            past, valid = records.read(rows, epoch)
            read.append(past.masked_fill(~valid.unsqueeze(1), 0))
            records.write(rows, torch.full((2, C), 10.0 * epoch) + rows.unsqueeze(1), epoch)
    return read


@pytest.mark.parametrize("store", ["cpu", "shared", "file"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_is_all_that_is_needed(tmp_path, store, dtype):
    place = str(tmp_path / "records.bin") if store == "file" else store
    one = Records(N, C, 2, store=place, dtype=dtype)
    run(one, 4)
    one.write(torch.arange(3), outputs(3), 4)
    state = pickle.loads(pickle.dumps(one.state_dict()))
    other = Records(N, C, 2, store=place, dtype=dtype)
    other.load_state_dict(state)
    assert (other.dropped, other.repeated) == (one.dropped, one.repeated)
    for row in range(N):
        for epoch in (4, 5, 6):
            got, want = (r.read(torch.tensor([row]), epoch) for r in (other, one))
            assert torch.equal(got[0], want[0])
            assert bool(got[1]) == (epoch < 6 or row < 3)
    other.write(torch.arange(N), outputs(N, 7), 4)
    assert torch.equal(other.read(torch.arange(3), 6)[0], outputs(3).to(dtype)), (
        "what was recorded before the state stays"
    )


@pytest.mark.parametrize("ahead", [0, 1, 2, 3])
def test_a_file_that_went_on_is_taken_up_where_the_state_is(tmp_path, ahead):
    """The state is of the end of epoch 3. The file may go on for an epoch; in each further one, a slot that is still needed is lost."""
    killed = Records(N, C, 2, store=tmp_path / "records.bin")
    run(killed, 4)
    state = killed.state_dict()
    run(killed, 4 + ahead, start=4)
    resumed = Records(N, C, 2, store=tmp_path / "records.bin")
    assert not any(resumed.read(torch.arange(N), epoch)[1].any() for epoch in range(9)), "a file alone is no state"
    with warnings.catch_warnings(record=True) as said:
        resumed.load_state_dict(state)
    assert [str(w.message).partition(" slots")[0][-6:] for w in said] == ([] if ahead < 2 else [f"{ahead} of 3"])
    whole = Records(N, C, 2)
    run(whole, 4)
    lost = 3 * max(0, ahead - 1)
    got, want = run(resumed, 7, start=4), run(whole, 7, start=4)
    assert all((rows == 0).all() for rows in got[:lost])
    assert all(torch.equal(a, b) for a, b in zip(got[lost:], want[lost:], strict=True))


def test_rows_that_were_recorded_before_the_state_are_kept_in_the_epoch_of_the_state(tmp_path):
    """A run that was killed later in the same epoch and goes on with other random numbers."""
    killed = Records(N, C, 1, store=tmp_path / "records.bin")
    killed.write(torch.tensor([0, 1]), outputs(2, 1), 0)
    state = killed.state_dict()
    killed.write(torch.tensor([2, 3]), outputs(2, 2), 0)
    resumed = Records(N, C, 1, store=tmp_path / "records.bin")
    resumed.load_state_dict(state)
    resumed.write(torch.tensor([1, 2]), outputs(2, 3), 0)
    past, valid = resumed.read(torch.arange(N), 1)
    assert valid.tolist() == [True, True, True, False, False, False]
    assert torch.equal(past[:3], torch.cat([outputs(2, 1), outputs(2, 3)[1:]]))


def test_a_file_whose_rows_were_changed_is_not_believed(tmp_path):
    path = tmp_path / "records.bin"
    records = Records(N, C, 1, store=path)
    run(records, 2)
    state = records.state_dict()
    records.table[1, 3, 2] += 1
    with pytest.warns(LegatoWarning, match="1 of 2 slots have changed"):
        Records(N, C, 1, store=path).load_state_dict(state)
    path.unlink()
    fresh = Records(N, C, 1, store=path)
    with pytest.warns(LegatoWarning, match="2 of 2 slots have changed"):
        fresh.load_state_dict(state)
    assert not fresh.read(torch.arange(N), 2)[1].any()


def test_a_file_of_other_records_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "records.bin"
    Records(N, C, 2, store=path)
    with pytest.raises(
        LegatoValueError, match=r"store: expected a file with .*'samples': 7.*got .*'samples': 6.*delete"
    ):
        Records(7, C, 2, store=path)
    path.write_text("a letter")
    with pytest.raises(LegatoValueError, match="store: expected a file of records"):
        Records(N, C, 2, store=path)
    assert path.read_text() == "a letter"
    with pytest.raises(LegatoValueError, match=r"store: expected a file of records; got .*directory"):
        Records(N, C, 2, store=tmp_path)
    with pytest.raises(LegatoValueError, match=r"store: expected a place for a file; got .*No such file"):
        Records(N, C, 2, store=tmp_path / "nowhere" / "records.bin")


def test_a_file_has_the_size_that_was_announced(tmp_path):
    records = Records(1000, 20, 3, store=tmp_path / "records.bin")
    assert records.bytes == record_bytes(1000, 20, 3) == 4 * 1001 * 84
    assert records.bytes <= (tmp_path / "records.bin").stat().st_size <= records.bytes + 2 * storage.PAGE


def test_tables_have_the_size_that_was_announced():
    records = Records(1000, 20, 3, dtype=torch.float16)
    assert records.bytes == sum(t.numel() * t.element_size() for t in (records.table, records.stamps))


def test_a_file_is_opened_again_where_the_records_are_sent(tmp_path):
    here = Records(N, C, 1, store=tmp_path / "records.bin")
    there = pickle.loads(pickle.dumps(here))
    there.write(torch.tensor([2]), outputs(1), 0)
    past, valid = here.read(torch.tensor([2]), 1)
    assert valid.all()
    assert torch.equal(past, outputs(1))


def test_too_large_a_table_is_refused_with_what_could_be_done(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "free_memory", lambda place: 20e9)
    with pytest.raises(
        LegatoValueError,
        match=r"store: expected at most 10 GB, 50% of the free memory of cpu; got 20.5 GB \(20516512016 bytes\)\. Fix: dtype=torch.float16 .*"
        "lag.*records.bin.*TrajectorySampler.*MESA",
    ):
        Records(1281000, 1000, 3)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda place: SimpleNamespace(free=100))
    with pytest.raises(LegatoValueError, match=r"at most 100 bytes, 100% of the free disk"):
        Records(N, C, 2, store=tmp_path / "records.bin")
    assert not (tmp_path / "records.bin").exists()


def test_memory_is_looked_up():
    free = storage.free_memory(torch.device("cpu"))
    assert free is None or free > 1e6
    assert storage.free_memory(torch.device("meta")) is None
    shared = storage.free_memory("shared")
    assert shared is None or shared <= max(free or 0, shared)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"lag": 0}, "lag: expected a whole number >= 1; got 0"),
        ({"lag": 2.0}, "lag"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_classes": True}, "num_classes"),
        ({"dtype": torch.int8}, "dtype: expected torch.float32, float64, float16 or bfloat16; got torch.int8"),
        ({"store": "gpu"}, "store: expected one of .*; got 'gpu'"),
    ],
)
def test_what_is_refused(change, text):
    with pytest.raises(LegatoValueError, match=text):
        Records(**{"num_samples": N, "num_classes": C, "lag": 1} | change)


def test_states_of_other_tables_are_refused(tmp_path):
    state = Records(N, C, 1).state_dict()
    with pytest.raises(LegatoValueError, match=r"\[lag, num_samples, num_classes\] = \[2, 6, 3\]; got \[1, 6, 3\]"):
        Records(N, C, 2).load_state_dict(state)
    filed = Records(N, C, 1, store=tmp_path / "records.bin")
    with pytest.raises(LegatoValueError, match=r"= \[1, 7, 3\]; got \[1, 6, 3\]"):
        Records(7, C, 1, store=tmp_path / "other.bin").load_state_dict(filed.state_dict())
    plain = Records(N, C, 1)
    with pytest.warns(LegatoWarning, match="start again.*store="):
        plain.load_state_dict(filed.state_dict())
    assert not plain.read(torch.arange(N), 1)[1].any()


def test_processes_that_have_not_met_share_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LegatoValueError, match="init_process_group"):
        Records(N, C, 1, store=tmp_path / "records.bin")


def test_paths_are_told_from_devices():
    assert storage.place_of("cpu") == torch.device("cpu")
    assert storage.place_of("cuda:1") == torch.device("cuda", 1)
    assert storage.place_of("shared") == "shared"
    assert storage.place_of("records.bin") == Path("records.bin").absolute()
    assert storage.place_of("/tmp/records") == Path("/tmp/records")
