"""Damaged and edited files of every kind load to the same content or raise an error.

`make test` tries about a hundred mutations, always the same ones. `make test-hostile` tries 2,000
random ones.
"""

import hashlib
import io
import json
import os
import pickle
import resource
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import CLASSES, change_header, make_network, write_file
from factories import make_record
from hostile.mutations import mutated_record, mutations
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import build_store, write_random_images
from safetensors.torch import save as save_safetensors
from vector_table_files import ENDINGS, write_table

from pipeline.checkpoint import load_classifier, load_embedding
from pipeline.cli import commands
from pipeline.config import read_config
from pipeline.data.manifest import list_manifest
from pipeline.data.trunk_features import _open as open_features
from pipeline.open_gallery import open_gallery
from pipeline.tensor_files import read_header
from pipeline.training_state import load_state
from pipeline.vector_cache import load_vectors
from pipeline.weights import load_weights
from stages.embedding.resume import check_state
from stages.errors import CheckpointError, PipelineError
from stages.network.digest import state_digest
from stages.network.embedding_net import EmbeddingNet
from stages.network.head import probabilities
from stages.search import search
from stages.settings import EmbedSettings

FULL = os.environ.get("HOSTILE") == "full"
KINDS = ("embedding", "classifier", "gallery", "vectors", "state")
TESTS = 2 * len(KINDS) + 10
MAX_GROWTH = 10**9  # bytes
RECORD = make_record("vectors", make_network())
FEATURES = np.linspace(0, 1, 5 * 2 * 3, dtype=np.float32).reshape(5, 2, 3)
WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}
TOML = b'[embed]\nepochs = 3\nmargin = "soft"\nlr = 0.001\n\n[report]\nembedding = ["a", "b"]\n'
MANIFEST = b"path,label,split,group\na.png,cat,train,g1\nb.png,dog,test,\n"

hostile = settings(
    max_examples=(2000 if FULL else 100) // TESTS + 1,
    deadline=None,
    derandomize=not FULL,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def memory(field: str) -> int:
    """Return the bytes of this process: VmRSS (now) or VmHWM (peak); the peak without /proc."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory():
    """Assert that no mutation takes much memory."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    yield
    assert memory("VmHWM") - before < MAX_GROWTH


def load_and_use(kind: str, path: Path) -> tuple[Any, ...] | None:
    """Load a file and compute with it; return everything that was loaded."""
    record = read_header(path).record if kind != "vectors" else None
    if kind == "embedding":
        embedding = load_embedding(path)
        network, tensors = embedding.network, embedding.network.state_dict()
        assert embedding.record == record and embedding.classes == tuple(record["classes"])
    elif kind == "classifier":
        classifier = load_classifier(path)
        network = classifier.network
        gallery = {"vectors": classifier.gallery.vectors, "labels": classifier.gallery.labels}
        tensors = {**network.state_dict(), **classifier.head.state_dict(), **gallery}
        assert 1 <= classifier.k <= len(classifier.gallery_ids) == len(classifier.gallery)
    elif kind == "gallery":
        opened, embedder = open_gallery(path, None)
        network, vectors = embedder.network, torch.cat(list(opened.blocks()))
        tensors = {**network.state_dict(), "vectors": vectors, "labels": opened.labels}
        assert opened.ids == tuple(record["ids"]) and opened.classes == tuple(record["classes"])
        assert search(vectors[:1], opened, k=2).rows[0, 0] == 0
    elif kind == "vectors":
        names = ("fingerprint", "embedding_digest")
        loaded = load_vectors(path, classes=CLASSES, **{name: RECORD[name] for name in names})
        if loaded is None:
            raise CheckpointError("embed again")
        tensors, record = {"vectors": loaded[0].vectors, "labels": loaded[0].labels}, loaded[2]
    else:
        state, identity = load_state(path)
        network = EmbeddingNet(1, 8, 8)
        optimiser = torch.optim.AdamW([network.project.bias])
        check_state(state, network, optimiser, steps=9, per_epoch=2)
        tensors = {**state.network, "generator": state.generator, **state.sampler}
        tensors["position"] = torch.tensor(tensors["position"])
        assert {**identity, "progress": record["progress"]} == record
    if kind in ("embedding", "classifier", "gallery"):
        read = record["read"]
        images = torch.zeros(2, read["channels"], read["size"], read["size"], dtype=torch.uint8)
        vectors = network(images)
        assert bool(vectors.isfinite().all())
        if kind == "classifier":
            shares = probabilities(classifier.head, vectors, temperature=classifier.temperature)
            assert bool(shares.isfinite().all()) and shares.shape == (2, len(record["classes"]))
    return state_digest(tensors), record


@cache
def valid_file(kind: str) -> bytes:
    """Return the content of a valid file."""
    with tempfile.TemporaryDirectory() as folder:
        write_file(kind, Path(folder, kind))
        return Path(folder, kind).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
@hostile
@given(mutate=mutations())
def test_damaged_checkpoint(kind, mutate, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(valid_file(kind))
    expected = load_and_use(kind, path)
    path.write_bytes(mutate(valid_file(kind)))
    with suppress(CheckpointError):
        assert load_and_use(kind, path) == expected


@pytest.mark.parametrize("kind", KINDS)
@hostile
@given(data=st.data())
def test_edited_record(kind, data, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(valid_file(kind))
    digest, original = load_and_use(kind, path)
    edited = mutated_record(original, data)
    text = json.dumps(edited)
    change_header(path, record=text)
    if edited != original:
        with pytest.raises(CheckpointError):
            load_and_use(kind, path)
    change_header(path, record=text, record_digest=None)
    with suppress(CheckpointError):
        assert load_and_use(kind, path) == (digest, edited)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Folder of small images, one of which is unreadable."""
    folder = write_random_images(tmp_path_factory.mktemp("images") / "images", 4)
    (folder / "00001.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("pattern", ["*/index.npz", "*.json"])
@hostile
@given(mutate=mutations())
def test_damaged_store_is_built_again(pattern, images, mutate, tmp_path_factory):
    cache = tmp_path_factory.getbasetemp() / "mutated-store"

    def content() -> list[Any]:
        store = build_store(images, cache)
        return [store.images.tobytes(), store.facts.tobytes(), store.origin.tolist(), store.skipped]

    expected = content()
    (path,) = cache.glob(pattern)
    path.write_bytes(mutate(path.read_bytes()))
    assert content() == expected
    assert content() == expected


@hostile
@given(mutate=mutations())
def test_damaged_features_are_computed_again(mutate, tmp_path):
    images = torch.zeros(5, 3, 2, 2)  # colour, so there are two views
    buffer = io.BytesIO()
    np.save(buffer, FEATURES)
    path = tmp_path / "features.npy"
    content = buffer.getvalue() + hashlib.sha256(FEATURES.tobytes()).digest()
    path.write_bytes(content)
    assert np.array_equal(open_features(path, images).numpy(), FEATURES)
    path.write_bytes(mutate(content))
    loaded = open_features(path, images)
    assert loaded is None or np.array_equal(loaded.numpy(), FEATURES)


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
@hostile
@given(mutate=mutations())
def test_damaged_weights(ending, mutate, tmp_path):
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer)
    content = buffer.getvalue() if ending == ".pt" else save_safetensors(WEIGHTS)
    path = tmp_path / f"weights{ending}"
    options = EmbedSettings(network="torchvision:resnet18", weights=str(path))
    path.write_bytes(content)
    assert load_weights(options).digest == state_digest(WEIGHTS)
    path.write_bytes(mutate(content))
    with suppress(CheckpointError):
        tensors = load_weights(options).tensors
        # A safetensors file has no checksum, so other finite values are not noticed.
        if ending == ".pt":
            assert state_digest(tensors) == state_digest(WEIGHTS)
        assert all(bool(value.isfinite().all()) for value in tensors.values())


@pytest.mark.parametrize("ending", ENDINGS)
@hostile
@given(mutate=mutations())
def test_damaged_vectors(ending, mutate, tmp_path):
    path, embedding = tmp_path / f"vectors{ending}", tmp_path / "embedding.safetensors"
    write_file("embedding", embedding)
    write_table(path, torch.eye(8), list("abcdefgh"), list("abababab"), RECORD["embedding_digest"])
    path.write_bytes(mutate(path.read_bytes()))
    with suppress(PipelineError):
        opened, _ = open_gallery(path, embedding)
        assert search(torch.eye(8), opened, k=1).distances.shape == (8, 1)


@hostile
@given(mutate=mutations())
def test_damaged_settings_file(mutate, tmp_path):
    path = tmp_path / "settings.toml"
    path.write_bytes(TOML)
    assert set(read_config(path, commands)) == {"embed", "report"}
    path.write_bytes(mutate(TOML))
    with suppress(PipelineError):
        assert set(read_config(path, commands)) <= set(commands.commands)


@hostile
@given(mutate=mutations())
def test_damaged_manifest(mutate, tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_bytes(MANIFEST)
    assert len(list_manifest(path)) == 2
    path.write_bytes(mutate(MANIFEST))
    with suppress(PipelineError):
        for file in list_manifest(path):
            assert file.entry.label and file.entry.part in ("", "train", "val", "test")


class Malicious:
    """An object that runs a command when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", [*KINDS, "weights"])
def test_code_is_not_run(kind, zipped, tmp_path):
    path, executed = tmp_path / "file.pt", tmp_path / "executed"
    torch.save({"a": Malicious(executed)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError):
        if kind == "weights":
            load_weights(EmbedSettings(network="torchvision:resnet18", weights=str(path)))
        else:
            load_and_use(kind, path)
    assert not executed.exists()
    with suppress(Exception):  # the file does run code where code is allowed
        torch.load(path, weights_only=False)
    assert executed.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
