"""Distributed training: gradients, random numbers, and runs whose processes fail."""

import atexit
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ranks import free_port, join_group, run_ranks
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pipeline.tensor_files import read_header
from pipeline.training_state import load_state
from stages.distributed import all_reduce_gradients, rank_slice
from stages.embedding.train import Step, train_embedding
from stages.errors import SettingsError
from stages.network.digest import state_digest
from stages.network.embedding_net import EmbeddingNet, unit_rows
from stages.network.inference import embed_split
from stages.records import Split
from stages.settings import DISTANCES, MININGS, EmbedSettings

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


class Case(NamedTuple):
    mining: str
    margin: float | None
    distance: str
    augment: bool = False
    loss: str = "triplet"


CASES = [
    Case(mining, margin, distance)
    for mining in MININGS
    for margin in (0.2, None)
    for distance in DISTANCES
]
# The augmentation of an image must not depend on the number of processes.
CASES.append(Case("batch-all", 0.2, "euclidean", augment=True))
CASES.append(Case("semi-hard", 0.2, "euclidean", loss="pml:ProxyAnchorLoss"))


class PlainNet(nn.Module):
    """A network with dropout and without BatchNorm."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.trunk = nn.Identity()  # not a library's: images get the affine augmentation
        hidden = (nn.Linear(64, 32), nn.Tanh(), nn.Dropout(0.2))
        self.layers = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, 8)).to(dtype)

    def forward(self, images: Tensor) -> Tensor:
        return unit_rows(self.layers(images.to(self.dtype) / 255))

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "lr": rate}]


def digits_split(count: int) -> Split:
    """Return the first digits."""
    digits = load_digits()
    return Split(
        store=torch.from_numpy(digits.images[:count] * 15).to(torch.uint8)[:, None],
        rows=torch.arange(count),
        labels=torch.from_numpy(digits.target[:count]).long(),
        classes=tuple("0123456789"),
        ids=("",) * count,
    )


def first_gradients(case: Case) -> Tensor:
    """Return the gradients of the first step of `train_embedding` and the loss's new state."""
    settings = EmbedSettings(**case._asdict(), images_per_class=4, epochs=1, dim=8)
    torch.manual_seed(5)
    network = PlainNet(torch.float64)
    gradients = []

    def keep_gradients(step: Step) -> bool:
        flat = [parameter.grad.flatten() for parameter in network.parameters()]
        state = [value.flatten().double() for value in step.state().loss.values()]
        gradients.append(torch.cat([*flat, *state]))
        return True  # stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.embedding.train.new_network", lambda *_: network)
        train_embedding(digits_split(300), None, settings, device=CPU, on_step=keep_gradients)
    return gradients[0]


def run_rank(rank: int, folder: str) -> None:
    """Save this rank's gradients and its next random numbers, and check embedding and errors."""
    gradients = [first_gradients(case) for case in CASES]
    torch.save((gradients, torch.rand(4)), f"{folder}/rank-{rank}")
    check_embedding()
    world_size = dist.get_world_size()
    with pytest.raises(SettingsError, match=f"5 classes.* {world_size} processes") as raised:
        rank_slice(5, world_size + 1)
    assert raised.value.field == "images_per_class"


def check_embedding() -> None:
    """Embed 7 images, which the ranks cannot share evenly."""
    torch.manual_seed(3)
    images = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8)
    labels = torch.zeros(7, dtype=torch.int64)
    split = Split(images, torch.arange(7), labels, classes=("a",), ids=("",) * 7)
    network = PlainNet(torch.float32).eval()
    vectors = embed_split(network, split, device=CPU).vectors
    torch.testing.assert_close(vectors, network(images).detach())


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("warm_processes")
def test_gradients_equal_those_of_a_single_process(tmp_path, world_size):
    single = [first_gradients(case) for case in CASES]
    drawn = torch.rand(4)
    run_ranks(run_rank, world_size, str(tmp_path))
    for rank in range(world_size):
        gradients, drawn_by_rank = torch.load(tmp_path / f"rank-{rank}")
        assert torch.equal(drawn_by_rank, drawn)
        for case, expected, actual in zip(CASES, single, gradients, strict=True):
            assert expected.dtype == torch.float64, case
            assert expected.norm() > 1e-6, case
            tolerance = 1e-5 if case.augment else 1e-12  # augmentation computes in float32
            assert (actual - expected).norm() < tolerance * expected.norm() + 1e-15, case


class TrainedNet(NamedTuple):
    """Result of a short training.

    Attributes:
        gradient: Gradient of the first step, float64, concatenated.
        weights: Weights and buffers at the end, float64, concatenated.
        digest: Digest of these weights and buffers.
    """

    gradient: Tensor
    weights: Tensor
    digest: str


def train_with_batch_norm(name: str) -> TrainedNet:
    """Train a network with BatchNorm for three epochs, in float64."""
    torch.manual_seed(5)
    network = EmbeddingNet(1, 8, 16, name=name).double()
    gradients = []

    def keep_gradients(module: nn.Module) -> None:
        all_reduce_gradients(module)
        gradients.append(torch.cat([value.grad.flatten() for value in module.parameters()]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.embedding.train.all_reduce_gradients", keep_gradients)
        settings = EmbedSettings(network=name, images_per_class=4, epochs=3, dim=16)
        train_embedding(digits_split(100), None, settings, device=CPU, network=network)
    state = network.state_dict()
    weights = torch.cat([value.flatten() for value in state.values()])
    return TrainedNet(gradients[0], weights, state_digest(state))


def save_trained(rank: int, folder: str, name: str) -> None:
    torch.save(tuple(train_with_batch_norm(name)), f"{folder}/rank-{rank}")


@pytest.mark.parametrize(
    ("name", "world_size"),
    [
        ("conv", 2),
        pytest.param("conv", 4, marks=pytest.mark.slow),
        pytest.param("conv-deep", 2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("warm_processes")
def test_training_with_batch_norm_equals_that_of_a_single_process(tmp_path, name, world_size):
    single = train_with_batch_norm(name)
    run_ranks(save_trained, world_size, str(tmp_path), name)
    ranks = [TrainedNet(*torch.load(tmp_path / f"rank-{rank}")) for rank in range(world_size)]
    assert single.gradient.dtype == torch.float64
    for trained in ranks:
        error = (trained.gradient - single.gradient).abs().max()
        assert error < 1e-12 * single.gradient.abs().max()
        assert (trained.weights - single.weights).abs().max() < 1e-9
        assert trained.digest == ranks[0].digest


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_get_equally_many_images_of_each_class(monkeypatch, world_size):
    labels = torch.arange(5).repeat_interleave(12)
    rows = []
    for rank in range(world_size):
        monkeypatch.setattr(
            "stages.distributed.rank_and_world_size", lambda rank=rank: (rank, world_size)
        )
        own = rank_slice(5, 12)
        assert torch.equal(labels[own].bincount(), torch.full((5,), 12 // world_size))
        rows.extend(range(60)[own])
    assert sorted(rows) == list(range(60))


def thread_names() -> str:
    return " ".join(task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm"))


def record_threads(rank: int, port: int, folder: str) -> None:
    """Save the names of the threads during training and at exit."""
    # The function that is registered first runs last.
    atexit.register(lambda: Path(folder, f"exit-{rank}").write_text(thread_names()))
    join_group(rank, 2, port)
    first_gradients(CASES[0])
    Path(folder, f"training-{rank}").write_text(thread_names())


@pytest.mark.skipif(sys.platform != "linux", reason="reads thread names from /proc")
@pytest.mark.slow
def test_threads_of_the_process_group_end_before_exit(tmp_path):
    mp.spawn(record_threads, args=(free_port(), str(tmp_path)), nprocs=2)
    for rank in range(2):
        assert "gloo" in (tmp_path / f"training-{rank}").read_text()
        assert "gloo" not in (tmp_path / f"exit-{rank}").read_text()


def torchrun(folder: Path, processes: int, *arguments: str) -> subprocess.Popen[str]:
    """Start `pipeline` under torchrun."""
    launcher = ("torch.distributed.run", f"--nproc-per-node={processes}", "--standalone")
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "-m", "pipeline", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_run_with_two_processes_reaches_the_accuracy_of_one(tmp_path):
    options = ("--device", "cpu", "--images-per-class", "8", "--epochs", "10")
    process = torchrun(tmp_path, 2, "run", *options)
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert "2 processes" in errors
    # Only the main process prints.
    assert len(re.findall(r"epoch +2/", errors)) == 1
    assert len(re.findall(r"^kNN accuracy", output, flags=re.MULTILINE)) == 1
    table = pd.read_csv(tmp_path / "reports/accuracy.csv").set_index(["split", "metric"])["value"]
    assert table["test", "knn_accuracy"] > 0.97
    assert table["test", "classification_accuracy"] > 0.97
    record = read_header(tmp_path / "checkpoints/embedding.safetensors").record
    assert record["processes"] == 2


@pytest.mark.slow
def test_indivisible_batch_is_reported_once(tmp_path):
    process = torchrun(tmp_path, 2, "embed", "--images-per-class", "3", "--classes-per-batch", "3")
    errors = process.communicate(timeout=100)[1]
    assert process.returncode == 1
    assert len(re.findall(r"--images-per-class 3: .* 2 processes", errors)) == 1


def child_of_rank(parent: int, rank: int) -> int:
    """Return the process id of torchrun's child with a rank."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"LOCAL_RANK={rank}".encode() in variables:
            return int(child)
    raise AssertionError(f"no child with rank {rank}")


@pytest.mark.slow
def test_run_can_be_resumed_after_a_process_was_killed(tmp_path):
    """Each rank is killed once."""
    options = ("--device", "cpu", "--epochs", "12", "--dim", "16", "--images-per-class", "8")
    state, saved = tmp_path / "checkpoints/embedding.state", 0
    for victim in (0, 1):
        process = torchrun(tmp_path, 2, "embed", *options, "--resume")
        while not state.exists() or state.stat().st_mtime_ns == saved:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.kill(child_of_rank(process.pid, victim), signal.SIGKILL)
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 1
        assert "another process" in errors
        assert "--resume" in errors
        saved = state.stat().st_mtime_ns
    step = load_state(state)[0].step
    process = torchrun(tmp_path, 2, "embed", *options, "--resume")
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    assert f"after step {step} of" in errors
    assert (tmp_path / "checkpoints/embedding.safetensors").is_file()
