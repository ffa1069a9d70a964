"""Random changes to training images, batched and different for each image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 0.1  # of the side


TURN = 15.0  # degrees


SCALE = 0.15


PART = 0.4  # of a photo's area that is seen at least


COLOUR = 0.3  # brightness, contrast and saturation change by up to this share


AFFINE, PHOTO = 4, 8  # random numbers an image


def random_affine(images: Tensor, draws: Tensor | None = None) -> Tensor:
    """Shift, turn and scale each image a little, at random; pixels from outside repeat the border.

    images: floating point or uint8 (B, C, S, S). draws: float32 (AFFINE, B) in [0, 1), on the CPU whatever the images' device, so
    that one seed serves all devices; None: from torch's global generator. Returns float32 (B, C, S, S) in the same range.
    """
    count = len(images)
    draws = (
        torch.rand(AFFINE, count) if draws is None else draws
    ) * 2 - 1  # (4, B), each in [-1, 1]
    angle = draws[0] * math.radians(TURN)
    zoom = 1 + draws[1] * SCALE
    shift = draws[2:] * SHIFT * 2  # grid coordinates run from -1 to 1
    cosine, sine = angle.cos() / zoom, angle.sin() / zoom
    ones, size = torch.ones(1), images.shape[-1]
    centre = (torch.arange(size) * 2 + 1) / size - 1  # of each pixel, in grid coordinates
    places = torch.stack(torch.broadcast_tensors(centre, centre[:, None], ones)).view(
        3, -1
    )  # x, y, 1
    matrices = torch.stack([cosine, -sine, shift[0], sine, cosine, shift[1]], 1).view(
        -1, 3
    )  # (2 B, 3)
    # One product for all images; `affine_grid` multiplies image by image.
    grid = (
        (matrices @ places).view(count, 2, size, size).permute(0, 2, 3, 1).to(images.device)
    )  # (B, S, S, 2)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def random_photo(images: Tensor, draws: Tensor | None = None) -> Tensor:
    """Mirror each colour photo or not, enlarge a random part of it to the whole, change its light and colour a little.

    images: floating point or uint8 in [0, 255], (B, 3, S, S). draws: float32 (PHOTO, B), as for `random_affine`. Returns float32
    (B, 3, S, S) in [0, 255].
    """
    draws = torch.rand(PHOTO, len(images)) if draws is None else draws
    spread = draws * 2 - 1
    area, ratio = 1 - draws[0] * (1 - PART), (spread[1] * math.log(4 / 3)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    flip, none = torch.where(draws[2] < 0.5, -1.0, 1.0), torch.zeros(len(images))
    rows = [
        torch.stack([width * flip, none, spread[3] * (1 - width)], 1),
        torch.stack([none, height, spread[4] * (1 - height)], 1),
    ]
    grid = F.affine_grid(
        torch.stack(rows, 1).to(images.device), list(images.shape), align_corners=False
    )
    pixels = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    light, contrast, colour = (1 + spread[5:] * COLOUR).to(images.device).view(3, -1, 1, 1, 1)
    grey = pixels.mean(1, keepdim=True)
    pixels = grey + (pixels - grey) * colour
    mean = pixels.mean((1, 2, 3), keepdim=True)
    changed: Tensor = (mean + (pixels - mean) * contrast) * light
    return changed.clamp(0, 255)
