"""Rendered characters 0-9, A-Z, a-z from Debian's font packages, and how well they are told apart in families never seen.

    apt-get install --no-install-recommends $(python benchmarks/characters.py --packages)
    python benchmarks/characters.py [--work DIR] [--seconds 60]

A package's fonts stay in one part (the manifest's `group`), so the test families are unseen. The embedding is trained with
default settings, then the head on it; beside it a cross-entropy network with the same layers and augmentation, trained end to
end for the same wall time (learning rate and epoch chosen on validation). Reported as 62 classes, and with case folded.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from pipeline import checkpoint, run, runtime
from pipeline.data import Dataset, load_dataset
from stages.augment import random_affine
from stages.metrics import knn
from stages.network import EmbeddingNet, embed_split, pixel_statistics, to_device
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SIZE = 28
FONTS_EACH = 4  # of a package at most
PACKAGES = [
    f"fonts-{name}"
    for name in """
    3270 adf-accanthis adf-baskervald adf-berenis adf-gillius adf-ikarius adf-irianis adf-libris adf-mekanus adf-oldania adf-romande
    adf-solothurn adf-switzera adf-tribun adf-universalis adf-verana agave allerta anonymous-pro arapey averia-gwf averia-sans-gwf
    averia-serif-gwf b612 bajaderka beteckna breip cabin cabinsketch cantarell century-catalogue cherrybomb clear-sans comfortaa
    comic-neue compagnon courier-prime crosextra-caladea crosextra-carlito dancingscript dejavu-core dkg-handwriting dosis dustin
    ebgaramond ecolier-court essays1743 eurofurence f500 fantasque-sans fanwood femkeklaver ferrite-core firacode freefont-ttf
    georgewilliams gnutypewriter go goudybookletter hack havana hermit humor-sans inconsolata inter isabella jetbrains-mono
    johnsmith-induni joscelyn junction junicode jura karla kaushanscript klaudia-berenika kristi lato league-mono league-spartan
    leckerli-one levien-museum levien-typoscript liberation lindenhill linex linuxlibertine lobster lobstertwo manrope millimetre mona
    monofur mononoki national-park ocr-a ocr-b okolaks oldstandard open-sans opendin opendyslexic osifont oxygen paratype pc play
    prociono quattrocento quicksand radisnoir roadgeek roboto-slab roboto-unhinted routed-gothic rufscript sil-andika sil-charis
    sil-doulos sil-gentium sjfonts solide-mirage sora staypuft summersby tiresias tomsontalks train tuffy ubuntu-title urw-base35
    vollkorn yanone-kaffeesatz yrsa-rasa
    """.split()
]


def is_test(package: str) -> bool:
    """A quarter of the packages, by name, whichever are installed."""
    return zlib.crc32(package.encode()) % 4 == 0


def draw_alphabet(font: Path) -> list[Image.Image] | None:
    """All characters on one baseline at one size, since size and place are all that tells o from O; None if the font lacks some."""
    from fontTools.ttLib import TTFont

    with TTFont(font, lazy=True) as tables:
        if not set(map(ord, CHARACTERS)) <= set(tables.getBestCmap() or ()):
            return None
    face = ImageFont.truetype(str(font), 20)
    drawn = []
    for character in CHARACTERS:
        image = Image.new("L", (SIZE, SIZE))
        ImageDraw.Draw(image).text((SIZE / 2, 20), character, fill=255, font=face, anchor="ms")
        drawn.append(image)
    # A font of pictures, or of capitals alone, gives one image two names.
    return drawn if len({image.tobytes() for image in drawn}) > 50 else None


def write_characters(root: Path) -> Path:
    """Render every font of the installed packages; returns the manifest."""
    rows = []
    for package in PACKAGES:
        listed = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True).stdout.split("\n")
        fonts = sorted(Path(line) for line in listed if line.endswith((".ttf", ".otf", ".TTF")) and "ymbol" not in line)
        kept = 0
        # Evenly over the package, since a family's weights and slants stand side by side.
        for font in fonts[:: max(1, len(fonts) // FONTS_EACH)]:
            drawn = draw_alphabet(font) if kept < FONTS_EACH else None
            if drawn is None:
                continue
            kept += 1
            folder = root / package / font.stem.replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            for character, image in zip(CHARACTERS, drawn, strict=True):
                path = folder / f"{ord(character)}.png"
                image.save(path)
                rows.append((path.relative_to(root).as_posix(), character, package))
    manifest = root / "characters.csv"
    pd.DataFrame(rows, columns=["path", "label", "group"]).to_csv(manifest, index=False)
    return manifest


if __name__ == "__main__":
    if "--packages" in sys.argv:
        print(*PACKAGES)
    else:
        t = time.time()
        m = write_characters(Path(sys.argv[1]))
        d = pd.read_csv(m)
        print(len(d), d.group.nunique(), len(d) // 62, time.time() - t)
