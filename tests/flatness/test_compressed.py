"""Records of the largest logits alone: what is kept, what is shared evenly, and that nothing else is different."""

import math

import pytest
import torch
from torch.nn import functional as F

from legato.errors import LegatoValueError
from legato.flatness import storage
from legato.flatness.compressed import TopRecords, compress, expand
from legato.flatness.records import Records, record_bytes
from legato.flatness.saf import SAF
from legato.flatness.trajectory import trajectory_loss

N, C = 24, 7
D = torch.float64


def logits(rows=5, seed=0, dtype=D):
    return (3 * torch.randn(rows, C, dtype=D, generator=torch.Generator().manual_seed(seed))).to(dtype)


@pytest.mark.parametrize("tau", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("top_k", [1, 3, 6])
def test_the_largest_probabilities_are_kept_and_the_rest_is_shared(top_k, tau):
    """Oracle: a loop over rows and classes."""
    z = logits()
    got = (expand(compress(z, top_k, tau), C) / tau).softmax(1)
    for row, p in enumerate((z / tau).softmax(1).tolist()):
        kept = sorted(range(C), key=lambda c: -p[c])[:top_k]
        rest = sum(p[c] for c in range(C) if c not in kept) / (C - top_k)
        want = [p[c] if c in kept else rest for c in range(C)]
        assert got[row].tolist() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_with_all_classes_nothing_is_lost(dtype):
    z = logits(dtype=dtype)
    z[0] = 1.0  # ties
    assert torch.equal(expand(compress(z, C, 5.0), C), z.to(torch.promote_types(dtype, torch.float32)))


def test_the_gradient_is_that_of_the_probabilities_that_are_left():
    now, past, tau = logits(seed=1).requires_grad_(), expand(compress(logits(), 2, 5.0), C), 5.0
    (gradient,) = torch.autograd.grad(trajectory_loss(now, past, tau, reduction="sum"), now)
    torch.testing.assert_close(gradient, tau * ((now / tau).softmax(1) - (past / tau).softmax(1)), rtol=1e-12, atol=0)


def test_extreme_logits_keep_their_digits():
    z = torch.tensor([[1e9, -1e9, 0.0], [0.0, 0.0, 0.0], [-1e9, -1e9, -1e9]], dtype=D)
    past = expand(compress(z, 1, 1.0), 3)
    torch.testing.assert_close(past[0], torch.tensor([1e9, -math.log(2), -math.log(2)], dtype=D))
    assert torch.equal(past[1:], z[1:])


def outputs_of(saf, epochs=range(4)):
    """The terms of a run whose weights follow them, and the weights."""
    torch.manual_seed(0)
    model = torch.nn.Linear(6, C)
    x, y = torch.randn(N, 6), torch.randint(C, (N,))
    optimizer, terms = torch.optim.SGD(model.parameters(), 0.3), []
    for epoch in epochs:
        saf.begin_epoch(epoch)
        for index in torch.randperm(N, generator=torch.Generator().manual_seed(epoch)).split(7):
            optimizer.zero_grad()
            output = model(x[index])
            term = saf(output, index)
            (F.cross_entropy(output, y[index]) + term).backward()
            optimizer.step()
            terms.append(term.detach())
    return torch.stack(terms), model.weight.detach()


def settings(**change):
    return {"num_samples": N, "num_classes": C, "lam": 1.0, "lag": 1, "start": 0} | change


def test_a_run_with_all_classes_is_the_full_one_to_the_last_bit():
    full, kept, fewer = (outputs_of(SAF(**settings(top_k=k))) for k in (None, C, 2))
    assert all(torch.equal(a, b) for a, b in zip(full, kept, strict=True))
    assert full[0][-1] > 0 and not torch.equal(full[1], fewer[1])


@pytest.mark.parametrize("where", [0, 6])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_dropped_as_by_the_full_records(bad, where):
    z = logits(dtype=torch.float32)
    z[2, z[2].argsort(descending=True)[where]] = bad  # among the kept, and among the others
    index, both = torch.arange(5), (Records(N, C, 1), TopRecords(N, C, 1, 2, 5.0, store="cpu", dtype=torch.float32))
    for records in both:
        records.write(torch.tensor([0, 1, 2, 3, 3]), z, 0)
        records.write(torch.tensor([0]), z[:1], 0)
    full, top = both
    assert (top.dropped, top.repeated) == (full.dropped, full.repeated) == (1, 2)
    assert torch.equal(top.read(index, 1)[1], full.read(index, 1)[1])
    assert top.read(index, 1)[0].isfinite().all()


@pytest.mark.parametrize("store", ["cpu", "file"])
def test_a_run_goes_on_from_a_state(tmp_path, store):
    def made():
        return SAF(**settings(top_k=2, store=tmp_path / "records.bin" if store == "file" else "cpu"))

    whole = made()
    outputs_of(whole)
    state = whole.state_dict()
    resumed = made()
    resumed.load_state_dict(state)
    whole.begin_epoch(4)
    resumed.begin_epoch(4)
    index = torch.arange(N)
    now = logits(N, dtype=torch.float32)
    assert torch.equal(whole(now, index), resumed(now, index))
    assert resumed.stats["valid_share"] == 1


def test_without_the_table_the_records_start_anew():
    saf = SAF(**settings(top_k=2))
    outputs_of(saf)
    saf.load_state_dict({"epoch": 4})
    assert saf(logits(N, dtype=torch.float32), torch.arange(N)) == 0


def test_memory_is_that_of_two_numbers_a_class_kept_and_one():
    saf = SAF(1000, 200, lag=3, top_k=16)
    assert saf.stats["bytes"] == record_bytes(1000, 33, 3) == 4 * 1001 * (8 * 16 + 8)
    assert saf.stats["bytes"] < record_bytes(1000, 200, 3) / 5
    assert "16 of 200 classes" in repr(saf)


def test_too_large_a_table_names_it(monkeypatch):
    monkeypatch.setattr(storage, "free_memory", lambda place: 20e9)
    with pytest.raises(LegatoValueError, match="top_k=16 keeps a few logits of many"):
        SAF(1281000, 1000)
    monkeypatch.setattr(storage, "free_memory", lambda place: 1e6)
    with pytest.raises(LegatoValueError, match=r"got 1\.09 MB"):
        SAF(2000, 1000, top_k=16)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"top_k": 0}, "top_k: expected a whole number >= 1; got 0"),
        ({"top_k": True}, "top_k"),
        ({"top_k": C + 1}, "top_k: expected at most the 7 classes; got 8"),
        ({"top_k": 2, "tau": 0.0}, "tau"),
        ({"top_k": 2, "num_classes": 0}, "num_classes"),
        ({"top_k": 2, "dtype": torch.float16}, "dtype: expected torch.float32 or float64.*got torch.float16 and 7 classes"),
        ({"top_k": 2, "num_classes": 2**24 + 1}, "at most 16777216 classes"),
    ],
)  # fmt: skip
def test_what_is_refused(change, text):
    with pytest.raises(LegatoValueError, match=text):
        SAF(**settings(**change))


def test_a_state_of_another_k_is_refused():
    state = SAF(**settings(top_k=2)).state_dict()
    with pytest.raises(LegatoValueError, match=r"= \[1, 24, 7\]; got \[1, 24, 5\]"):
        SAF(**settings(top_k=3)).load_state_dict(state)
