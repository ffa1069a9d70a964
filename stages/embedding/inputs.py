"""Network inputs of a training batch: augmented images or cached trunk features."""

import torch
from torch import Tensor

from stages.embedding.augment import AFFINE, PHOTO, random_affine, random_photo
from stages.network.embedding_net import EmbeddingNet
from stages.network.inference import has_cached_features
from stages.network.pretrained import LibraryTrunk
from stages.records import Split


def training_input(
    network: EmbeddingNet,
    train: Split,
    batch: Tensor,
    own: slice,
    *,
    augment: bool,
    device: torch.device,
) -> Tensor:
    """Return this rank's network input for a training batch.

    If the network's frozen trunk has cached features, the input is the features of one view per
    image, drawn at random with augmentation. Otherwise it is the images, augmented if asked for.
    Random numbers are drawn for the whole batch, so that the augmentation of an image does not
    depend on the number of ranks.

    Args:
        network: Network that takes the input.
        train: Training split.
        batch: Positions in ``train`` of all ranks' images, int64, shape (B,).
        own: Slice of the batch that this rank embeds, b images.
        augment: Augment the images.
        device: Device of the returned tensor.

    Returns:
        Features, float32, shape (b, F), or images in [0, 255], shape (b, C, S, S): uint8 without
        augmentation, float32 with it.
    """
    rows = batch[own]
    if train.features and has_cached_features(network, train):
        views = torch.randint(train.features.values.shape[1] if augment else 1, (len(batch),))[own]
        return train.features.values[train.rows[rows], views].to(device)
    pixels = train.take(rows).to(device)
    if not augment:
        return pixels
    if isinstance(network.trunk, LibraryTrunk) and pixels.shape[1] == 3:
        return random_photo(pixels, torch.rand(PHOTO, len(batch))[:, own])
    return random_affine(pixels, torch.rand(AFFINE, len(batch))[:, own])
