"""Real data through the one door, corruption, scaling and batches."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, Sampler, TensorDataset
from torch.utils.data import WeightedRandomSampler as Weighted

from legato import data
from legato.data import fashion, registry
from legato.errors import DataNotFoundError, LegatoTypeError


@pytest.mark.parametrize(
    ("name", "rows", "classes", "shape"),
    [("fashion-mini", 6000, 10, (1, 28, 28)), ("digits", 1797, 10, (1, 8, 8)), ("breast_cancer", 569, 2, (30,))],
)
def test_embedded_sets_are_whole_and_cut_without_overlap(name, rows, classes, shape):
    splits = data.load(name, seed=3)
    assert (splits.num_classes, splits.input_shape) == (classes, shape)
    assert sum(map(len, (splits.train, splits.validation, splits.test))) == rows
    assert not set(splits.train.index.tolist()) & set(splits.validation.index.tolist())
    again, other = data.load(name, seed=3), data.load(name, seed=4)
    assert torch.equal(splits.validation.index, again.validation.index)
    assert not torch.equal(splits.validation.index, other.validation.index)
    assert torch.equal(splits.test.inputs, other.test.inputs)
    assert splits.provenance.sha256 == other.provenance.sha256


@pytest.mark.full
def test_fashion_mini_is_part_of_the_official_files():
    if not fashion.SYSTEM.exists():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    mini, full = data.load("fashion-mini"), data.load("fashion-mnist")
    assert (len(full.train) + len(full.validation), len(full.test)) == (60_000, 10_000)
    train_rows, test_rows = fashion.fashion_mini_rows()
    order = torch.cat([full.train.index, full.validation.index]).argsort()
    images = torch.cat([full.train.inputs, full.validation.inputs])[order]
    assert torch.equal(images[torch.from_numpy(train_rows.astype(np.int64))[mini.train.index]], mini.train.inputs)
    assert torch.equal(full.test.inputs[torch.from_numpy(test_rows.astype(np.int64))], mini.test.inputs)


def test_a_full_set_is_never_swapped_for_the_mini_one(monkeypatch, tmp_path):
    registry._read.cache_clear()
    registry._pool.cache_clear()
    monkeypatch.setattr(fashion, "SYSTEM", tmp_path / "nowhere")
    with pytest.raises(DataNotFoundError, match="apt-get install dataset-fashion-mnist"):
        data.load("fashion-mnist")


@given(st.integers(2, 12), st.floats(0, 0.9), st.integers(0, 99), st.sampled_from(["symmetric", "pair"]))
def test_corruption_has_the_rate_that_was_asked_for(classes, rate, seed, kind):
    y = torch.arange(4000) % classes
    noisy = data.corrupt_labels(y, classes, rate, kind=kind, seed=seed)
    assert abs(float((noisy != y).double().mean()) - rate) <= 4.5 * (rate * (1 - rate) / 4000) ** 0.5 + 1e-9
    assert torch.equal(noisy, data.corrupt_labels(y, classes, rate, kind=kind, seed=seed))
    if kind == "pair":
        assert set(((noisy - y) % classes).tolist()) <= {0, 1}


def test_standardize_uses_the_training_split_alone():
    splits = data.load("breast_cancer")
    scaled = data.standardize(splits)
    torch.testing.assert_close(scaled.train.inputs.mean(0), torch.zeros(30), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.train.inputs.std(0, correction=0), torch.ones(30), atol=1e-3, rtol=0)
    mean, sd = splits.train.inputs.mean(0), splits.train.inputs.std(0, correction=0)
    torch.testing.assert_close(scaled.test.inputs, (splits.test.inputs - mean) / sd, rtol=1e-3, atol=1e-3)
    constant = data.from_arrays(np.stack([np.ones(20), np.arange(20)], 1), np.arange(20) % 2)
    assert (data.standardize(constant).train.inputs[:, 0] == 0).all()


@pytest.mark.parametrize("name", ["fashion-mini", "digits", "breast_cancer"])
def test_standardize_is_its_formula_bit_for_bit_and_leaves_its_input_alone(name):
    splits = data.load(name, seed=1)
    before = {word: getattr(splits, word).inputs.clone() for word in ("train", "validation", "test")}
    scaled = data.standardize(splits)
    floats = {word: x / 255 if x.dtype == torch.uint8 else x for word, x in before.items()}
    axes = (0, 2, 3) if splits.is_image else (0,)
    mean, sd = floats["train"].mean(axes, keepdim=True), floats["train"].std(axes, keepdim=True, correction=0)
    for word, x in before.items():
        assert torch.equal(getattr(splits, word).inputs, x)
        want = (floats[word] - mean) / sd.masked_fill(sd < 1e-8, 1)
        assert torch.equal(getattr(scaled, word).inputs, want.masked_fill(sd < 1e-8, 0))


@given(st.integers(4, 60), st.integers(1, 5), st.integers(0, 9), st.sampled_from([1, 2]))
def test_batches_visit_each_row_once_and_slices_make_the_global_batch(rows, size, epoch, world):
    size *= world
    x = torch.arange(rows)
    ranks = [list(data.Batches(x, x, x, size, seed=1, rank=r, world_size=world).epoch(epoch)) for r in range(world)]
    whole = list(data.Batches(x[: rows - rows % world] if world == 1 else x, x, x, size, seed=1).epoch(epoch))
    assert all(len(ranks[0]) == len(r) for r in ranks)
    for step in range(len(ranks[0])):
        union = {int(i) for r in ranks for i in r[step][2]}
        assert union <= {int(i) for i in whole[step][2]}
        assert len({len(r[step][2]) for r in ranks}) == 1
    assert len({int(i) for r in ranks for b in r for i in b[2]}) == rows - rows % world


@pytest.mark.parametrize("workers", [0, 2])
def test_indexed_loader_gives_the_index_with_any_order(workers):
    x = torch.arange(20.0)
    rows = TensorDataset(x, x.long())
    for options in (
        {"shuffle": True},
        {"sampler": Weighted(torch.ones(20), 20)},
        {"collate_fn": collate_doubled},
    ):
        loader = data.IndexedLoader(DataLoader(rows, batch_size=6, num_workers=workers, **options))
        batches = list(loader.epoch(0))
        assert len(batches) == len(loader) == 4
        for inputs, targets, index in batches:
            assert torch.equal(targets, index)
            assert torch.equal(inputs, (2 if "collate_fn" in options else 1) * x[index])
        again = list(loader.epoch(0))
        assert all(torch.equal(a[2], b[2]) for a, b in zip(batches, again, strict=True))
    if "shuffle" in options:
        assert any(not torch.equal(a[2], b[2]) for a, b in zip(batches, loader.epoch(1), strict=True))


def collate_doubled(items):
    x, y = zip(*items, strict=True)
    return 2 * torch.stack(x), torch.stack(y)


class GlobalOrder(Sampler):
    """A sampler of a user, who knows of no generator."""

    def __iter__(self):
        return iter(torch.randperm(20).tolist())

    def __len__(self):
        return 20


def test_the_order_follows_from_seed_and_epoch_whatever_the_sampler():
    x = torch.arange(20)
    rows = TensorDataset(x, x)
    for make in (
        lambda: DataLoader(rows, batch_size=4, sampler=GlobalOrder()),
        lambda: DataLoader(rows, batch_size=4, sampler=DistributedSampler(rows, num_replicas=2, rank=1)),
        lambda: DataLoader(rows, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5)),
        lambda: DataLoader(rows, batch_sampler=BatchSampler(GlobalOrder(), 3, drop_last=True)),
    ):
        state = torch.get_rng_state()
        loader = data.IndexedLoader(make(), seed=3)
        first, other = (torch.cat([b[2] for b in loader.epoch(e)]) for e in (0, 1))
        assert torch.equal(state, torch.get_rng_state())
        torch.rand(3)
        assert torch.equal(first, torch.cat([b[2] for b in data.IndexedLoader(make(), seed=3).epoch(0)]))
        assert not torch.equal(first, other)
        assert len(loader) == len(list(loader.epoch(2)))


def test_indexed_loader_keeps_the_loaders_settings():
    x = torch.arange(6)
    rows = TensorDataset(x, x)
    kept = data.IndexedLoader(
        DataLoader(rows, batch_size=2, num_workers=1, prefetch_factor=3, persistent_workers=True, timeout=9)
    ).loader
    assert (kept.num_workers, kept.prefetch_factor, kept.persistent_workers, kept.timeout) == (1, 3, True, 9)


def test_indexed_loader_refuses_what_has_no_index_or_no_targets():
    class Stream(IterableDataset):
        def __iter__(self):
            yield 0

    with pytest.raises(LegatoTypeError, match="no index"):
        data.IndexedLoader(DataLoader(Stream()))
    pairs = TensorDataset(torch.arange(6), torch.arange(6))
    with pytest.raises(LegatoTypeError, match="batch_size=None"):
        data.IndexedLoader(DataLoader(pairs, batch_size=None))
    with pytest.raises(LegatoTypeError, match=r"batches \(inputs, targets\)"):
        next(data.IndexedLoader(DataLoader(TensorDataset(torch.arange(6)), batch_size=2)).epoch(0))


def test_crop_and_flip_moves_and_mirrors():
    image = torch.zeros(1, 1, 6, 6)
    image[0, 0, 3, 2] = 1
    seen = set()
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        out = data.crop_and_flip(image, generator, shift=1)
        assert out.shape == image.shape
        assert out.sum() == 1
        seen.add(tuple(out.nonzero()[0, 2:].tolist()))
    assert seen == {(r, c) for r in (2, 3, 4) for c in (1, 2, 3, 4)}
