"""Convert images of any mode to 8-bit grey or RGB.

Worker processes import this module. It must not import torch, which takes seconds to load.
"""

import numpy as np
from PIL import Image

from pipeline.data.pixel_digest import bands


def to_grey_or_rgb(image: Image.Image) -> Image.Image:
    """Convert an image, in bands if it is large, because conversions need several copies."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    result: Image.Image | None = None
    for band, corner in bands(image):
        converted = _convert(band)
        if converted.size == image.size:
            return converted
        if result is None:
            result = Image.new(converted.mode, image.size)
        result.paste(converted, corner)
    assert result is not None  # an image has rows
    return result


def _convert(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's conversion would clip at 255
        values = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
