"""A folder of plain files: one JSON a trial, written once, by atomic rename; large arrays beside it.

    config.json   environment.json   trials/KEY.json   trials/KEY.safetensors
    locks/        scratch/           failed/KEY.txt    damaged/

The JSON is the commit point: its arrays are written before it. Reading changes nothing in the folder; `create` sets aside what
is damaged. Every file holds the version of legato, and one folder holds one version.
"""

import errno
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from legato import __version__, errors
from legato.lab import environment
from legato.lab.files import Damaged, pack_arrays, pack_json, refused, unpack_arrays, write
from legato.lab.trial import Arrays, Outcome, Record, as_plain, hash_of, identity, plain_json

ENTIRE_FOLDER = "folder"
"""The lock under which files that belong to no trial are written."""


class Store:
    """The results of one study in one folder, shared by any number of processes."""

    def __init__(self, folder: str | Path, study: str, schema: int) -> None:
        self.folder, self.study, self.schema = Path(folder), study, schema

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r}, study={self.study!r}, schema={self.schema})"

    def create(self) -> None:
        """Make the folder ready for new trials; set damaged files aside, so that their trials are done again.

        Raises: StoreError when the folder cannot be written, or holds trials of another study, schema or version of legato.
        """
        try:
            for name in ("trials", "locks", "scratch"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise refused(self.folder, problem) from problem
        if not os.access(self.folder, os.W_OK):
            raise refused(self.folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
        for path in self._paths():
            with suppress(FileNotFoundError):  # set aside by another process in between
                try:
                    version = self._record(path).version
                except Damaged:
                    self._set_aside_if_damaged(path)
                    continue
                if version != __version__:
                    raise self._mixed(version)
        if not (self.folder / "environment.json").exists():
            self.note_environment()

    def key(self, config: Any) -> str:
        """The name of a trial: 64 hex digits."""
        return hash_of(identity(self.study, self.schema, config))

    def has(self, config: Any) -> bool:
        """Whether the trial is finished, without a look into its file."""
        return self._path(self.key(config)).exists()

    def finished(self) -> set[str]:
        """Keys of the finished trials, without a look into their files."""
        try:
            names = [path.name for path in (self.folder / "trials").iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return set()
        return {name.removesuffix(".json") for name in names if name.endswith(".json")}

    def get(self, config: Any) -> Record | None:
        """The record of a finished trial; None if there is none, or a damaged one."""
        path = self._path(self.key(config))
        try:
            return self._record(path)
        except FileNotFoundError:
            return None
        except Damaged as damage:
            _warn(path, damage)
            return None

    def records(self, known: Iterable[Record] = ()) -> list[Record]:
        """All finished trials, by key. A damaged file is named in a LegatoWarning and counts as absent.

        Args:
            known: what was read before; a trial is written once, so these are not read again.
        Raises: StoreError when the trials are of different versions of legato, or of another study or schema.
        """
        before = {record.key: record for record in known}
        found: list[Record] = []
        for path in self._paths():
            try:
                record = before.get(path.stem) or self._record(path)
            except FileNotFoundError:  # set aside by another process in between
                continue
            except Damaged as damage:
                _warn(path, damage)
                continue
            if found and record.version != found[0].version:
                raise self._mixed(min({found[0].version, record.version} - {__version__}))
            found.append(record)
        return found

    def arrays(self, key: str) -> dict[str, Any]:
        """The arrays of a trial; empty if it has none.

        Raises: StoreError when there is no such trial, or when it is damaged.
        """
        path = self._path(key)
        try:
            _, packed = self._load(path)
        except FileNotFoundError as problem:
            raise errors.StoreError(f"{path}: there is no such trial.") from problem
        except Damaged as damage:
            raise errors.StoreError(f"{_words(path, damage)}. Fix: run the command that made it again.") from damage
        return unpack_arrays(packed) if packed else {}

    def put(self, config: Any, outcome: Outcome, seconds: float) -> Record:
        """File a finished trial, under its lock: arrays first, then the JSON that makes it count.

        Raises: StoreError for a full disk; LegatoTypeError for metrics or arrays that cannot be stored.
        """
        named = identity(self.study, self.schema, config)
        path = self._path(hash_of(named))
        body = {
            "identity": named,
            "config": as_plain(config),
            "metrics": plain_json(outcome.metrics, "metrics"),
            "seconds": seconds,
            "version": __version__,
            "arrays_sha256": None,
        }
        if outcome.arrays:
            packed = pack_arrays(outcome.arrays)
            body["arrays_sha256"] = hashlib.sha256(packed).hexdigest()
            write(path.with_suffix(".safetensors"), packed)
        write(path, pack_json({**body, "sha256": hash_of(body)}))
        return _to_record(path.stem, body)

    @contextmanager
    def lock(self, key: str) -> Iterator[bool]:
        """Try to take a trial, without waiting: True if it is ours. The system frees the lock when its holder dies."""
        path = self.folder / "locks" / f"{key}.lock"
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        except OSError as problem:
            raise refused(path, problem) from problem
        try:
            yield True
        finally:
            if self._path(key).exists():  # whoever takes the lock from now on sees that nothing is left to do
                with suppress(OSError):
                    path.unlink()
            lock.release()

    def write_config(self, about: Mapping[str, Any]) -> None:
        """Keep what was asked, beside the trials; study, schema and version are added."""
        self.create()
        about = {**plain_json(about, "config"), "study": self.study, "schema": self.schema, "version": __version__}
        with self._alone():
            write(self.folder / "config.json", pack_json(about))

    def read_config(self) -> dict[str, Any]:
        """What was asked."""
        return read_config(self.folder)

    def read_environment(self) -> dict[str, Any]:
        """What the trials were measured with; empty if nobody noted it."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "environment.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return found

    def note_environment(self) -> None:
        """Keep the first environment, and below `also` every other one; call it before trials are added.

        A LegatoWarning says what has changed, the first time. Of a cluster, the machine that hands out the trials is kept.
        """
        now = environment.describe()
        with self._alone():
            noted = self.read_environment()
            also = noted.pop("also", [])
            if now in (noted, *also):
                return
            if noted:
                changed = [
                    f"{name} was {noted.get(name)} and is {now[name]}" for name in now if now[name] != noted.get(name)
                ]
                text = f"{self.folder}: earlier trials were measured with something else: {', '.join(changed)}."
                warnings.warn(f"{text} Last digits may differ.", errors.LegatoWarning, stacklevel=4)
            noted = {**noted, "also": [*also, now]} if noted else now
            write(self.folder / "environment.json", pack_json(noted))

    def write_arrays(self, name: str, arrays: Arrays) -> None:
        """Keep arrays that belong to the whole run."""
        with self._alone():
            write(self.folder / f"{name}.safetensors", pack_arrays(arrays))

    def read_arrays(self, name: str) -> dict[str, Any]:
        """What `write_arrays` kept; empty if it kept nothing."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            return {}
        try:
            return unpack_arrays(path.read_bytes())
        except Damaged as damage:
            raise errors.StoreError(f"{path} is damaged. Fix: run the command that made it again.") from damage

    def named_arrays(self) -> list[str]:
        """The names that `write_arrays` was given."""
        return sorted(path.stem for path in self.folder.glob("*.safetensors"))

    def _path(self, key: str) -> Path:
        return self.folder / "trials" / f"{key}.json"

    def _paths(self) -> list[Path]:
        return [self._path(key) for key in sorted(self.finished())]

    def _load(self, path: Path) -> tuple[dict[str, Any], bytes]:
        """The checked content of a trial's file, and its packed arrays."""
        try:
            content = path.read_bytes()
            body = json.loads(content)
            if body.pop("sha256") != hash_of(body):
                raise Damaged("its content does not fit its checksum")
            if hash_of(body["identity"]) != path.stem:
                raise Damaged("its name does not fit its config")
        except FileNotFoundError:
            raise
        except OSError as problem:
            raise errors.StoreError(f"{path} cannot be read ({problem.strerror}).") from problem
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise Damaged("it is cut off or was changed") from problem
        study, schema = body["identity"]["study"], body["identity"]["schema"]
        if (study, schema) != (self.study, self.schema):
            raise errors.StoreError(
                f"{self.folder}: holds trials of the study {study!r}, schema {schema}; this is {self.study!r}, schema {self.schema}. "
                "Fix: choose another folder with --out."
            )
        return body, _checked_arrays(path.with_suffix(".safetensors"), body["arrays_sha256"])

    def _record(self, path: Path) -> Record:
        return _to_record(path.stem, self._load(path)[0])

    def _set_aside_if_damaged(self, path: Path) -> None:
        with self.lock(path.stem) as ours:
            if not ours:  # somebody is doing this trial again right now
                return
            try:
                self._load(path)
            except FileNotFoundError:
                return
            except Damaged as damage:
                _warn(path, damage)
                (self.folder / "damaged").mkdir(exist_ok=True)
                for file in (path, path.with_suffix(".safetensors")):
                    if file.exists():
                        file.replace(self.folder / "damaged" / file.name)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else writes files that belong to no trial."""
        lock = FileLock(self.folder / "locks" / f"{ENTIRE_FOLDER}.lock")
        try:
            lock.acquire()
        except OSError as problem:
            raise refused(self.folder, problem) from problem
        try:
            yield
        finally:
            lock.release()

    def _mixed(self, version: str) -> errors.StoreError:
        return errors.StoreError(
            f"{self.folder}: holds trials of legato {version}, and this is {__version__}; their numbers must not be mixed. "
            f"Fix: choose another folder with --out, or finish this one with legato=={version}."
        )


def open_store(folder: Path) -> Store:
    """The store that a study has made in `folder`; for reading.

    Raises: StoreError when `folder` is none.
    """
    about = read_config(folder)
    return Store(folder, about["study"], about["schema"])


def read_config(folder: Path) -> dict[str, Any]:
    """What was asked of the run in `folder`."""
    path = folder / "config.json"
    try:
        about: dict[str, Any] = json.loads(path.read_bytes())
        if not {"study", "schema", "version"} <= about.keys():
            raise ValueError("not a config of a store")
    except (FileNotFoundError, NotADirectoryError) as problem:
        raise errors.StoreError(
            f"{folder} is no run of legato: it has no config.json. Fix: name the folder given as --out."
        ) from problem
    except OSError as problem:
        raise errors.StoreError(f"{path} cannot be read ({problem.strerror}).") from problem
    except (ValueError, AttributeError) as problem:
        raise errors.StoreError(
            f"{path} is damaged. Fix: run the command that made it again; finished trials are kept."
        ) from problem
    return about


def _checked_arrays(path: Path, digest: str | None) -> bytes:
    if digest is None:
        return b""
    try:
        packed = path.read_bytes()
    except FileNotFoundError as problem:
        raise Damaged(f"{path.name} is missing") from problem
    if hashlib.sha256(packed).hexdigest() != digest:
        raise Damaged(f"{path.name} does not fit its checksum")
    return packed


def _to_record(key: str, body: Mapping[str, Any]) -> Record:
    return Record(key, body["config"], body["metrics"], body["seconds"], body["version"])


def _words(path: Path, damage: Damaged) -> str:
    return f"{path} is damaged: {damage}"


def _warn(path: Path, damage: Damaged) -> None:
    text = f"{_words(path, damage)}. It counts as absent, and the same command does the trial again."
    warnings.warn(text, errors.LegatoWarning, stacklevel=4)
