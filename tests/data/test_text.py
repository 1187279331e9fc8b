"""Text: spans that do not touch, windows, batches from (seed, epoch), and what cannot be used."""

import gzip
import random
import sysconfig

import pytest
import torch

from legato.data import text as texts
from legato.data.text import CORPORA, DEFAULT, GAP, Corpus, TextBatches, load_text, where, windows
from legato.errors import DataError, DataNotFoundError, LegatoValueError


def words(seed, count=4000):
    """About 24 kB that occur nowhere else."""
    draw = random.Random(seed)
    return " ".join(f"{draw.getrandbits(20):05x}" for _ in range(count)).encode()


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.txt").write_bytes(words(i))
    return tmp_path


def test_no_test_text_touches_training_text(folder):
    found = load_text(folder)
    whole = b"".join(document + b"\0" for document in sorted_documents(words(i) for i in range(6)))
    train, validation, test = (bytes(part.tolist()) for part in (found.train, found.validation, found.test))
    first, second = int(0.8 * len(whole)), int(0.9 * len(whole))
    assert whole == train + whole[len(train) : first + GAP] + validation + whole[second - GAP : second + GAP] + test
    assert len(train) == first - GAP
    pieces = [{part[i : i + 12] for i in range(len(part) - 12)} for part in (train, validation, test)]
    assert not pieces[0] & pieces[2] and not pieces[1] & (pieces[0] | pieces[2])


def sorted_documents(documents):
    import hashlib

    return sorted(documents, key=lambda document: hashlib.sha256(document).hexdigest())


def test_equal_binary_empty_and_hidden_files_are_left_out(folder):
    before = load_text(folder)
    (folder / "copy.txt").write_bytes(words(0))
    (folder / "empty.txt").touch()
    (folder / "picture").write_bytes(b"\x89PNG\0\0")
    (folder / ".hidden").write_bytes(words(77))
    (folder / ".git").mkdir()
    (folder / ".git" / "x").write_bytes(words(78))
    after = load_text(folder)
    assert torch.equal(before.train, after.train)
    assert before.provenance.sha256 == after.provenance.sha256
    assert "3 files left out" in after.provenance.notes[1]


def test_names_of_files_do_not_matter_and_contents_do(folder):
    before = load_text(folder)
    (folder / "0.txt").rename(folder / "zzz.txt")
    assert load_text(folder).provenance.sha256 == before.provenance.sha256
    (folder / "1.txt").write_bytes(words(1)[:-1])
    assert load_text(folder).provenance.sha256 != before.provenance.sha256


def test_a_packed_file_is_its_content_and_one_file_is_enough(tmp_path):
    plain, packed = tmp_path / "a.txt", tmp_path / "b.txt.gz"
    plain.write_bytes(words(3, 10000))
    packed.write_bytes(gzip.compress(words(3, 10000)))
    assert torch.equal(load_text(plain).test, load_text(packed).test)
    assert load_text(plain).provenance.source == "file: a.txt"
    packed.write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"b\.txt\.gz: expected a file that gzip can unpack"):
        load_text(packed)


def test_the_standard_library_is_there_without_its_tests():
    found = load_text()
    assert found.provenance.name == "python"
    assert len(found.provenance.sha256) == 64
    assert len(found.train) > 5_000_000
    assert sysconfig.get_path("stdlib") not in repr(found.provenance)
    assert b"class TestCase" in b"".join(bytes(part.numpy()) for part in (found.train, found.validation, found.test))
    assert b"def test_assertIs" not in bytes(found.train.numpy())
    assert load_text() is found
    assert where(DEFAULT)


def test_a_corpus_of_the_table_is_looked_for_in_the_users_folder_first(tmp_path, monkeypatch):
    monkeypatch.setitem(
        CORPORA, "small", Corpus(lambda: [tmp_path / "system"], ".pod", "free", "", "apt-get install it")
    )
    monkeypatch.setattr(texts, "LEAST", 1000)
    with pytest.raises(DataNotFoundError, match="apt-get install it"):
        load_text("small")
    assert not where("small")
    for place, seed in (("system", 1), ("small", 2)):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.pod").write_bytes(words(seed, 8000))
        (tmp_path / place / "other.txt").write_bytes(words(9))
    assert bytes(load_text("small").train[:50].tolist()) == words(1)[:50]
    assert bytes(load_text("small", data_dir=tmp_path).train[:50].tolist()) == words(2)[:50]
    monkeypatch.setattr(texts, "LEAST", 10**9)
    assert not where("small")


def test_windows_are_even_and_inside():
    tokens = torch.arange(50, dtype=torch.uint8)
    found = windows(tokens, 9, 5)
    assert found.dtype == torch.int64
    assert found[:, 0].tolist() == [0, 10, 20, 30, 40]
    assert found[-1].tolist() == list(range(40, 50))
    assert len(windows(tokens, 9, 1000)) == 41
    assert windows(tokens, 49, 3).tolist() == [list(range(50))]


def test_batches_follow_from_seed_and_epoch():
    tokens = torch.arange(200, dtype=torch.uint8)
    batches = TextBatches(tokens, 7, 4, 30, seed=1)
    first = list(batches.epoch(2))
    assert len(first) == len(batches) == 30
    for inputs, targets, index in first:
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert torch.equal(inputs[:, 0], index)
        assert torch.equal(targets[:, -1], index + 7)
    starts = torch.stack([index for _, _, index in first])
    assert starts.min() >= 0 and starts.max() <= 192 and len(starts.unique()) > 60
    again = torch.stack([index for _, _, index in batches.epoch(2)])
    assert torch.equal(starts, again)
    for other in (batches.epoch(3), TextBatches(tokens, 7, 4, 30, seed=2).epoch(2)):
        assert not torch.equal(starts, torch.stack([index for _, _, index in other]))


def test_every_window_can_be_drawn():
    tokens = torch.arange(10, dtype=torch.uint8)
    drawn = torch.stack([index for _, _, index in TextBatches(tokens, 7, 4, 30).epoch(0)])
    assert drawn.unique().tolist() == [0, 1, 2]


def test_bad_input(tmp_path):
    tokens = torch.zeros(10, dtype=torch.uint8)
    (tmp_path / "short.txt").write_bytes(words(1, 200))
    for call, kind, message in (
        (lambda: windows(tokens, 10, 1), DataError, "at least 11 bytes in each span, for windows of 10; got 10"),
        (lambda: TextBatches(tokens, 10, 1, 1), DataError, "at least 11 bytes"),
        (lambda: windows(tokens, 0, 1), LegatoValueError, "length: expected"),
        (lambda: TextBatches(tokens, 2, 0, 1), LegatoValueError, "batch_size: expected"),
        (lambda: TextBatches(tokens, 2, 1, 0), LegatoValueError, "batches: expected"),
        (lambda: load_text(tmp_path / "short.txt"), DataError, "to be cut in three; got 1200"),
        (lambda: load_text(tmp_path / "nowhere.txt"), DataNotFoundError, "no such file or folder"),
        (lambda: load_text("pyton"), LegatoValueError, "Did you mean 'python'"),
    ):
        with pytest.raises(kind, match=message):
            call()
