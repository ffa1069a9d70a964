"""Embed both splits with the frozen network and prove that it did not change."""

import torch
from torch import nn

from stages.network.digest import state_digest
from stages.network.inference import embed_split
from stages.records import Embeddings, Split


def embed_frozen(
    network: nn.Module, train: Split, validation: Split | None, *, device: torch.device
) -> tuple[Embeddings, Embeddings | None]:
    """Embed both parts once; the head is trained on these vectors, so nothing flows back into the network.

    Raises RuntimeError if a weight or buffer of the network moved all the same; that would be a bug.
    """
    before = state_digest(network.state_dict())
    gallery, queries = (
        embed_split(network, part, device=device) if part else None for part in (train, validation)
    )
    assert gallery is not None  # only validation may be missing
    if state_digest(network.state_dict()) != before:
        raise RuntimeError("the frozen embedding changed while it was used")
    return gallery, queries
