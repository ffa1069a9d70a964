"""Network inputs of a training batch: augmented images or cached trunk features."""

from dataclasses import replace

import torch
from torch import Tensor

from stages.embedding.augment import AFFINE, PHOTO, random_affine, random_photo
from stages.gpu import copy_to, free_memory
from stages.network.embedding_net import EmbeddingNet
from stages.network.inference import has_cached_features
from stages.network.pretrained import LibraryTrunk
from stages.records import Split

MEMORY_SHARE = 0.25  # largest share of a GPU's free memory that the training images may take


def resident_split(train: Split, network: EmbeddingNet, device: torch.device) -> Split:
    """Copy what training reads of a split to a GPU, if it fits.

    Every step would otherwise copy its images, and the GPU would wait for them.

    Args:
        train: Training split.
        network: Network to train.
        device: Device to train on.

    Returns:
        A split with its images on the GPU, or with its trunk features there if the network takes
        them. The same split if the device is no GPU of CUDA, or if they need more than a quarter of
        its free memory.
    """
    room = MEMORY_SHARE * free_memory(device)
    features = train.features if has_cached_features(network, train) else None
    if features:
        if features.values.nbytes > room:
            return train
        return replace(train, features=replace(features, values=features.values.to(device)))
    if len(train) * train.store[0].nbytes > room:
        return train
    return replace(train, store=_copy(train, device), rows=torch.arange(len(train)), features=None)


def _copy(train: Split, device: torch.device) -> Tensor:
    """Copy the images of a split to a device, in blocks: they may not fit into memory twice."""
    copied = torch.empty(len(train), *train.store.shape[1:], dtype=torch.uint8, device=device)
    start = 0
    for images in train.blocks():
        copied[start : start + len(images)] = images.to(device)
        start += len(images)
    return copied


def training_input(
    network: EmbeddingNet,
    train: Split,
    batch: Tensor,
    own: slice,
    *,
    strength: float,
    device: torch.device,
) -> Tensor:
    """Return this rank's network input for a training batch.

    If the network's frozen trunk has cached features, the input is the features of one view per
    image, drawn at random with augmentation. Otherwise it is the images. Colour photos for a
    library's network are augmented in full, all others are shifted, rotated and scaled with the
    given strength.
    Random numbers are drawn for the whole batch, so that the augmentation of an image does not
    depend on the number of ranks.

    Args:
        network: Network that takes the input.
        train: Training split.
        batch: Positions in ``train`` of all ranks' images, int64, shape (B,).
        own: Slice of the batch that this rank embeds, b images.
        strength: Strength of the augmentation, in [0, 1]; 0 for none.
        device: Device of the returned tensor.

    Returns:
        Features, float32, shape (b, F), or images in [0, 255], shape (b, C, S, S): uint8 without
        augmentation, float32 with it.
    """
    rows = batch[own]
    if train.features and has_cached_features(network, train):
        count = train.features.values.shape[1] if strength else 1
        positions = train.rows[rows], torch.randint(count, (len(batch),))[own]
        values = train.features.values
        rows, views = (copy_to(index, values.device) for index in positions)
        return copy_to(values[rows, views], device)
    pixels = copy_to(train.take(rows), device)
    if not strength:
        return pixels
    if isinstance(network.trunk, LibraryTrunk) and pixels.shape[1] == 3:
        return random_photo(pixels, torch.rand(PHOTO, len(batch))[:, own])
    return random_affine(pixels, torch.rand(AFFINE, len(batch))[:, own], strength)
