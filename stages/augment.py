"""Random changes to training images, batched and different for each image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 0.1  # of the side
TURN = 15.0  # degrees
SCALE = 0.15


def random_affine(images: Tensor) -> Tensor:
    """Shift, turn and scale each image a little, at random; pixels from outside repeat the border.

    images: floating point or uint8 (B, C, S, S). Returns float32 (B, C, S, S) in the same range.
    Draws from torch's global generator of the CPU, whatever the images' device, so one seed serves all devices.
    """
    count = len(images)
    draws = torch.rand(4, count) * 2 - 1  # (4, B), each in [-1, 1]
    angle = draws[0] * math.radians(TURN)
    zoom = 1 + draws[1] * SCALE
    shift = draws[2:] * SHIFT * 2  # grid coordinates run from -1 to 1
    cosine, sine = angle.cos() / zoom, angle.sin() / zoom
    ones, size = torch.ones(1), images.shape[-1]
    centre = (torch.arange(size) * 2 + 1) / size - 1  # of each pixel, in grid coordinates
    places = torch.stack(torch.broadcast_tensors(centre, centre[:, None], ones)).view(3, -1)  # x, y, 1
    matrices = torch.stack([cosine, -sine, shift[0], sine, cosine, shift[1]], 1).view(-1, 3)  # (2 B, 3)
    # One product for all images; `affine_grid` multiplies image by image.
    grid = (matrices @ places).view(count, 2, size, size).permute(0, 2, 3, 1).to(images.device)  # (B, S, S, 2)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
