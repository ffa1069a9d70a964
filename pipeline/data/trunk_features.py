"""Cache of a frozen trunk's features: each image passes through the trunk once.

Later stages, folds and runs with the same images and the same trunk read the features from the
cache, so that training takes seconds. The file is a ``.npy`` array followed by its SHA-256 digest.
"""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data.dataset import Dataset
from pipeline.files import atomic_file
from pipeline.progress import Progress
from stages.errors import DataError
from stages.network.embedding_net import EmbeddingNet
from stages.network.inference import apply_in_evaluation_mode, has_cached_features
from stages.records import TrunkFeatures

FORMAT = 2  # part of the file's name
BLOCK = 64  # images per forward pass
DIGEST_BYTES = 32


def cache_trunk_features(
    data: Dataset, network: EmbeddingNet, *, cache: Path, device: torch.device, show: Progress
) -> Dataset:
    """Add the features that a frozen trunk computes from the images of a data set.

    Args:
        data: Data set.
        network: Network with the trunk, on the device.
        cache: Folder for the features. Files are named by trunk and content of the images.
        device: Device for the forward passes.
        show: Wraps an iterable for display.

    Returns:
        The data set with features in all its splits; unchanged if the trunk is not frozen or the
        data set has its features already.

    Raises:
        DataError: If the cache cannot be written to.
    """
    digest = network.trunk_digest()
    if digest is None or has_cached_features(network, data.train):
        return data
    path = cache / f"{_cache_key(data, network, digest)}.features.npy"
    images = data.origin.images
    values = _open(path, images)
    if values is None:
        try:
            _build(path, images, network, device, show)
        except OSError as error:
            raise DataError(
                f"{cache}: trunk features cannot be written there ({error.strerror or error}); "
                "free some space or use another folder with --cache"
            ) from error
        values = _open(path, images)
        assert values is not None
    features = TrunkFeatures(values, digest)
    return replace(
        data,
        train=replace(data.train, features=features),
        validation=data.validation and replace(data.validation, features=features),
        test=data.test and replace(data.test, features=features),
        unseen=data.unseen and replace(data.unseen, features=features),
        held_out=data.held_out and replace(data.held_out, features=features),
    )


def _cache_key(data: Dataset, network: EmbeddingNet, trunk_digest: str) -> str:
    """Return 32 hexadecimal digits that depend on the trunk and on the decoded images."""
    source = data.origin
    read = [source.read.size, source.read.channels, source.read.resize]
    if source.read.jpeg != "full":  # keys of earlier versions, which decoded in full, stay valid
        read.append(source.read.jpeg)
    key = hashlib.sha256(json.dumps([FORMAT, network.config["name"], trunk_digest, read]).encode())
    key.update(np.ascontiguousarray(source.facts["content"]).tobytes())
    return key.hexdigest()[:32]


def _views(images: Tensor) -> list[Tensor]:
    """Return the views of images (B, C, S, S): themselves, and colour images mirrored.

    Mirroring turns grey images such as characters into others.
    """
    return [images, images.flip(-1)] if images.shape[1] == 3 else [images]


def _open(path: Path, images: Tensor) -> Tensor | None:
    """Return the features (M, V, F) of images from a file; None if it is missing or damaged."""
    shape = (len(images), len(_views(images[:1])))
    try:
        # Copy on write: torch requires a writable array. Nothing is written.
        values = np.lib.format.open_memmap(path, mode="c")
        # The digest does not cover the shape, but with M and V given F follows from the length.
        if (values.dtype, values.ndim, values.shape[:2]) != (np.dtype("<f4"), 3, shape):
            return None
        with path.open("rb") as file:
            file.seek(-DIGEST_BYTES, os.SEEK_END)
            matches = hashlib.sha256(values.data).digest() == file.read()
        return torch.from_numpy(values) if matches else None
    except Exception:  # numpy raises many kinds of errors for a damaged file
        return None


def _build(
    path: Path, images: Tensor, network: EmbeddingNet, device: torch.device, show: Progress
) -> None:
    """Write the features (M, V, F) of V views of each image."""
    starts, digest = range(0, len(images), BLOCK), hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        for start in show("computing trunk features", len(starts), starts):
            block = images[start : start + BLOCK]
            views = [
                apply_in_evaluation_mode(network, network.features, [view], device=device)
                for view in _views(block)
            ]
            features = torch.stack(views, 1)  # (B, V, F)
            if start == 0:
                header = {
                    "descr": "<f4",
                    "fortran_order": False,
                    "shape": (len(images), *features.shape[1:]),
                }
                np.lib.format.write_array_header_1_0(file, header)
            content = features.numpy().astype("<f4").tobytes()
            file.write(content)
            digest.update(content)
        file.write(digest.digest())  # after the array, where numpy does not read
