"""BatchNorm of several ranks equals that of a single process with the whole batch."""

import inspect
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import run_ranks
from torch import Tensor
from torch.nn.modules._functions import SyncBatchNorm

from stages.network.batch_norm import batch_norm

ROWS = 8


class Case(NamedTuple):
    """A batch.

    Attributes:
        shape: Shape of an image, with 3 channels.
        dtype: Data type of the batch; statistics and weights are at least float32.
        channels_last: Memory format, if the images have a height and a width.
        affine: With weight and bias.
        tracked: With running statistics.
        offset: Mean of the values, whose standard deviation is 1.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    channels_last: bool = False
    affine: bool = True
    tracked: bool = True
    offset: float = 0.5


CASES = [
    Case((3,)),
    Case((3, 5)),
    Case((3, 4, 5)),
    Case((3, 4, 5), channels_last=True),
    Case((3, 2, 4, 5)),
    Case((3, 4, 5), affine=False, tracked=False),
    Case((3,), affine=False),
    Case((3, 4, 5), torch.float32, channels_last=True),
    Case((3, 4, 5), torch.float32, channels_last=True, offset=1000.0),
    Case((3, 4, 5), torch.bfloat16, channels_last=True),
    Case((3,), torch.bfloat16, affine=False, tracked=False),
]


def normalise(case: Case, own: slice) -> list[Tensor]:
    """Return output, gradients and running statistics for some rows of a batch.

    The gradients of weight and bias are sums over these rows.
    """
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    dtype = torch.promote_types(case.dtype, torch.float32)
    spread = 1 + 0.1 * random(ROWS, *[1 for _ in case.shape])  # ranks have different means
    batch = (random(ROWS, *case.shape) + case.offset * spread).to(case.dtype)[own]
    upstream = random(ROWS, *case.shape).to(case.dtype)[own]
    if case.channels_last:
        batch = batch.contiguous(memory_format=torch.channels_last)
    affine = [random(3).to(dtype).requires_grad_() if case.affine else None for _ in range(2)]
    running = [random(3).to(dtype).square() if case.tracked else None for _ in range(2)]
    batch.requires_grad_()
    output = batch_norm(batch, *running, *affine, True, 0.3, 1e-3)
    assert output.dtype == case.dtype
    output.backward(upstream)
    weight_gradients = [value.grad for value in affine if value is not None]
    return [output.detach(), batch.grad, *weight_gradients, *filter(_is_tensor, running)]


def _is_tensor(value: Tensor | None) -> bool:
    return value is not None


def run_rank(rank: int, folder: str) -> None:
    """Save the results of this rank, and check evaluation mode."""
    own = slice(rank, ROWS, dist.get_world_size())
    torch.save([normalise(case, own) for case in CASES], f"{folder}/rank-{rank}")
    batch, mean, var = torch.randn(1, 3), torch.rand(3), torch.rand(3)
    expected = F.batch_norm(batch, mean, var)
    assert torch.equal(batch_norm(batch, mean, var), expected)


@pytest.mark.parametrize("world_size", [2, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("warm_processes")
def test_ranks_equal_a_single_process(tmp_path, world_size):
    single = [normalise(case, slice(0, ROWS)) for case in CASES]  # by torch's own BatchNorm
    run_ranks(run_rank, world_size, str(tmp_path))
    results = [torch.load(tmp_path / f"rank-{rank}") for rank in range(world_size)]
    for case, expected, *ranks in zip(CASES, single, *results, strict=True):
        tolerance = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2}[case.dtype]
        tolerance *= max(1, case.offset / 10)  # the values themselves are rounded
        weights = 2 if case.affine else 0
        for index, value in enumerate(expected):
            parts = [rank[index] for rank in ranks]
            if index < 2:  # output and gradient, per row
                whole = torch.stack(parts, 1).flatten(0, 1)
            elif index < 2 + weights:
                whole = torch.stack(parts).sum(0)
            else:  # running statistics, the same on all ranks
                whole = parts[0]
                assert all(torch.equal(part, whole) for part in parts)
            error = (whole - value).abs().max() / value.abs().max()
            assert error < tolerance, (case, index)


def test_torchs_function_for_gpus_has_the_expected_arguments():
    """No test here has several GPUs."""
    names = list(inspect.signature(SyncBatchNorm.forward).parameters)[1:]
    statistics = ["running_mean", "running_var", "eps", "momentum"]
    assert names == ["input", "weight", "bias", *statistics, "process_group", "world_size"]
