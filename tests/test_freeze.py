"""Stage two leaves the embedder bit for bit as it was, and moves the head."""

import pytest
import torch

from stages import classify
from stages.classify import train_classifier
from stages.embed import new_network
from stages.network import Head, embed_images, state_digest
from stages.settings import ClassifySettings, EmbedSettings

CPU = torch.device("cpu")


def test_weights_and_buffers_stay_and_the_head_moves(digit_split):
    train, validation = digit_split(slice(0, 300)), digit_split(slice(300, 400))
    network = new_network(train, EmbedSettings(dim=32)).train()  # even if it comes in training mode
    before = {name: value.clone() for name, value in network.state_dict().items()}
    vectors = embed_images(network, train.blocks(), device=CPU)
    settings = ClassifySettings(epochs=20)
    trained = train_classifier(network, train, validation, settings, device=CPU)
    after = network.state_dict()
    assert before.keys() == after.keys() and any("running_mean" in name for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in network.parameters())
    torch.testing.assert_close(trained.gallery.vectors, vectors, rtol=0, atol=0)  # embedded in evaluation mode
    torch.manual_seed(settings.seed)
    assert not torch.equal(trained.head.linear.weight, Head(32, 10).linear.weight)
    assert trained.history[-1].val_accuracy > 0.5  # chance is 0.1; the network is untrained


def test_an_embedder_that_moves_is_found_out(digit_split, monkeypatch):
    train = digit_split(slice(0, 100))
    network = new_network(train, EmbedSettings(dim=16))

    def embed_in_training_mode(network, split, *, device):
        result = original(network, split, device=device)
        network.train()(split.take(slice(0, 8)))  # BatchNorm statistics drift
        return result

    original = classify.embed_split
    monkeypatch.setattr(classify, "embed_split", embed_in_training_mode)
    before = state_digest(network.state_dict())
    with pytest.raises(RuntimeError, match="frozen embedding changed"):
        train_classifier(network, train, None, ClassifySettings(epochs=1), device=CPU)
    assert state_digest(network.state_dict()) != before
