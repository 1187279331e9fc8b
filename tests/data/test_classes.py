"""A few classes of a set as a set of its own."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legato import data
from legato.data.arrays import pool_of
from legato.data.classes import keep_classes
from legato.errors import LegatoTypeError, LegatoValueError


def test_two_classes_of_a_named_set():
    whole, pair = data.load("fashion-mini"), data.load("fashion-mini", classes=("shirt", "coat"))
    assert pair.class_names == ("shirt", "coat")
    assert pair.provenance.name == "fashion-mini[shirt,coat]"
    assert "only the classes shirt, coat were kept: 1,200 of 6,000 rows" in pair.provenance.notes
    order = [whole.class_names.index(name) for name in pair.class_names]
    for i, label in enumerate(order):
        assert torch.equal(pair.test.inputs[pair.test.targets == i], whole.test.inputs[whole.test.targets == label])
    turned = data.load("fashion-mini", classes=("coat", "shirt"))
    assert torch.equal(turned.test.targets, 1 - pair.test.targets)
    hashes = {splits.provenance.sha256 for splits in (whole, pair, turned)}
    assert len(hashes) == 3
    by_number = data.load("fashion-mini", classes=map(str, order))
    assert by_number.provenance == pair.provenance


@given(st.permutations(range(5)), st.integers(2, 5))
def test_the_rows_are_those_of_the_classes_in_the_order_asked_for(order, count):
    y = np.random.default_rng(0).integers(0, 5, 60)
    rows, held = np.arange(60.0)[:, None], np.arange(100.0, 110)[:, None]
    parts = {"train": (rows, y), "validation": (held, np.arange(10) % 5), "test": (held, np.arange(10) % 5)}
    pool = keep_classes(pool_of("x", parts, "arrays", group=np.arange(60) // 2), [str(i) for i in order[:count]])
    for file, (x, labels) in zip((pool.rows, pool.validation, pool.test), parts.values(), strict=True):
        kept = np.isin(labels, order[:count])
        assert np.array_equal(file.inputs, x[kept])
        assert np.array_equal(np.array(order)[file.targets], labels[kept])
    assert np.array_equal(pool.group, (np.arange(60) // 2)[np.isin(y, order[:count])])


def test_names_go_before_numbers():
    pool = pool_of("x", {"train": (np.arange(6.0)[:, None], np.array([1, 2, 3] * 2))}, "arrays")
    assert keep_classes(pool, ["3", "1"]).class_names == ("3", "1")
    with pytest.raises(LegatoValueError, match="each once; got 1, 1"):
        keep_classes(pool, ["1", "0"])


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("shirt", "coats"), "Did you mean 'coat'"),
        (("shirt", "10"), "expected one of"),
        (("shirt",), "two or more"),
        ((), "got none"),
        (("shirt", "shirt"), "each once"),
        (("shirt", "6"), "each once"),
    ],
)
def test_classes_that_cannot_be_kept(classes, words):
    with pytest.raises(LegatoValueError, match=words):
        data.load("fashion-mini", classes=classes)


def test_one_name_is_no_sequence_of_names():
    with pytest.raises(LegatoTypeError, match="a sequence of names"):
        data.load("fashion-mini", classes="shirt")


def test_a_class_that_is_too_small_can_be_left_out(tmp_path):
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(20)) + "3,c\n")
    assert data.load(tmp_path / "t.csv", target="y", classes=("b", "a")).class_names == ("b", "a")
