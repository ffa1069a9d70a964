"""A frozen trunk sees each image of a store once; what it makes of them is kept beside the store.

Every stage, fold and later run over the same images with the same trunk finds it there, so a photo set trains in seconds.
"""

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data.dataset import Dataset
from pipeline.progress import Progress
from stages.errors import DataError
from stages.network.embedding_net import EmbeddingNet
from stages.network.inference import apply_in_evaluation_mode, has_cached_features
from stages.records import TrunkFeatures

FORMAT = 1


BLOCK = 64  # images at once


def cache_trunk_features(
    data: Dataset, network: EmbeddingNet, *, cache: Path, device: torch.device, show: Progress
) -> Dataset:
    """The data with the features that the network's trunk makes of it; unchanged if the trunk isn't frozen.

    network: on the device. cache: the folder where features are found again, by the trunk and the images' contents.
    show: wraps an iterable for display. Raises DataError if the folder can't be written.
    """
    digest = network.trunk_digest()
    if digest is None or has_cached_features(network, data.train):
        return data
    source = data.origin
    read = [source.read.size, source.read.channels, source.read.resize]
    key = hashlib.sha256(json.dumps([FORMAT, network.config["name"], digest, read]).encode())
    key.update(np.ascontiguousarray(source.facts["content"]).tobytes())
    path = cache / f"{key.hexdigest()[:32]}.features.npy"
    values = _open(path, len(source.images))
    if values is None:
        try:
            _build(path, source.images, network, device, show)
        except OSError as error:
            raise DataError(
                f"{cache}: features can't be kept there ({error.strerror or error}); make room, or give --cache"
            ) from error
        values = _open(path, len(source.images))
        assert values is not None
    features = TrunkFeatures(values, digest)
    train, validation, test = (
        part and replace(part, features=features)
        for part in (data.train, data.validation, data.test)
    )
    assert train is not None
    return replace(data, train=train, validation=validation, test=test)


def _open(path: Path, count: int) -> Tensor | None:
    with suppress(OSError, ValueError, EOFError):
        # Copy on write: torch wants a writable array, and nothing is ever written.
        values = np.load(path, mmap_mode="c", allow_pickle=False)
        if values.dtype == np.float32 and values.ndim == 3 and len(values) == count:
            with path.open("rb") as file:
                file.seek(-32, os.SEEK_END)
                if hashlib.sha256(values.data).digest() == file.read():
                    return torch.from_numpy(values)
    return None


def _build(
    path: Path, images: Tensor, network: EmbeddingNet, device: torch.device, show: Progress
) -> None:
    """Write (M, V, F), of each image as it is and mirrored, under a temporary name first."""
    starts, digest = range(0, len(images), BLOCK), hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            for start in show("the frozen trunk sees the images", len(starts), starts):
                block = images[start : start + BLOCK]
                views = [
                    apply_in_evaluation_mode(network, network.features, [view], device=device)
                    for view in (block, block.flip(-1))
                ]
                made = torch.stack(views, 1)  # (b, V, F)
                if start == 0:
                    header = {
                        "descr": "<f4",
                        "fortran_order": False,
                        "shape": (len(images), *made.shape[1:]),
                    }
                    np.lib.format.write_array_header_1_0(file, header)
                content = made.numpy().astype("<f4").tobytes()
                file.write(content)
                digest.update(content)
            file.write(digest.digest())  # behind the array, where numpy doesn't look
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
