"""Random changes of photos."""

import torch

from stages.embedding.augment import random_photo


def test_random_photo_changes_each_image_reproducibly():
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 24, 24), dtype=torch.uint8)
    images = image.repeat(200, 1, 1, 1)
    changed = random_photo(images)
    assert changed.shape == images.shape
    assert changed.dtype == torch.float32
    assert 0 <= float(changed.min())
    assert float(changed.max()) <= 255
    assert len(changed.flatten(1).unique(dim=0)) == 200
    torch.manual_seed(0)
    torch.randint(0, 256, (1, 3, 24, 24), dtype=torch.uint8)
    assert torch.equal(random_photo(images), changed)


def test_random_photo_mirrors_half_of_the_images():
    torch.manual_seed(1)
    ramp = torch.arange(24.0).repeat(24, 1).expand(200, 3, 24, 24) * 10
    rises = (random_photo(ramp)[..., -1] > random_photo(ramp)[..., 0]).float().mean()
    assert 0.3 < float(rises) < 0.7
