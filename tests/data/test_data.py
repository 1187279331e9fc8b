"""Real data through the one door: cuts, corruption, scaling, batches, tables, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from legato import data
from legato.data import fashion
from legato.errors import DataError, DataNotFoundError, LegatoTypeError, LegatoValueError


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
    from legato.data import registry

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
        {"sampler": WeightedRandomSampler(torch.ones(20), 20)},
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


def test_indexed_loader_refuses_a_stream():
    class Stream(IterableDataset):
        def __iter__(self):
            yield 0

    with pytest.raises(LegatoTypeError, match="no index"):
        data.IndexedLoader(DataLoader(Stream()))


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


CSV = "colour,size,site,label\n" + "".join(
    f"{'red' if i % 3 else ''},{i if i % 5 else 'NA'},s{i // 4},{'ab'[i % 2]}\n" for i in range(40)
)


def test_a_table_is_encoded_and_says_what_was_done(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(CSV)
    splits = data.load(str(path), target="label", group="site")
    assert splits.class_names == ("a", "b")
    assert splits.feature_names == ("colour=missing", "colour=red", "size")
    notes = " ".join(splits.provenance.notes)
    assert "8 missing values were filled with the median" in notes
    assert "colour: text, became 2 columns" in notes
    assert not torch.cat([s.inputs for s in (splits.train, splits.validation, splits.test)]).isnan().any()
    sites = [set((s.index // 4).tolist()) for s in (splits.train, splits.validation, splits.test)]
    assert not (sites[0] & sites[1] or sites[0] & sites[2] or sites[1] & sites[2])


@pytest.mark.parametrize(
    ("text", "target", "words"),
    [
        (CSV, "lable", "Did you mean 'label'"),
        (CSV, None, "--target NAME"),
        ("a,b\n", "b", "1 lines"),
        ("a,a\n1,2\n", "a", "'a' twice"),
        ("a,b\n1,2,3\n", "b", "line 2: expected 2 values"),
        ("a,b\n" + "".join(f"{i},{i / 7}\n" for i in range(50)), "b", "regression target"),
        ("a,b\n" + "1,x\n" * 9 + "1,y\n", "b", "class 'y'"),
        ("a,b\n" + "1,x\n" * 9, "b", "at least 2"),
        ("a,b\n" + "1,x\n" * 9 + "1,\n", "b", "1 rows without"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, text, target, words):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises((DataError, LegatoValueError), match=words):
        data.load(str(tmp_path / "t.csv"), target=target)


def test_arrays_that_cannot_be_used():
    x, y = np.random.default_rng(0).random((30, 4)), np.arange(30) % 3
    broken = x.copy()
    broken[7, 1] = np.nan
    for arguments, words in [
        ((broken, y), "the first is row 7"),
        ((x, y[:20]), "30 rows"),
        ((x, np.eye(3)[y]), "multi-label or one-hot"),
        ((x, y + 0.5), "regression"),
        ((x[:, 0], y), "numbers"),
    ]:
        with pytest.raises(DataError, match=words):
            data.from_arrays(*arguments)


def test_names_and_files_that_are_not_there(tmp_path):
    with pytest.raises(LegatoValueError, match="Did you mean 'fashion-mini'"):
        data.load("fashion-mni")
    with pytest.raises(DataNotFoundError, match="no such file"):
        data.load("nowhere/table.csv")
    np.savez(tmp_path / "a.npz", z=np.zeros(3))
    with pytest.raises(DataError, match="x and y"):
        data.load(str(tmp_path / "a.npz"))


def test_npz_and_torch_data_sets_are_the_same_rows(tmp_path):
    x, y = torch.rand(30, 4), torch.arange(30) % 3
    np.savez(tmp_path / "a.npz", x=x, y=y)
    a, b = data.load(str(tmp_path / "a.npz")), data.from_dataset(TensorDataset(x, y))
    assert torch.equal(a.train.inputs, b.train.inputs)
    assert a.provenance.sha256 == b.provenance.sha256
