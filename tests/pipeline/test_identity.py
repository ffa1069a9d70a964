"""Deciding whether two checkpoints belong to the same run."""

from dataclasses import replace

import pytest
import torch
from factories import make_dataset, make_record

from pipeline.identity import (
    classifier_identity,
    describe_differences,
    embedding_identity,
    refuse_to_replace,
)
from pipeline.tensor_files import save_tensors
from stages.errors import CheckpointError
from stages.network.pretrained import PretrainedWeights
from stages.settings import ClassifySettings, EmbedSettings

SETTINGS = EmbedSettings(network="conv", dim=8)


@pytest.fixture(scope="module")
def identity():
    return embedding_identity(make_dataset(("a", "b")), SETTINGS, None)


def changed(identity, **settings):
    return {**identity, "settings": {**identity["settings"], **settings}}


def test_same_run_has_no_differences(identity):
    assert describe_differences(identity, identity) == ""
    assert describe_differences(identity, {**identity, "history": [1]}) == ""


def test_differences_name_the_options_and_both_values(identity):
    other = changed(identity, margin=0.3, classes_per_batch=4)
    described = describe_differences(identity, other)
    assert "margin 0.3 instead of 0.2" in described
    assert "classes-per-batch 4 instead of automatic" in described
    precision = ({"precision": "torch.float32"}, {"precision": "torch.bfloat16"})
    assert "precision torch.bfloat16 instead of torch.float32" in describe_differences(*precision)


def test_other_images_are_named_by_their_source(identity):
    other = {**identity, "fingerprint": "0", "source": "elsewhere"}
    described = describe_differences(identity, other)
    assert "other images" in described and "elsewhere" in described


def test_classifier_of_another_embedding_differs(identity):
    settings = ClassifySettings()
    other = classifier_identity(changed(identity, dim=16), settings)
    described = describe_differences(classifier_identity(identity, settings), other)
    assert "embedding" in described and "dim 16 instead of 8" in described


def test_file_of_weights_is_identified_by_its_content():
    data = make_dataset(("a", "b"))
    settings = replace(SETTINGS, network="torchvision:resnet18", weights="a.pth")
    weights = PretrainedWeights({}, torch.zeros(3), torch.ones(3), "0123456789abcdef", "a.pth")
    moved = replace(settings, weights="elsewhere/a.pth")
    assert embedding_identity(data, settings, weights) == embedding_identity(data, moved, weights)
    other = weights._replace(digest="f" * 64)
    assert embedding_identity(data, settings, weights) != embedding_identity(data, settings, other)


def test_only_the_same_run_may_be_replaced_without_force(identity, tmp_path):
    path = tmp_path / "e.safetensors"
    refuse_to_replace(path, "embedding", identity, force=False)  # nothing to replace
    record = make_record("embedding", **identity)
    record["network"] = {**record["network"], "size": identity["read"]["size"]}
    save_tensors(path, "embedding", {"x": torch.zeros(1)}, record)
    refuse_to_replace(path, "embedding", identity, force=False)
    other = changed(identity, lr=0.01)
    with pytest.raises(CheckpointError, match=r"e\.safetensors.*lr 0\.003 instead of 0\.01"):
        refuse_to_replace(path, "embedding", other, force=False)
    with pytest.raises(CheckpointError, match="kind embedding"):
        refuse_to_replace(path, "classifier", identity, force=False)
    refuse_to_replace(path, "classifier", other, force=True)
