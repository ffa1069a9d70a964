"""Random augmentation of training images, batched, with different random numbers per image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.gpu import copy_to

SHIFT = 0.08  # largest shift along each axis, as a fraction of the image's side
TURN = 12.0  # largest rotation in either direction, in degrees
SCALE = 0.12  # largest change of scale, as a fraction: 0.88 to 1.12
MIN_AREA = 0.4  # smallest crop of a photo, as a fraction of its area
MAX_ASPECT = 4 / 3  # largest ratio of the sides of a photo's crop, before it is cut to the photo
COLOUR = 0.3  # largest change of brightness, contrast and saturation, as a fraction
AFFINE, PHOTO = 4, 8  # random numbers per image of `random_affine` and of `random_photo`


def random_affine(images: Tensor, draws: Tensor | None = None, strength: float = 1.0) -> Tensor:
    """Shift, rotate and scale each image by small random amounts.

    Pixels from outside the image repeat its border.

    Args:
        images: Floating point or uint8, shape (B, C, S, S).
        draws: Random numbers in [0, 1), float32, shape (4, B), drawn on the CPU, so that a seed
            gives the same ones on every device. ``None`` draws them from torch's global generator.
        strength: Factor of all changes, in [0, 1].

    Returns:
        Images in the same range, float32, shape (B, C, S, S).

    Example:
        >>> images = torch.rand(2, 1, 8, 8)
        >>> unchanged = random_affine(images, torch.full((4, 2), 0.5))
        >>> torch.allclose(unchanged, images, atol=1e-5)
        True
    """
    count, size, device = len(images), images.shape[-1], images.device
    draws = torch.rand(AFFINE, count) if draws is None else draws
    draws = copy_to(draws, device)
    symmetric = (draws * 2 - 1) * strength  # (4, B) in [-1, 1]
    angle = symmetric[0] * math.radians(TURN)
    zoom = 1 + symmetric[1] * SCALE
    shift_x, shift_y = symmetric[2:] * SHIFT * 2  # in grid coordinates, which span 2 per side
    cosine, sine = angle.cos() / zoom, angle.sin() / zoom
    # Pixel centres in grid coordinates.
    centre = (torch.arange(size, device=device) * 2 + 1) / size - 1
    coordinates = torch.broadcast_tensors(centre, centre[:, None], torch.ones(1, device=device))
    pixels = torch.stack(coordinates).view(3, -1)  # (3, S * S): x, y, 1
    rows = [cosine, -sine, shift_x, sine, cosine, shift_y]
    matrices = torch.stack(rows, 1).view(-1, 3)  # (2 B, 3)
    # One product for all images; `affine_grid` multiplies image by image.
    grid = (matrices @ pixels).view(count, 2, size, size).permute(0, 2, 3, 1)  # (B, S, S, 2)
    return _sample(images, grid)


def random_photo(images: Tensor, draws: Tensor | None = None) -> Tensor:
    """Mirror, crop and recolour each colour photo at random.

    Half of the photos are mirrored. A random crop is enlarged to the whole image. Brightness,
    contrast and saturation change by small random amounts.

    Args:
        images: Floating point or uint8 in [0, 255], shape (B, 3, S, S).
        draws: Random numbers, float32, shape (8, B), as for :func:`random_affine`.

    Returns:
        Photos in [0, 255], float32, shape (B, 3, S, S).
    """
    draws = torch.rand(PHOTO, len(images)) if draws is None else draws
    draws = copy_to(draws, images.device)
    symmetric = draws * 2 - 1  # (8, B) in [-1, 1]
    area = 1 - draws[0] * (1 - MIN_AREA)
    aspect = (symmetric[1] * math.log(MAX_ASPECT)).exp()
    width = (area * aspect).sqrt().clamp(max=1)  # of the crop, as a fraction of the photo's
    height = (area / aspect).sqrt().clamp(max=1)
    flip = torch.where(draws[2] < 0.5, -1.0, 1.0)
    shift_x, shift_y = symmetric[3] * (1 - width), symmetric[4] * (1 - height)
    zero = torch.zeros_like(width)
    row_x = torch.stack([width * flip, zero, shift_x], 1)
    row_y = torch.stack([zero, height, shift_y], 1)
    matrices = torch.stack([row_x, row_y], 1)  # (B, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return _recolour(_sample(images, grid), 1 + symmetric[5:] * COLOUR)


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    """Return the images' values at the points of ``grid``, interpolated, float32."""
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def _recolour(images: Tensor, factors: Tensor) -> Tensor:
    """Scale brightness, contrast and saturation of each image by ``factors``, shape (3, B)."""
    brightness, contrast, saturation = factors.view(3, -1, 1, 1, 1)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation
    mean = images.mean((1, 2, 3), keepdim=True)
    changed: Tensor = (mean + (images - mean) * contrast) * brightness
    return changed.clamp(0, 255)
