"""A run that is stopped, killed or robbed of its disk at any moment goes on to the last bit of an undisturbed one."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import SGD, Changed, Stop, StoppingBatches, digits, fit, losses, net, weights
from torch import Generator, Tensor, nn

from legato import training
from legato.errors import CheckpointError, LegatoWarning
from legato.training import checkpoint
from legato.training.checkpoint import Checkpoints
from legato.training.objective import Batch
from legato.training.plain import flatten, unflatten

OFTEN = {"epochs": 3, "checkpoint_seconds": 0}


def stopped(folder: Path, after: int, model: nn.Module | None = None, **options: Any) -> None:
    """A run that ends after some batches, with a checkpoint after each."""
    with pytest.raises(Stop):
        fit(model, StoppingBatches(digits(), after), folder=folder, **OFTEN | options)


def generations(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("optimizer", "stop_after"),
    [(SGD, 3), (SGD, 8), (partial(torch.optim.Adam, lr=0.01), 13), (partial(torch.optim.AdamW, lr=0.01), 16)],
)
def test_resume_is_bitwise_equal_to_an_undisturbed_run(tmp_path: Path, optimizer: Any, stop_after: int) -> None:
    options = {"epochs": 3, "optimizer": optimizer, "ema_decay": 0.9, "clip_norm": 1.0}
    options["validate"] = lambda model: {"validation_error": float(weights(model).norm())}
    torch.manual_seed(1)
    whole = fit(net(dropout=0.5), **options)
    torch.manual_seed(1)
    stopped(tmp_path, stop_after, net(dropout=0.5), **options)
    torch.manual_seed(99)  # a new process has other random numbers
    resumed = fit(net(dropout=0.5), folder=tmp_path, checkpoint_seconds=0, **options)
    assert torch.equal(weights(whole.model), weights(resumed.model))
    assert losses(whole) == losses(resumed)
    assert whole.best is not None
    assert resumed.best is not None
    assert (whole.best.value, whole.best.epoch) == (resumed.best.value, resumed.best.epoch)
    assert all(torch.equal(value, resumed.best.weights[name]) for name, value in whole.best.weights.items())
    again = fit(net(dropout=0.5), folder=tmp_path, checkpoint_seconds=0, **options)
    assert torch.equal(weights(again.model), weights(whole.model)), "a finished run is not trained on"
    assert again.steps == 24


def test_an_objective_with_random_numbers_of_its_own_goes_on_with_them(tmp_path: Path) -> None:
    class Noisy(Changed):
        """A margin drawn anew for each batch."""

        def __init__(self) -> None:
            super().__init__()
            self.generator = Generator().manual_seed(5)

        def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
            margin = torch.rand((), generator=self.generator)
            return self.plain.loss(model, batch, step) * (1 + margin)

        def state_dict(self) -> dict[str, Any]:
            return {"generator": self.generator.get_state()}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.generator.set_state(state["generator"])

    whole = fit(objective=Noisy(), epochs=3)
    stopped(tmp_path, 11, objective=Noisy())
    resumed = fit(objective=Noisy(), folder=tmp_path, **OFTEN)
    assert torch.equal(weights(whole.model), weights(resumed.model))
    assert not torch.equal(weights(whole.model), weights(fit(epochs=3).model))


def killed(work: Callable[[], object]) -> bool:
    """Do `work` in a child of this process, and say whether it was killed on the way."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def kill_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, except that its process dies for real at the start of a certain call."""
    calls = iter(range(1, call))

    def deadly(*arguments: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return deadly


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_kill_nine_and_again(tmp_path: Path) -> None:
    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made = SGD(parameters)
        made.step = kill_at(12, made.step)  # type: ignore[method-assign]
        return made

    options = OFTEN | {"schedule": None}
    assert killed(lambda: fit(net(), optimizer=optimizer, folder=tmp_path, **options))
    assert max(generations(tmp_path)) == "checkpoint-000011"
    resumed = fit(net(), folder=tmp_path, **options)
    assert torch.equal(weights(resumed.model), weights(fit(net(), epochs=3, schedule=None).model))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning", "error:damaged")
@pytest.mark.parametrize("where", ["save_file", "_synchronise", "rmtree"])
def test_kill_nine_while_a_checkpoint_is_written_leaves_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """At every step of the writing: before the tensors, before each flush to the disk, before old ones are removed."""
    import safetensors.torch

    owner = {"save_file": safetensors.torch, "_synchronise": checkpoint, "rmtree": shutil}[where]
    died = 0
    while True:
        folder = tmp_path / str(died)
        for number in (1, 2):
            Checkpoints(folder, 0).save({"number": number, "weights": torch.full((100,), number)})
        with monkeypatch.context() as patched:
            patched.setattr(owner, where, kill_at(died + 1, getattr(owner, where)))
            if not killed(partial(Checkpoints(folder, 0).save, {"number": 3, "weights": torch.full((100,), 3)})):
                break
        died += 1
        state = Checkpoints(folder, 0).load()
        assert state is not None
        assert state["number"] in (2, 3)
        assert (state["weights"] == state["number"]).all()
        Checkpoints(folder, 0).save({"number": 4})
        numbers = [2, 3] if state["number"] == 2 else [3, 4]
        assert generations(folder) == [f"checkpoint-{number:06d}" for number in numbers]
    assert died == {"save_file": 1, "_synchronise": 4, "rmtree": 1}[where]


def flip_a_bit(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_the_tensors(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


def change_the_state(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text().replace('"step": ', '"step": 1'))


def lose_the_state(folder: Path) -> None:
    (folder / "state.json").unlink()


DAMAGES = [flip_a_bit, cut_the_tensors, change_the_state, lose_the_state]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    stopped(tmp_path, 11)
    assert generations(tmp_path) == ["checkpoint-000010", "checkpoint-000011"]
    damage(tmp_path / "checkpoint-000011")
    with pytest.warns(LegatoWarning, match=r"damaged checkpoint .*checkpoint-000011.*goes on from checkpoint-000010"):
        stopped(tmp_path, 12)  # one batch is skipped to get there: two are done, and two checkpoints written
    resumed = fit(folder=tmp_path, **OFTEN)
    assert torch.equal(weights(resumed.model), weights(fit(epochs=3).model))


def test_the_whole_checkpoint_outlives_the_damaged_one(tmp_path: Path) -> None:
    for number in (1, 2):
        Checkpoints(tmp_path, 0).save({"number": number})
    lose_the_state(tmp_path / "checkpoint-000002")
    after = Checkpoints(tmp_path, 0)
    with pytest.warns(LegatoWarning, match="goes on from checkpoint-000001"):
        after.load()
    after.save({"number": 3})
    assert generations(tmp_path) == ["checkpoint-000001", "checkpoint-000003"]


def test_only_damaged_checkpoints_are_an_error_that_names_them(tmp_path: Path) -> None:
    stopped(tmp_path, 11)
    for name in generations(tmp_path):
        flip_a_bit(tmp_path / name)
    with pytest.raises(
        CheckpointError, match=r"000011: the tensors have CRC.*000010: the .*Fix: delete .* to start again"
    ):
        fit(folder=tmp_path, **OFTEN)


def test_generations_are_counted_and_not_spelt(tmp_path: Path) -> None:
    for number in (999_999, 1_000_000):
        Checkpoints(tmp_path, 0).save({"number": number})
        if number == 999_999:
            (tmp_path / "checkpoint-000001").rename(tmp_path / "checkpoint-999999")
    (tmp_path / "checkpoint-000001.copy").mkdir()
    state = Checkpoints(tmp_path, 0).load()
    assert state == {"number": 1_000_000}


@contextmanager
def file_size_limit(count: int) -> Iterator[None]:
    """No file may grow beyond `count` bytes; the system says so as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [1000, 25_000], ids=["tensors", "state"])
def test_a_full_disk_is_said_and_keeps_the_checkpoints_before(tmp_path: Path, size: int) -> None:
    """The tensors are about 24 kB, the state about 35 kB."""
    stopped(tmp_path, 11)
    before = generations(tmp_path)
    with (
        file_size_limit(size),
        pytest.raises(
            CheckpointError, match=r"checkpoint-000012 cannot be written: .*(large|os error 27).*Fix: free some space"
        ),
    ):
        fit(folder=tmp_path, **OFTEN)
    assert generations(tmp_path) == before
    assert torch.equal(weights(fit(folder=tmp_path, **OFTEN).model), weights(fit(epochs=3).model))


def test_best_weights_that_do_not_fit_on_the_disk_leave_the_old_ones(tmp_path: Path) -> None:
    old = {"weights": torch.zeros(10)}
    checkpoint.write_tensors(tmp_path / "best.safetensors", old, {"epoch": "0"})
    with file_size_limit(1000), pytest.raises(CheckpointError, match=r"best\.safetensors cannot be written"):
        checkpoint.write_tensors(tmp_path / "best.safetensors", {"weights": torch.ones(1000)}, {})
    assert generations(tmp_path) == ["best.safetensors"]
    assert checkpoint.read_tensors(tmp_path / "best.safetensors")[1] == {"epoch": "0"}


def test_a_folder_that_cannot_be_is_named_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match=r"file/run cannot be written: .*file is no folder"):
        fit(folder=tmp_path / "file" / "run", batches=StoppingBatches(digits(), 0))
    assert generations(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named_before_training(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="no permission"):
            fit(folder=tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


def test_a_short_run_writes_nothing(tmp_path: Path) -> None:
    fit(folder=tmp_path / "run", validate=lambda model: {"validation_error": 0.5})
    assert not (tmp_path / "run").exists()


def test_a_state_that_cannot_be_stored_is_refused_before_training(tmp_path: Path) -> None:
    class Odd(Changed):
        def state_dict(self) -> dict[str, Any]:
            return {"seen": {1, 2}}

        def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
            raise AssertionError("trained")

    with pytest.raises(CheckpointError, match=r"state of run\.objective\.seen: expected tensors.*; got set"):
        fit(objective=Odd(), folder=tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 4}, "'epochs': 4.*'epochs': 3"),
        ({"accumulate": 2}, "'accumulate': 2.*'accumulate': 1"),
        ({"ema_decay": 0.9}, "'average': 'AveragedModel'.*'average': None"),
        ({"optimizer": partial(torch.optim.Adam, lr=0.1)}, "'optimizer': 'Adam'.*'optimizer': 'SGD'"),
        ({"schedule": training.one_cycle}, "'schedule': 'OneCycleLR'.*'schedule': 'LambdaLR'"),
        ({"batches": digits(batch_size=64)}, "'batches': 4.*'batches': 8"),
        ({"model": nn.Sequential(nn.Linear(64, 10))}, r"'weight 0.weight': 'float32\[10, 64\]'.*'float32\[32, 64\]'"),
        ({"model": net().double()}, "float64.*float32"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused_in_few_words(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    stopped(tmp_path, 9)
    with pytest.raises(
        CheckpointError, match=rf"folder: expected a checkpoint of this run, .*{words}.*another folder"
    ) as it:
        fit(**{"folder": tmp_path, **OFTEN, **change})
    assert len(str(it.value)) < 500


def test_best_weights_by_another_metric_are_not_taken_for_ours(tmp_path: Path) -> None:
    def validate(model: nn.Module) -> dict[str, float]:
        return {"validation_error": 0.1, "nll": 2.0}

    stopped(tmp_path, 17, validate=validate)
    with pytest.warns(LegatoWarning, match="those by 'validation_error', and this run keeps those by 'nll'"):
        fitted = fit(folder=tmp_path, validate=validate, best="nll", **OFTEN)
    assert fitted.best is not None
    assert fitted.best.value == 2.0
    cut = (tmp_path / "best.safetensors").read_bytes()[:-50]
    (tmp_path / "best.safetensors").write_bytes(cut)
    with pytest.warns(LegatoWarning, match="best weights of earlier epochs are not taken up"):
        assert fit(folder=tmp_path, validate=validate, best="nll", **OFTEN).best is None


TREE = {
    "a": {"b": torch.arange(3)},
    "a.b": torch.zeros(2, dtype=torch.bfloat16),
    "counts": {1: torch.ones(1), "1": torch.zeros(1)},
    "pair": (1, 2.5, None, True, "text", float("-inf")),
    "$tensor": "a key like a mark",
    "random": np.random.RandomState(0).get_state(),
    "scalar": np.float32(0.5),
    "empty": [{}, [], ()],
}


def test_a_state_reads_back_as_it_was_through_json() -> None:
    tensors: dict[str, Tensor] = {}
    back = unflatten(json.loads(json.dumps(flatten(TREE, "run", tensors), allow_nan=False)), tensors)
    assert back.keys() == TREE.keys()
    for one, other in [(back["a"]["b"], TREE["a"]["b"]), (back["a.b"], TREE["a.b"])]:  # type: ignore[index]
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    assert {key: value.item() for key, value in back["counts"].items()} == {1: 1.0, "1": 0.0}
    np.testing.assert_array_equal(back["random"][1], TREE["random"][1])  # type: ignore[index]
    assert back["random"][0::2] == TREE["random"][0::2]  # type: ignore[index]
    for name in ("pair", "$tensor", "scalar", "empty"):
        assert back[name] == TREE[name]


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ({1}, "set"),
        (np.array(["text"]), "<U4 array"),
        (torch.eye(2).to_sparse(), "layout torch.sparse_coo"),
        ({(1, 2): 3}, "tuple"),
    ],
)
def test_what_no_checkpoint_holds_is_refused_with_its_place(value: Any, got: str) -> None:
    with pytest.raises(CheckpointError, match=rf"run\.here.*{got}"):
        flatten({"here": value}, "run", {})
