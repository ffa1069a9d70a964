"""Several processes of one run: the gradient of one, a run as good as one's, and what happens when one dies."""

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.multiprocessing as mp
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pipeline.checkpoint import read_header
from pipeline.device import start_device
from pipeline.training_state import load_state
from stages.distributed import rank_slice
from stages.embedding.train import Step, train_embedding
from stages.errors import SettingsError
from stages.network.embedding_net import unit_rows
from stages.network.inference import embed_split
from stages.records import Split
from stages.settings import DISTANCES, MININGS, EmbedSettings

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
CASES = [
    (mining, margin, distance, False)
    for mining in MININGS
    for margin in (0.2, None)
    for distance in DISTANCES
]
CASES.append(
    ("batch-all", 0.2, "euclidean", True)
)  # images changed by chance; by the same, whoever draws


class Plain(nn.Module):
    """A network without batch statistics."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.trunk = nn.Identity()  # not a library's, so images are changed as for our own networks
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 8)
        ).to(dtype)

    def forward(self, images: Tensor) -> Tensor:
        return unit_rows(self.layers(images.to(self.dtype) / 255))

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "lr": rate}]


def first_gradients(
    case: tuple[str, float | None, str, bool], network: Plain | None = None
) -> Tensor:
    """Of the first step of stage one itself."""
    digits = load_digits()
    images = torch.from_numpy(digits.images[:300] * 15).to(torch.uint8)[:, None]
    split = Split(
        images,
        torch.arange(300),
        torch.from_numpy(digits.target[:300]).long(),
        tuple("0123456789"),
        ("",) * 300,
    )
    mining, margin, distance, augment = case
    settings = EmbedSettings(
        mining=mining,
        margin=margin,
        distance=distance,
        images_per_class=4,
        epochs=1,
        augment=augment,
    )
    torch.manual_seed(5)
    network = network or Plain(torch.float64)
    found = []

    def keep(step: Step) -> bool:
        found.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
        return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.embedding.train.new_network", lambda *_: network)
        train_embedding(split, None, settings, device=CPU, on_step=keep)
    return found[0]


def join(rank: int, world: int, port: int) -> None:
    """As torchrun would have it."""
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), **meet}
    )
    start_device("cpu", 1)


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_process(rank: int, world: int, port: int, folder: str) -> None:
    join(rank, world, port)
    torch.save([first_gradients(case) for case in CASES], f"{folder}/gradients-{rank}")
    # Chance within the network is each process's own.
    noisy, drawn = Plain(torch.float64), []
    noisy.layers.register_forward_hook(lambda *_: drawn.append(torch.rand(4)))
    first_gradients(CASES[0], noisy)
    torch.save((drawn[0], torch.rand(4)), f"{folder}/drawn-{rank}")
    # Embedding shares the work too: 7 images that the processes can't share evenly.
    torch.manual_seed(3)
    images = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8)
    split = Split(images, torch.arange(7), torch.zeros(7, dtype=torch.int64), ("a",), ("",) * 7)
    network = Plain(torch.float32)
    torch.testing.assert_close(
        embed_split(network, split, device=CPU).vectors, network(images).detach()
    )
    with pytest.raises(
        SettingsError, match=f"{5 * (world + 1)} can't be shared evenly by {world} processes"
    ):
        rank_slice(5, world + 1)


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_compute_the_gradient_of_one(tmp_path, port, world):
    whole = [first_gradients(case) for case in CASES]
    mp.spawn(in_process, args=(world, port, str(tmp_path)), nprocs=world)
    (own, after), (other, also) = (torch.load(tmp_path / f"drawn-{rank}") for rank in range(2))
    assert not torch.equal(own, other) and torch.equal(after, also)
    for rank in range(world):
        parts = torch.load(tmp_path / f"gradients-{rank}")
        for case, expected, found in zip(CASES, whole, parts, strict=True):
            assert expected.dtype == torch.float64 and expected.norm() > 1e-6, case
            rounding = 1e-5 if case[-1] else 1e-12  # images are changed in float32
            assert (found - expected).norm() < rounding * expected.norm() + 1e-15, case


@pytest.mark.parametrize("world", [2, 3, 4])
def test_each_process_sees_every_class_alike(monkeypatch, world):
    """Or BatchNorm over its share would take away what tells the classes apart."""
    labels = torch.arange(5).repeat_interleave(12)
    found = []
    for rank in range(world):
        monkeypatch.setattr(
            "stages.distributed.rank_and_world_size", lambda rank=rank: (rank, world)
        )
        found.append(rank_slice(5, 12))
        assert torch.equal(labels[found[-1]].bincount(), torch.full((5,), 12 // world))
    assert sorted(row for part in found for row in range(60)[part]) == list(range(60))


def threads() -> str:
    return " ".join(task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm"))


def leave_threads(rank: int, port: int, folder: str) -> None:
    """Join as under torchrun, take a step, end; what runs last writes down the threads that are left."""
    atexit.register(
        lambda: Path(folder, f"left-{rank}").write_text(threads())
    )  # the first registered runs last
    join(rank, 2, port)
    first_gradients(CASES[0])
    Path(folder, f"working-{rank}").write_text(threads())


@pytest.mark.skipif(sys.platform != "linux", reason="threads are listed in Linux's /proc")
def test_no_thread_of_the_group_outlives_it(tmp_path, port):
    mp.spawn(leave_threads, args=(port, str(tmp_path)), nprocs=2)
    for rank in range(2):
        assert "gloo" in (tmp_path / f"working-{rank}").read_text()
        assert "gloo" not in (tmp_path / f"left-{rank}").read_text()


def torchrun(folder: Path, processes: int, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={processes}",
        "--standalone",
        "-m",
        "pipeline",
    ]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_run_of_two_processes_is_as_good_as_one(tmp_path):
    process = torchrun(tmp_path, 2, "run", "--device", "cpu", "--images-per-class", "8")
    out, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert "2 processes" in errors and "BatchNorm in training sees each process's share" in errors
    assert errors.count("epoch  1/") == 1 and out.count("kNN accuracy") == 1  # one process speaks
    table = pd.read_csv(tmp_path / "reports/accuracy.csv").set_index(["split", "metric"])["value"]
    assert table["test", "knn_accuracy"] > 0.97 and table["test", "classification_accuracy"] > 0.97
    record = read_header(tmp_path / "checkpoints/embedding.safetensors").record
    assert record["processes"] == 2


@pytest.mark.slow
def test_a_batch_that_the_processes_can_not_share_is_refused_once(tmp_path):
    process = torchrun(tmp_path, 2, "embed", "--images-per-class", "3", "--classes-per-batch", "3")
    errors = process.communicate(timeout=100)[1]
    assert process.returncode == 1 and errors.count("9 can't be shared evenly by 2 processes") == 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_run_and_it_can_be_resumed(tmp_path, victim):
    options = (
        "embed",
        "--device",
        "cpu",
        "--epochs",
        "40",
        "--dim",
        "16",
        "--images-per-class",
        "8",
    )
    process = torchrun(tmp_path, 2, *options)
    state = tmp_path / "checkpoints/embedding.state"
    while not state.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {
        Path(f"/proc/{pid}/environ").read_bytes().split(b"\0LOCAL_RANK=")[1][:1]: int(pid)
        for pid in children
    }
    os.kill(ranks[str(victim).encode()], signal.SIGKILL)
    errors = process.communicate(timeout=120)[1]
    assert (
        process.returncode == 1
        and "another process of this run has died" in errors
        and "--resume" in errors
    )
    done = load_state(state)[0].step
    process = torchrun(tmp_path, 2, *options, "--resume")
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    assert (
        f"going on after step {done} of" in errors
        and (tmp_path / "checkpoints/embedding.safetensors").is_file()
    )
