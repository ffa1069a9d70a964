"""Fixtures: small image sets shared by the tests."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from stages.records import Split


@pytest.fixture(scope="session", autouse=True)
def _deterministic_algorithms() -> None:
    """Compute deterministically, as the commands do."""
    # torch.use_deterministic_algorithms takes a second to import torch's compiler.
    torch.set_deterministic_debug_mode("error")


@pytest.fixture(scope="session", autouse=True)
def _temporary_cache(tmp_path_factory: pytest.TempPathFactory):
    """Keep decoded images in a temporary folder instead of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):  # Linux, Windows, macOS
            patch.setenv(name, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def warm_processes() -> ForkServerContext:
    """Return a context whose processes start at once: their parent has imported the packages."""
    context = multiprocessing.get_context("forkserver")
    commands = [f"pipeline.commands.{name}" for name in ("folds", "predict", "run")]
    context.set_forkserver_preload(
        ["pipeline.cli", *commands, "pytest", "sklearn.datasets", "sklearn.manifold", "bokeh"]
    )
    return context


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 (1797, 8, 8), and labels, int (1797,)."""
    data = load_digits()
    return np.round(data.images * (255 / 16)).astype(np.uint8), data.target


@pytest.fixture
def digit_split(digits: tuple[np.ndarray, np.ndarray]):
    """Return a function that makes a `Split` of some rows of the digits."""

    def make(rows: slice) -> Split:
        images, labels = digits[0][rows], digits[1][rows]
        return Split(
            store=torch.from_numpy(images)[:, None],  # (N, 1, 8, 8)
            rows=torch.arange(len(images)),
            labels=torch.from_numpy(labels).long(),
            classes=tuple("0123456789"),
            ids=tuple(f"digits/{i}" for i in range(len(images))),
        )

    return make


@pytest.fixture(scope="session")
def write_digits(digits: tuple[np.ndarray, np.ndarray]) -> Callable[[Path], Path]:
    """Return a function that writes 300 digits as PNG files: one folder per class, no split."""

    def write(folder: Path) -> Path:
        root = folder / "photos"
        for index, (image, label) in enumerate(zip(digits[0][:300], digits[1], strict=False)):
            (root / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / str(label) / f"{index}.png")
        return root

    return write


@pytest.fixture
def digit_folder(tmp_path: Path, write_digits: Callable[[Path], Path]) -> Path:
    """Write 300 digits as PNG files, one folder per class and no split."""
    return write_digits(tmp_path)
