"""Two processes, started by torchrun over gloo, train what one process trains; a mode that was not asked for is refused."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import two_processes
from small_run import digits, fit, losses, weights

from legato.errors import CheckpointError, DeviceError

Found = dict[str, Any]
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Found]:
    """What two processes found; one start serves all tests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    program = [str(Path(two_processes.__file__)), str(folder)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch, "--master_port", str(port), *program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> Found:
    """What this process finds."""
    return two_processes.compare(None)


@pytest.mark.network
@pytest.mark.parametrize("name", [*two_processes.EXACT, "uneven", "two gradients"])
def test_two_processes_are_one_process(ranks: list[Found], alone: Found, name: str) -> None:
    first, second = (found["compared"][name] for found in ranks)
    want = alone[name]
    assert torch.equal(first["weights"], second["weights"])
    torch.testing.assert_close(first["weights"], want["weights"], rtol=1e-9, atol=1e-11)
    assert first["losses"] == second["losses"] == pytest.approx(want["losses"], rel=1e-11)
    assert (first["steps"], first["errors"], first["best"]) == (want["steps"], want["errors"], want["best"])


@pytest.mark.network
def test_two_processes_in_bf16_are_close_to_one(ranks: list[Found], alone: Found) -> None:
    first, second = (found["compared"]["bf16"] for found in ranks)
    assert torch.equal(first["weights"], second["weights"])
    assert first["losses"] == pytest.approx(alone["bf16"]["losses"], rel=1e-2)
    plain = alone["plain"]["losses"]
    assert first["losses"] != pytest.approx(plain, rel=1e-6), "it was bfloat16"
    assert first["losses"] == pytest.approx(plain, rel=0.05)


@pytest.mark.network
def test_a_stopped_run_of_two_processes_goes_on_to_the_end_of_an_undisturbed_one(
    ranks: list[Found], alone: Found, folder: Path
) -> None:
    for found in ranks:
        torch.testing.assert_close(found["resumed"]["weights"], alone["averaged"]["weights"], rtol=1e-9, atol=1e-11)
        assert found["resumed"]["losses"] == pytest.approx(alone["averaged"]["losses"], rel=1e-11)
        assert found["resumed"]["best"] == alone["averaged"]["best"]
        assert torch.equal(found["dropout resumed"]["weights"], found["dropout whole"]["weights"])
        assert found["dropout resumed"]["losses"] == found["dropout whole"]["losses"]
    with pytest.raises(CheckpointError, match=r"'processes': 1.*'processes': 2"):
        two_processes.precise(batches=two_processes.share(None), folder=folder / "dropout")


@pytest.mark.network
def test_what_one_process_sees_ends_the_run_of_all(ranks: list[Found]) -> None:
    assert [found["diverged"]["diverged"] for found in ranks] == [
        "the loss is not finite: nan at step 7, in epoch 0"
    ] * 2
    assert [found["logged"] for found in ranks] == [1, 0], "the first process speaks for all"


@pytest.mark.network
@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("without accelerator", "DeviceError: accelerator: expected an Accelerator, .*WORLD_SIZE=2.*accelerator=Accel"),
        (
            "other processes",
            "DeviceError: accelerator: expected 3 processes, as WORLD_SIZE says; got 2.*--nproc_per_node",
        ),
        (
            "sharded",
            "DeviceError: .* plain data parallel training; got FSDP asked for, which has become MULTI_CPU.*plugins",
        ),
        ("same rows", "LegatoValueError: batches: .*own rows; got the same 32 rows in all 2 processes.*world_size"),
        ("other lengths", r"LegatoValueError: batches: .*in every process; got \[8, 6\]"),
    ],
)
def test_another_mode_than_was_asked_for_is_refused(ranks: list[Found], case: str, text: str) -> None:
    for found in ranks:
        assert re.search(text, found["refused"][case]), found["refused"][case]


def accelerator(**changes: Any) -> Any:
    """As `_check_accelerator` sees one."""
    settings = {
        "num_processes": 1,
        "process_index": 0,
        "device": torch.device("cpu"),
        "distributed_type": SimpleNamespace(value="NO"),
        "gradient_accumulation_steps": 1,
        "mixed_precision": "no",
    }
    return SimpleNamespace(**settings | changes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_processes": 2}, "expected 1 processes.*got 2"),
        ({"distributed_type": SimpleNamespace(value="DEEPSPEED")}, "plain data parallel training; got DEEPSPEED"),
        ({"distributed_type": SimpleNamespace(value="FSDP")}, "plain data parallel training; got FSDP"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps=4. Fix: pass accumulate= to fit"),
        ({"mixed_precision": "bf16"}, "mixed_precision='bf16'. Fix: pass autocast='bf16' to fit"),
    ],
)
def test_settings_of_an_accelerator_that_fit_has_itself_are_refused(changes: Found, text: str) -> None:
    with pytest.raises(DeviceError, match=text):
        fit(accelerator=accelerator(**changes))


def test_a_plugin_that_only_the_environment_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(DeviceError, match="FSDP asked for, which has become NO"):
        fit(accelerator=accelerator())


@pytest.fixture
def real_accelerator() -> Iterator[Any]:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_one_process_with_an_accelerator_is_plain_torch_to_the_last_bit(real_accelerator: Any) -> None:
    options = {"batches": digits(250), "accumulate": 3, "clip_norm": 0.5, "ema_decay": 0.9}
    one, other = fit(**options), fit(accelerator=real_accelerator, **options)
    assert torch.equal(weights(one.model), weights(other.model))
    assert losses(one) == losses(other)


def test_without_an_accelerator_no_state_of_accelerate_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import state

    def made(self: object, *arguments: Any, **options: Any) -> None:
        raise AssertionError(f"{type(self).__name__} was made")

    for name in ("PartialState", "AcceleratorState", "GradientState"):
        monkeypatch.setattr(getattr(state, name), "__init__", made)
    fit(epochs=1, autocast="bf16", clip_norm=1.0, ema_decay=0.9)
