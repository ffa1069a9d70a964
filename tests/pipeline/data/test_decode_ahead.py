"""Decoding of a small source in another process, while torch is imported."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from sample_sources import save_image

from pipeline.data import decoding_pool
from pipeline.data.decode_ahead import decode_small_source, decoding_ahead
from pipeline.data.sources import read_source
from stages.settings import AUTO, EmbedSettings, ReadSettings


def write_images(root: Path, side: int = 8) -> str:
    for number in range(4):
        save_image(root / "ab"[number % 2] / f"{number}.png", side=side)
    return str(root)


@contextmanager
def without_torch() -> Iterator[None]:
    """Make believe that torch has not been imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "torch")
        yield


def is_decoded(source: str, cache: Path, read: ReadSettings) -> bool:
    """Return True if the images were in the cache before this call, which decodes them."""
    captions = []

    def show(caption, total, items):
        captions.append(caption)
        return items

    assert len(read_source(source, read, cache=cache, progress=show).entries) == 4
    return captions == []


@pytest.mark.parametrize("read", [ReadSettings(), ReadSettings(size=12, channels=3, resize="crop")])
def test_another_process_decodes_what_the_command_opens(tmp_path, monkeypatch, read):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit('shadows a module')")
    source = write_images(Path("photos"))
    with without_torch(), decoding_ahead(source, read, EmbedSettings(), Path("cache")):
        pass
    assert is_decoded(source, Path("cache"), read)


@pytest.mark.parametrize(
    ("side", "network", "decoded"), [(64, AUTO, True), (65, AUTO, False), (65, "conv", True)]
)
def test_images_that_may_be_needed_at_another_size_are_left(tmp_path, side, network, decoded):
    source = write_images(tmp_path / "photos", side)
    decode_small_source(source, {}, network, str(tmp_path / "cache"))
    assert is_decoded(source, tmp_path / "cache", ReadSettings()) == decoded


def test_large_sources_are_left_to_the_workers(tmp_path, monkeypatch):
    source = write_images(tmp_path / "photos")
    monkeypatch.setattr(decoding_pool, "POOL_FILES", 4)
    decode_small_source(source, {}, AUTO, str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "reason", [None, "torch is there", "rank", "python", "digits", "torchvision:resnet18"]
)
def test_no_process_starts_in_vain(tmp_path, monkeypatch, reason):
    class Started(Exception):
        pass

    def popen(*_: object, **__: object) -> None:
        raise Started

    monkeypatch.setattr(subprocess, "Popen", popen)
    if reason == "rank":
        monkeypatch.setenv("RANK", "1")
    if reason == "python":
        monkeypatch.setattr(sys, "executable", None)
    monkeypatch.chdir(tmp_path)
    source = write_images(Path(reason if reason == "digits" else "photos"))
    is_network = reason is not None and reason.startswith("torchvision")
    settings = EmbedSettings(network=reason) if is_network else EmbedSettings()
    hidden = nullcontext() if reason == "torch is there" else without_torch()
    with (
        hidden,
        pytest.raises(Started) if reason is None else nullcontext(),
        decoding_ahead(source, ReadSettings(), settings, None),
    ):
        pass


def test_a_slow_process_is_stopped(tmp_path, monkeypatch):
    source, cache = write_images(tmp_path / "photos"), tmp_path / "cache"
    monkeypatch.setattr("pipeline.data.decode_ahead.PATIENCE", 0)
    with without_torch(), decoding_ahead(source, ReadSettings(), EmbedSettings(), cache):
        pass
    assert not is_decoded(source, cache, ReadSettings())
    assert not list(cache.glob("*.partial"))


def test_a_process_that_cannot_start_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    source = write_images(tmp_path / "photos")
    with without_torch(), decoding_ahead(source, ReadSettings(), EmbedSettings(), tmp_path):
        pass
    assert not is_decoded(source, tmp_path, ReadSettings())


def test_errors_are_left_to_the_command(tmp_path, capfd):
    source = tmp_path / "empty"
    source.mkdir()
    with without_torch(), decoding_ahead(str(source), ReadSettings(), EmbedSettings(), None):
        pass
    assert capfd.readouterr() == ("", "")


def test_the_other_process_imports_no_torch():
    modules = "decode_ahead, decode, decoding_pool, image_facts, source_files"
    code = f"import sys; from pipeline.data import {modules}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False"
