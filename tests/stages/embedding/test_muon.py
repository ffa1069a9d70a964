"""Muon: orthogonal steps equal the iteration on the whole matrix, and AdamW is AdamW."""

import pytest
import torch

from stages.embedding.muon import COEFFICIENTS, ITERATIONS, MOMENTUM, Muon, orthogonal


def iterate(matrix):
    """Apply the polynomial to the whole matrix, as Jordan et al. do."""
    a, b, c = COEFFICIENTS
    matrix = matrix / matrix.norm()
    for _ in range(ITERATIONS):
        gram = matrix @ matrix.T
        matrix = a * matrix + (b * gram + c * gram @ gram) @ matrix
    return matrix


@pytest.mark.parametrize("shape", [(5, 5), (8, 40), (40, 8), (1, 7), (7, 1), (64, 3072)])
def test_equals_the_iteration_on_the_whole_matrix(shape):
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonal(matrix), iterate(matrix), rtol=0, atol=1e-12)
    single = orthogonal(matrix.float())
    torch.testing.assert_close(single.double(), iterate(matrix), rtol=0, atol=1e-4)


def test_singular_values_are_near_1_and_their_vectors_stay():
    matrix = torch.randn(20, 90, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    result = left.T @ orthogonal(matrix) @ right.T  # diagonal
    assert ((result.diag() > 0.67) & (result.diag() < 1.15)).all()
    assert (result - torch.diag(result.diag())).abs().max() < 1e-10


def test_zeros_stay_zeros():
    assert orthogonal(torch.zeros(3, 4)).equal(torch.zeros(3, 4))


def test_other_groups_are_trained_by_adamw():
    ours, theirs = (torch.nn.Parameter(torch.arange(4.0)) for _ in range(2))
    kernel = torch.nn.Parameter(torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(2)))
    groups = [
        {"params": [ours], "lr": 0.1},
        {"params": [kernel], "lr": 0.05, "orthogonal": True},
    ]
    muon = Muon(groups, weight_decay=0.01)
    adamw = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.01)
    expected, momentum = kernel.detach().clone(), torch.zeros(6, 18)
    for step in range(3):
        gradient = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(step))
        ours.grad, theirs.grad = torch.full((4,), 1.0 + step), torch.full((4,), 1.0 + step)
        kernel.grad = gradient.clone()
        muon.step()
        adamw.step()
        momentum = MOMENTUM * momentum + gradient.flatten(1)
        direction = iterate(gradient.flatten(1) + MOMENTUM * momentum)
        expected = expected / expected.norm() * 6**0.5 - 0.05 * direction.view(kernel.shape)
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(kernel.detach(), expected, rtol=0, atol=1e-4)
    assert muon.state[kernel].keys() == {"step", "momentum"}
