"""Fit an image of any size to a square, in operations of ONNX, with the pixels of Pillow.

Pillow resizes 8-bit images in two passes, with weights that are multiples of 2^-22, and rounds
after each pass. This module does the same with whole numbers in float64, so the pixels are equal.
ONNX's operator Resize does not round in between: a tenth of its pixels differ by one grey level.

Pillow resizes columns first. From version 13 on it resizes rows first if the image loses rows, and
more than twice as many as columns. Because of the rounding in between, some pixels depend on the
order, by one grey level. ``rows_first`` selects the rule of version 13.
"""

import torch
from torch import Tensor, nn

WEIGHT_SCALE = 2**22  # Pillow's weights are whole multiples of its inverse
GREY_WEIGHTS = (19595, 38470, 7471)  # of red, green and blue over 2^16, as in Pillow


class SquareGraph(nn.Module):
    """Fit an image to a square as ``pipeline.data.resizing.fit_to_square`` does.

    Args:
        size: Side of the square in pixels.
        channels: 1 or 3.
        resize: ``pad-repeat``, ``pad``, ``crop`` or ``stretch``.
        rows_first: Resize rows first where Pillow 13 does. Else columns are always first, as in
            older versions.

    Example:
        >>> SquareGraph(8, 1, "pad-repeat")(torch.zeros(20, 30, 3, dtype=torch.uint8)).shape
        torch.Size([1, 1, 8, 8])
    """

    def __init__(self, size: int, channels: int, resize: str, *, rows_first: bool = False):
        super().__init__()
        self.size, self.channels, self.resize = size, channels, resize
        self.rows_first = rows_first

    def forward(self, image: Tensor) -> Tensor:
        """Fit an image to a square.

        Args:
            image: RGB, uint8, shape (H, W, 3). The three channels of a grey image are equal.

        Returns:
            The square, uint8, shape (1, C, S, S).
        """
        height, width = image.shape[:2]
        longest = torch.full((), max(height, width), dtype=torch.float64)
        shortest = torch.full((), min(height, width), dtype=torch.float64)
        rows, row_is_inside = self._weights(height, longest, shortest)  # (S, H)
        columns, column_is_inside = self._weights(width, longest, shortest)  # (S, W)
        pixels = image.permute(2, 0, 1).double()  # (3, H, W)
        square = _rounded(rows @ _rounded(pixels @ columns.T))  # (3, S, S)
        if self.rows_first:
            # Both orders are computed: a branch that depends on sizes is hard to translate.
            removed_rows = height - self._target(height, longest)
            removed_columns = width - self._target(width, longest)
            is_rows_first = removed_rows > (2 * removed_columns).clamp(min=0)
            swapped = _rounded(_rounded(rows @ pixels) @ columns.T)
            square = torch.where(is_rows_first, swapped, square)
        if self.resize == "pad":
            square = self._fill(square, row_is_inside[:, None] & column_is_inside)
        if self.channels == 1:
            grey = square.new_tensor(GREY_WEIGHTS)[:, None, None]  # (3, 1, 1)
            square = ((square * grey).sum(0, keepdim=True) + 2**15) / 2**16
            square = square.floor()  # (1, S, S)
        return square.to(torch.uint8)[None]

    def _target(self, side: int, longest: Tensor) -> Tensor:
        """Return how many rows or columns a side is resized to, float64, shape ()."""
        size = torch.full_like(longest, self.size)
        if self.resize in ("crop", "stretch"):
            return size
        # A number over a tensor would be computed as its product with the tensor's inverse, which
        # rounds differently: 28 / 280 * 235 is 23.5 and becomes 24, not 23.
        return (side * (size / longest)).round().clamp(min=1)

    def _weights(self, side: int, longest: Tensor, shortest: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of an image's rows, or of its columns, for those of the square.

        Args:
            side: Height or width of the image, L.
            longest: Its longest side, float64, shape ().
            shortest: Its shortest side, float64, shape ().

        Returns:
            Whole numbers that sum to about ``WEIGHT_SCALE``, float64 (S, L); and, for ``pad``,
            which rows or columns of the square are inside the image, bool (S,).
        """
        length = torch.full((), side, dtype=torch.float64)
        positions = torch.arange(self.size, dtype=torch.float64)  # (S,)
        start, target = torch.zeros_like(length), self._target(side, longest)
        if self.resize == "crop":
            start, length = (length - shortest) / 2, shortest
        elif self.resize == "pad":  # subtract the first row of a centred image
            positions = positions - ((self.size - target) / 2).floor()
        elif self.resize == "pad-repeat":
            positions = positions - target * (positions / target).floor()
        inside = (positions >= 0) & (positions < target)
        scale = length / target
        support = scale.clamp(min=1)
        centres = (start + (positions + 0.5) * scale)[:, None]  # (S, 1)
        taps = torch.arange(side, dtype=torch.float64)  # (L,)
        is_tap = taps >= (centres - support + 0.5).trunc()
        is_tap &= taps < (centres + support + 0.5).trunc()
        weights = (1 - ((taps - centres + 0.5) * (1 / support)).abs()).clamp(min=0) * is_tap
        totals = weights.sum(dim=1, keepdim=True).clamp(min=1e-9)  # 0 outside the image
        return (weights / totals * WEIGHT_SCALE + 0.5).floor(), inside

    def _fill(self, square: Tensor, inside: Tensor) -> Tensor:
        """Fill the pixels outside the image, bool (S, S), with its median colour."""
        count = inside.sum()
        # Values outside sort last, as they are larger than all others.
        values = torch.where(inside, square, 256).flatten(1).sort(dim=1).values  # (3, S * S)
        middle = torch.stack([(count - 1) // 2, count // 2])
        medians = values.index_select(1, middle).mean(dim=1).floor()  # (3,)
        return torch.where(inside, square, medians[:, None, None])


def _rounded(sums: Tensor) -> Tensor:
    """Return the grey levels of weighted sums of grey levels, with halves rounded up."""
    return ((sums + WEIGHT_SCALE / 2) / WEIGHT_SCALE).floor().clamp(0, 255)
