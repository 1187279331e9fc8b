"""Text for a language model: bytes of the Python standard library, of Debian's manuals, or of any file or folder, in three spans."""

import gzip
import hashlib
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from legato import errors
from legato.data.batches import _mix
from legato.data.places import data_folder
from legato.data.splits import Provenance

DEFAULT = "python"
VOCABULARY = 256
"""Tokens are bytes; the byte 0, which no text file has, ends each document."""
GAP = 1024
"""Bytes that are left out between two spans."""
LEAST = 1_000_000
"""Bytes that a folder must hold to be a corpus of the table: some packages bring a manual or two of another."""
SHARES = (0.8, 0.9)
"""Of the bytes, where training text and validation text end."""
PACKED = (".gz", ".dz")
LEFT_OUT = frozenset(("test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__"))
"""Folders of the standard library."""


@dataclass(frozen=True)
class Text:
    """A corpus, cut in three: learn on `train`, choose on `validation`, report on `test`. Tensors uint8 [n], on the CPU."""

    train: Tensor
    validation: Tensor
    test: Tensor
    provenance: Provenance

    vocabulary = VOCABULARY


@dataclass(frozen=True)
class Corpus:
    """A row of the table of texts: where its files are."""

    folders: Callable[[], list[Path]]
    """Where it may lie; the first folder that has such files is taken."""
    ending: str
    licence: str
    citation: str
    get: str
    """The command that brings it."""
    without: frozenset[str] = frozenset()
    """Names of folders that are left out."""


def _below(parent: str, pattern: str) -> Callable[[], list[Path]]:
    return lambda: sorted(Path(parent).glob(pattern), reverse=True)


CORPORA = {
    DEFAULT: Corpus(
        lambda: [Path(sysconfig.get_path("stdlib"))], ".py", "PSF-2.0",
        f"Python {sys.version_info.major}.{sys.version_info.minor} standard library, without tests", "comes with Python", LEFT_OUT,
    ),
    "perl-doc": Corpus(
        _below("/usr/share/perl", "5*/pod"), ".pod", "Artistic or GPL-1+", "Perl manuals, Debian package perl-doc", "apt-get install perl-doc",
    ),
    "python-doc": Corpus(
        _below("/usr/share/doc", "python3.*/html/_sources"), ".txt", "PSF-2.0", "Python documentation, Debian package python3-doc",
        "apt-get install python3-doc",
    ),
    "anarchism": Corpus(
        _below("/usr/share/doc", "anarchism/markdown"), ".md.gz", "GPL-2+",
        "An Anarchist FAQ, Debian package anarchism", "apt-get install anarchism",
    ),
    "gcide": Corpus(
        _below("/usr/share", "dictd"), "gcide.dict.dz", "GPL, see its notice", "GNU Collaborative International Dictionary of English, Debian package dict-gcide",
        "apt-get install dict-gcide",
    ),
}  # fmt: skip


def load_text(text: str | os.PathLike[str] = DEFAULT, *, data_dir: str | os.PathLike[str] | None = None) -> Text:
    """Read a text and cut it in train, validation and test.

    Documents (files) are put in the order of their SHA-256, each once, so the spans differ in nothing but chance; the spans are cut at 80%
    and 90% of the bytes, and 1024 bytes on either side of a cut are left out, so that no window reaches from one into another.

    Args:
        text: a name of `CORPORA`, a file, or a folder, of which every file below that holds no byte 0 is a document, hidden ones apart;
            files that end in .gz or .dz are unpacked.
        data_dir: a folder named after the text is looked for there first; then in $LEGATO_DATA and where Debian's packages put it.
    Returns: the spans; kept for the next call while the files do not change.
    Raises: DataNotFoundError for a text that is nowhere; DataError for one that is too short to be cut.
    """
    named = str(text)
    if named in CORPORA:
        return _read(named, _found(named, CORPORA[named], data_dir), named)
    path = Path(text).expanduser().absolute()
    if path.exists():
        return _read(path.name, path, "", _stamp(path))
    if "/" in named or path.suffix:
        raise errors.DataNotFoundError(f"text: {named}: there is no such file or folder, seen from {Path.cwd().name}.")
    raise errors.choice("text", named, CORPORA)


def where(name: str, data_dir: str | os.PathLike[str] | None = None) -> str:
    """The place of a corpus of the table in words, or "" where it is nowhere."""
    try:
        _found(name, CORPORA[name], data_dir)
    except errors.DataNotFoundError:
        return ""
    return "here"


def windows(tokens: Tensor, length: int, count: int) -> Tensor:
    """`count` windows of length + 1 tokens, evenly spaced from the first to the last place.

    Args:
        tokens: uint8 [n].
        length: T >= 1; window[:, :-1] are inputs and window[:, 1:] their next tokens.
        count: >= 1; fewer are given where the text has fewer places.
    Returns: int64 [count, T + 1].
    Raises: DataError for a text shorter than T + 1.
    """
    places = _places(tokens, length)
    starts = np.unique(np.linspace(0, places - 1, min(count, places)).round().astype(np.int64))
    return tokens.unfold(0, length + 1, 1)[torch.from_numpy(starts)].long()


class TextBatches:
    """Random windows of a text as batches (tokens, next tokens, index), everything from (seed, epoch).

    Args:
        tokens: uint8 [n].
        length: T >= 1.
        batch_size: windows a batch.
        batches: an epoch.
        seed: of all epochs.
    Raises: DataError for a text shorter than T + 1.
    """

    def __init__(self, tokens: Tensor, length: int, batch_size: int, batches: int, *, seed: int = 0) -> None:
        for name, value in (("batch_size", batch_size), ("batches", batches)):
            if value < 1:
                raise errors.argument(name, expected="a whole number >= 1", got=value)
        self.places = _places(tokens, length)
        self.tokens, self.length, self.batch_size, self.batches, self.seed = tokens, length, batch_size, batches, seed

    def __repr__(self) -> str:
        return f"TextBatches({len(self.tokens)} tokens, length={self.length}, batch_size={self.batch_size}, seed={self.seed})"

    def __len__(self) -> int:
        return self.batches

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of int64 [B, T], [B, T] and [B], the last being where the windows begin."""
        generator = Generator().manual_seed(_mix(self.seed, epoch))
        starts = torch.randint(self.places, (self.batches, self.batch_size), generator=generator)
        view = self.tokens.unfold(0, self.length + 1, 1)
        for index in starts:
            window = view[index.to(view.device)].long()
            yield window[:, :-1], window[:, 1:], index


def _places(tokens: Tensor, length: int) -> int:
    """How many windows a text has."""
    if length < 1:
        raise errors.argument("length", expected="a whole number >= 1", got=length)
    if len(tokens) < length + 1:
        raise errors.DataError(
            errors.message(
                "text", expected=f"at least {length + 1} bytes in each span, for windows of {length}", got=f"{len(tokens)} in one",
                fix="a longer text, or a smaller length",
            )
        )  # fmt: skip
    return len(tokens) - length


def _found(name: str, corpus: Corpus, data_dir: str | os.PathLike[str] | None) -> Path:
    """The first folder that has enough files of the corpus."""
    own = data_folder(data_dir)
    tried = [*([own / name] if own else []), *corpus.folders()]
    for folder in tried:
        sizes = accumulate(file.stat().st_size for file in _files(folder, corpus))
        if any(size >= LEAST for size in sizes):
            return folder
    places = ", ".join(map(str, tried)) or "none of its usual places is there"
    raise errors.DataNotFoundError(
        f"{name}: no {LEAST / 1e6:g} MB of files that end in {corpus.ending} were found ({places}). Fix: {corpus.get}."
    )


def _files(folder: Path, corpus: Corpus | None) -> Iterator[Path]:
    """The files of a corpus below a folder, or all but hidden ones."""
    for place, folders, names in os.walk(folder):
        # What is left out is not entered either: a site-packages holds more files than all the rest.
        skipped = corpus.without if corpus else frozenset()
        folders[:] = sorted(name for name in folders if name not in skipped and not name.startswith("."))
        for name in sorted(names):
            if name.endswith(corpus.ending) if corpus else not name.startswith("."):
                yield Path(place, name)


@lru_cache(maxsize=4)
def _read(name: str, path: Path, table: str, stamp: object = None) -> Text:
    corpus = CORPORA.get(table)
    paths = [path] if path.is_file() else list(_files(path, corpus))
    read = [_document(file) for file in paths if file.is_file()]
    found = {hashlib.sha256(document).hexdigest(): document for document in read if document and b"\0" not in document}
    tokens = np.frombuffer(b"".join(found[key] + b"\0" for key in sorted(found)), np.uint8)
    sha256 = hashlib.sha256(tokens.tobytes()).hexdigest()
    notes = (
        f"{len(found)} documents in the order of their SHA-256, {len(tokens)} bytes, each document ended by a byte 0",
        f"{len(read) - len(found)} files left out: empty, the same as another, or with a byte 0 in them",
        f"cut at {SHARES[0]:.0%} and {SHARES[1]:.0%} of the bytes, {GAP} left out on either side of a cut",
    )
    licence, citation = (corpus.licence, corpus.citation) if corpus else ("not stated", "")
    source = "files of this machine" if corpus else f"file: {name}" if path.is_file() else f"folder: {name}"
    return Text(*_cut(tokens), Provenance(name, licence, citation, source, sha256, notes))


def _document(path: Path) -> bytes:
    raw = path.read_bytes()
    if not path.name.endswith(PACKED):
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, ValueError) as problem:
        raise errors.DataError(
            errors.message(path.name, expected="a file that gzip can unpack", got=problem)
        ) from problem


def _cut(tokens: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    first, second = (int(share * len(tokens)) for share in SHARES)
    spans = tokens[: max(0, first - GAP)], tokens[first + GAP : second - GAP], tokens[second + GAP :]
    if any(len(span) < 2 for span in spans):
        raise errors.DataError(
            errors.message("text", expected=f"more than {30 * GAP} bytes, to be cut in three", got=f"{len(tokens)}", fix="a longer text")
        )  # fmt: skip
    first_, second_, third = (torch.from_numpy(span.copy()) for span in spans)
    return first_, second_, third


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes when one of the files does."""
    files = [path] if path.is_file() else list(_files(path, None))
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file())
