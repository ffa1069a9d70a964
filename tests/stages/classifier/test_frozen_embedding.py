"""The embedding network stays frozen in stage two, and a change is detected."""

import pytest
import torch

from stages.classifier.frozen_embedding import embed_frozen
from stages.classifier.train import train_classifier
from stages.network.digest import state_digest
from stages.network.embedding_net import EmbeddingNet
from stages.settings import ClassifySettings

CPU = torch.device("cpu")


def test_network_is_frozen_while_head_is_trained(digit_split):
    network = EmbeddingNet(1, 8, 16).train()
    train, validation = digit_split(slice(0, 300)), digit_split(slice(300, 400))
    before = state_digest(network.state_dict())
    embeddings = embed_frozen(network, train, validation, device=CPU)
    trained = train_classifier(*embeddings, ClassifySettings(), device=CPU)
    assert state_digest(network.state_dict()) == before
    assert trained.head.linear.weight.abs().max() > 0.1  # training starts at zero
    for parameter in network.parameters():
        assert not (parameter.requires_grad and parameter.grad is not None)


def test_changing_network_raises(digit_split):
    class Drifting(EmbeddingNet):
        def forward(self, images):
            self.mean.add_(0.01)
            return super().forward(images)

    with pytest.raises(RuntimeError, match="frozen"):
        embed_frozen(Drifting(1, 8, 16), digit_split(slice(0, 50)), None, device=CPU)
