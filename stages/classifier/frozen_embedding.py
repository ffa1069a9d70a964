"""Embed the training and validation splits and prove that the network stays frozen."""

import torch
from torch import nn

from stages.network.digest import state_digest
from stages.network.inference import embed_split
from stages.records import Embeddings, Split


def embed_frozen(
    network: nn.Module, train: Split, validation: Split | None, *, device: torch.device
) -> tuple[Embeddings, Embeddings | None]:
    """Embed both splits and prove that the network stays frozen.

    The head is trained on the returned vectors, so no gradient can reach the network. The digest
    of all weights and buffers before and after embedding proves that they are unchanged, bit for
    bit.

    Args:
        network: The embedding network, on ``device``.
        train: Training split.
        validation: Validation split, if there is one.
        device: Device to compute on.

    Returns:
        Embeddings of the training and of the validation split.

    Raises:
        RuntimeError: If a weight or buffer of the network changed, which would be a bug.
    """
    digest_before = state_digest(network.state_dict())
    train_embeddings = embed_split(network, train, device=device)
    validation_embeddings = embed_split(network, validation, device=device) if validation else None
    if state_digest(network.state_dict()) != digest_before:
        raise RuntimeError("the frozen network changed while it embedded the images")
    return train_embeddings, validation_embeddings
