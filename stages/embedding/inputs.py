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
    """What the network sees of a process's part of a batch: changed images, or features of one of their fixed views where its
    trunk has made them. Chance is drawn for the whole batch, so that several processes see what a single one would.

    batch: int64 (B,), positions in `train`; own: the b of them that are this process's. Returns uint8 (not augmented) or float32
    (b, C, S, S) in [0, 255], or features, float32 (b, F), on the device.
    """
    if train.features and has_cached_features(network, train):
        views = torch.randint(train.features.values.shape[1] if augment else 1, (len(batch),))[own]
        return train.features.values[train.rows[batch[own]], views].to(device)
    pixels = train.take(batch[own]).to(device)
    if not augment:
        return pixels
    photos = isinstance(network.trunk, LibraryTrunk) and pixels.shape[1] == 3
    change, numbers = (random_photo, PHOTO) if photos else (random_affine, AFFINE)
    return change(pixels, torch.rand(numbers, len(batch))[:, own])
