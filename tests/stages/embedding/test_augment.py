"""Random changes to training images."""

import torch

from stages.embedding.augment import random_affine


def test_affine_changes_are_small_and_differ_per_image():
    image = torch.zeros(1, 1, 28, 28)
    image[..., 8:20, 12:16] = 255  # a bar
    torch.manual_seed(0)
    changed = random_affine(image.repeat(8, 1, 1, 1))
    assert changed.shape == (8, 1, 28, 28)
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 255.01
    for i in range(8):
        for j in range(i):
            assert float((changed[i] - changed[j]).abs().mean()) > 1
    # Most of the bar stays in its place.
    assert float((changed * image).sum() / image.square().sum() / 8) > 0.5


def test_strength_scales_the_changes():
    images, draws = torch.rand(3, 1, 16, 16), torch.rand(4, 3)
    assert torch.allclose(random_affine(images, draws, strength=0), images, atol=1e-5)
    half = random_affine(images, 0.25 + draws / 2)
    assert torch.allclose(random_affine(images, draws, strength=0.5), half, atol=1e-5)
    assert (half - random_affine(images, draws)).abs().mean() > 1e-3
