"""Small sources of images that several tests read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from stages.records import Split


@pytest.fixture(scope="session", autouse=True)
def _as_the_commands_run() -> None:
    torch.use_deterministic_algorithms(True)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory):
    """Decoded images of the tests go to a folder of the tests, not to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):  # Linux, Windows, macOS
            patch.setenv(name, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 (1797, 8, 8) and int (1797,)."""
    data = load_digits()
    return np.round(data.images * (255 / 16)).astype(np.uint8), data.target


@pytest.fixture
def digit_split(digits: tuple[np.ndarray, np.ndarray]):
    """Makes a `Split` of some rows of the digits."""

    def make(rows: slice) -> Split:
        images, labels = digits[0][rows], digits[1][rows]
        return Split(
            torch.from_numpy(images)[:, None],
            torch.arange(len(images)),
            torch.from_numpy(labels).long(),
            tuple("0123456789"),
            tuple(f"digits/{i}" for i in range(len(images))),
        )

    return make


@pytest.fixture
def digit_folder(tmp_path: Path, digits: tuple[np.ndarray, np.ndarray]) -> Path:
    """300 digits as PNG files, one folder a class, not split."""
    root = tmp_path / "photos"
    for index, (image, label) in enumerate(zip(digits[0][:300], digits[1], strict=False)):
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / str(label) / f"{index}.png")
    return root
