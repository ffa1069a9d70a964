"""Layers with random numbers or statistics of a batch equal those of a single process."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ranks import run_ranks
from timm.layers import BatchNormAct2d, DropPath, ScaledStdConv2d
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode
from torchvision.ops import StochasticDepth

from stages.distributed import rank_slice
from stages.network.whole_batch import as_whole_batch

CLASSES, PER_CLASS, CHANNELS, SIDE = 4, 4, 6, 5
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "dropout of maps": lambda: nn.Dropout(0.4),
    "dropout of features": lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.4)),
    "dropout in place": lambda: nn.Sequential(nn.Identity(), nn.Dropout(0.4, inplace=True)),
    "dropout of windows": lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), Windows()),
    "stochastic depth": lambda: StochasticDepth(0.4, "row"),
    "stochastic depth of batches": lambda: StochasticDepth(0.4, "batch"),
    "drop path": lambda: DropPath(0.4),
    "BatchNorm with activation": lambda: BatchNormAct2d(CHANNELS),
    "BatchNorm without momentum": lambda: nn.BatchNorm2d(CHANNELS, momentum=None),
    "BatchNorm in evaluation mode": lambda: nn.BatchNorm2d(CHANNELS).eval(),
    "standardised weights": lambda: ScaledStdConv2d(CHANNELS, 3, 3),
}


class Windows(nn.Module):
    """Dropout of the two windows of each image, as in a Swin transformer."""

    def forward(self, windows: Tensor) -> Tensor:
        rows = windows.flatten(0, 1)  # (B * 2, 3, ...)
        return nn.functional.dropout(rows, 0.4).view(windows.shape)


def run_layer(build: Callable[[], nn.Module], own: slice) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return the layer's output for some rows, the next random numbers, and the layer's state."""
    torch.manual_seed(2)
    layer = build().double()
    images = torch.randn(CLASSES * PER_CLASS, CHANNELS, SIDE, SIDE, dtype=torch.float64)[own]
    images = images.contiguous(memory_format=torch.channels_last)
    with as_whole_batch(own):
        output = layer(images).detach().clone()
    return output, torch.rand(4), layer.state_dict()


def run_rank(rank: int, folder: str) -> None:
    own = rank_slice(CLASSES, PER_CLASS)
    results = {name: run_layer(build, own) for name, build in LAYERS.items()}
    torch.save(results, f"{folder}/rank-{rank}")


@pytest.mark.usefixtures("warm_processes")
def test_two_ranks_equal_a_single_process(tmp_path):
    run_ranks(run_rank, 2, str(tmp_path))
    ranks = [torch.load(tmp_path / f"rank-{rank}") for rank in range(2)]
    for name, build in LAYERS.items():
        expected, drawn, state = run_layer(build, slice(0, CLASSES * PER_CLASS))
        whole = torch.stack([rank[name][0] for rank in ranks], 1).flatten(0, 1)
        torch.testing.assert_close(whole, expected, rtol=1e-12, atol=1e-12, msg=name)
        for rank in ranks:
            assert torch.equal(rank[name][1], drawn), name
            torch.testing.assert_close(rank[name][2], state, rtol=1e-12, atol=1e-12, msg=name)


def test_a_single_process_runs_the_layers_as_they_are():
    modes = []
    layer = nn.BatchNorm1d(3)
    layer.register_forward_hook(lambda *_: modes.append(_get_current_function_mode()))
    with as_whole_batch(slice(0, 4)):
        layer(torch.rand(4, 3))
    assert modes == [None]
