"""Image files become the vectors that the network gives for their pixels, in any number."""

import gc
import itertools
import threading
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoint_files import make_network
from image_files import write_random_images

from pipeline import image_vectors
from pipeline.data.decode import decode_files
from pipeline.image_vectors import embed_files
from stages.network.inference import embed_images

CPU = torch.device("cpu")
READ = {"size": 8, "channels": 1, "resize": "pad-repeat", "jpeg": "full"}


@pytest.fixture(scope="module")
def embedder():
    record = {"read": READ, "network": {"dim": 8}}
    return SimpleNamespace(network=make_network(), record=record)


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[str]:
    """Return the paths of 300 images of which 3 are unreadable, the first and the last included."""
    folder = write_random_images(tmp_path_factory.mktemp("images"), 300, (9, 12))
    names = sorted(map(str, folder.iterdir()))
    for row in (0, 130, 299):
        with open(names[row], "wb") as file:
            file.write(b"no image")
    return names


@pytest.fixture(params=[1, 2, 3, 7])
def threads(request):
    """Number of torch's threads, each in turn."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def expected(paths, embedder) -> torch.Tensor:
    """Vectors of the readable images, decoded and embedded one image at a time."""
    before, vectors = torch.get_num_threads(), []
    torch.set_num_threads(1)  # several threads wait for each other at every small image
    for outcome in decode_files(paths, **READ):
        if not isinstance(outcome, str):
            pixels = np.frombuffer(outcome.pixels, np.uint8).reshape(1, *outcome.shape)
            images = torch.from_numpy(pixels.copy())
            vectors.append(embed_images(embedder.network, [images], device=CPU))
    torch.set_num_threads(before)
    return torch.cat(vectors)


def test_vectors_equal_those_of_the_pixels(paths, embedder, expected, threads):
    blocks = list(embed_files(paths, embedder, device=CPU))
    assert [len(block.paths) for block in blocks] == [128, 128, 44]
    assert [path for block in blocks for path in block.paths] == paths
    skipped = [row for block in blocks for row in block.skipped]
    assert [row.path for row in skipped] == [paths[0], paths[130], paths[299]]
    assert all(row.reason for row in skipped)
    vectors = torch.cat([block.vectors for block in blocks])
    assert [path for block in blocks for path in block.readable] == [
        path for path in paths if path not in {row.path for row in skipped}
    ]
    assert vectors.dtype == torch.float32 and vectors.shape == (297, 8)
    torch.testing.assert_close(vectors, expected, atol=1e-6, rtol=0)
    assert (expected[0] - expected[1]).norm() > 1e-3  # a wrong order would be noticed
    assert torch.get_num_threads() == threads


def test_paths_are_taken_from_a_stream_as_needed(paths, embedder, threads):
    taken = itertools.count()
    blocks = embed_files((path for path in paths if next(taken) >= 0), embedder, device=CPU)
    assert next(taken) == 0
    next(blocks)
    assert next(taken) == 129
    blocks.close()
    assert torch.get_num_threads() == threads


def test_no_image_is_readable(tmp_path, embedder, threads):
    assert list(embed_files([], embedder, device=CPU)) == []
    (block,) = embed_files(["missing", str(tmp_path)], embedder, device=CPU)
    assert block.vectors.shape == (0, 8) and len(block.skipped) == 2


def test_other_devices_get_a_whole_block(paths, embedder, expected, threads, monkeypatch):
    sizes, devices = [], set()

    def embed(network, blocks, *, device):
        devices.add(device.type)
        assert threading.current_thread() is threading.main_thread()
        sizes.extend(map(len, blocks))
        return embed_images(network, blocks, device=CPU)

    monkeypatch.setattr(image_vectors, "embed_images", embed)
    blocks = list(embed_files(paths, embedder, device=torch.device("cuda")))
    assert sizes == [127, 127, 43] and devices == {"cuda"}
    vectors = torch.cat([block.vectors for block in blocks])
    torch.testing.assert_close(vectors, expected, atol=1e-6, rtol=0)


def test_warning_filters_and_threads_are_restored(paths, embedder, monkeypatch):
    def warn(*_, **__):
        time.sleep(0.001)  # threads overlap
        warnings.warn("a defect that does no harm", UserWarning, stacklevel=1)
        return np.zeros((1, 8, 8), np.uint8)

    monkeypatch.setattr(image_vectors, "read_pixels", warn)
    filters, running = list(warnings.filters), threading.active_count()
    for _ in embed_files(paths, embedder, device=CPU):
        assert list(warnings.filters) == filters
    gc.collect()
    assert threading.active_count() == running


def test_an_error_in_a_thread_is_raised(paths, embedder, threads, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("no memory")

    monkeypatch.setattr(image_vectors, "embed_images", fail)
    with pytest.raises(MemoryError, match="no memory"):
        list(embed_files(paths, embedder, device=CPU))
    assert torch.get_num_threads() == threads
