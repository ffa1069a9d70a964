"""Rendered characters 0-9, A-Z, a-z from Debian's font packages, and how well they are told apart in families never seen.

    apt-get install --no-install-recommends $(python benchmarks/characters.py --packages)
    python benchmarks/characters.py [--work DIR] [--json FILE]

A package's fonts stay in one part (the manifest's `group`), so the test families are unseen. The embedding is trained with
default settings, then the head on it; beside it a cross-entropy network with the same layers and augmentation, trained end to
end for the same wall time (learning rate and epoch chosen on validation). Reported as 62 classes, and with case folded.
"""

import argparse
import json
import subprocess
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from pipeline.checkpoint import load_classifier
from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.context import RunContext
from pipeline.data.dataset import Dataset
from pipeline.data.sources import load_dataset
from pipeline.device import choose_precision
from stages.embedding.augment import random_affine
from stages.embedding.schedule import learning_rate_factor
from stages.embedding.train import WEIGHT_DECAY
from stages.evaluation.knn import knn
from stages.network.embedding_net import EmbeddingNet, to_device
from stages.network.inference import embed_split
from stages.network.initialization import pixel_statistics
from stages.records import Split
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CPU = torch.device("cpu")
SIZE = 28
FONTS_EACH = 4  # of a package at most
NAMES = """
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
"""  # after `fonts-`
PACKAGES = [f"fonts-{name}" for name in NAMES.split()]


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
        listed = subprocess.run(
            ["dpkg", "-L", package], capture_output=True, text=True
        ).stdout.split("\n")
        fonts = sorted(
            Path(line)
            for line in listed
            if line.endswith((".ttf", ".otf", ".TTF")) and "ymbol" not in line
        )
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
                rows.append(
                    (
                        path.relative_to(root).as_posix(),
                        character,
                        package,
                        "test" if is_test(package) else "train",
                    )
                )
    manifest = root / "characters.csv"
    pd.DataFrame(rows, columns=["path", "label", "group", "split"]).to_csv(manifest, index=False)
    return manifest


def cross_entropy(
    data: Dataset, seconds: float, lr: float
) -> tuple[nn.Module, EmbeddingNet, float]:
    """Our network under a linear layer, trained end to end with cross-entropy for so long; returns both and validation accuracy.

    Batches of 160 shuffled images, and in everything else as ours: augmentation, AdamW, weight decay, the schedule's shape, precision.
    """
    torch.manual_seed(0)
    mean, std = pixel_statistics(data.train)
    network = to_device(EmbeddingNet(1, SIZE, 128, mean=mean, std=std), CPU).train()
    last = nn.Linear(128, len(data.train.classes))
    optimiser = torch.optim.AdamW(
        [*network.parameters(), *last.parameters()], lr=lr, weight_decay=WEIGHT_DECAY, fused=True
    )
    precision = choose_precision("auto", CPU)
    begun = time.perf_counter()
    while (share := (time.perf_counter() - begun) / seconds) < 1:
        for batch in torch.randperm(len(data.train)).split(160):
            optimiser.param_groups[0]["lr"] = lr * learning_rate_factor(round(1000 * share), 1000)
            pixels = random_affine(data.train.take(batch))
            with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
                logits = last(network.project(network.features(pixels)))
            loss = F.cross_entropy(logits.float(), data.train.labels[batch])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            if (share := (time.perf_counter() - begun) / seconds) >= 1:
                break
    network.eval()
    return (
        last,
        network,
        float((named_by(last, network, data.validation) == data.validation.labels).float().mean()),
    )


@torch.no_grad()
def named_by(last: nn.Module, network: EmbeddingNet, part: Split) -> Tensor:
    return torch.cat(
        [last(network.project(network.features(images))).argmax(1) for images in part.blocks()]
    )


def interval(right: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """Share and 95 % interval; fonts of one package err together, so packages are what was drawn."""
    share = right.mean()
    off = pd.Series(right - share).groupby(groups).sum()
    half = 1.96 * float(np.sqrt(np.square(off).sum())) / len(right)
    return float(share), float(share) - half, float(share) + half


def compare(work: Path) -> pd.DataFrame:
    """Train all, then open the test part: accuracy as 62 classes and with case folded."""
    context = RunContext(device="cpu", quiet=True, cache=work / "cache")
    data = load_dataset(
        str(write_characters(work / "characters")), ReadSettings(), cache=work / "cache"
    )
    print(
        f"{len(data.train)} training, {len(data.validation)} validation, {len(data.test)} test images",
        flush=True,
    )
    begun = time.perf_counter()
    embedding = embed(
        data,
        data.read,
        EmbedSettings(),
        out=work / "embedding.safetensors",
        context=context,
        force=True,
    )
    seconds = time.perf_counter() - begun
    classifier = classify(
        embedding,
        ClassifySettings(),
        out=work / "classifier.safetensors",
        context=context,
        source=data,
        force=True,
    )
    print(f"stage one in {seconds:.1f} s", flush=True)
    last, network, _ = max(
        (cross_entropy(data, seconds, lr) for lr in (1e-3, 3e-3)), key=lambda found: found[2]
    )
    held = load_classifier(classifier)
    test = embed_split(to_device(held.network, CPU), data.test, device=CPU)
    found = {
        "kNN on the embedding": torch.from_numpy(
            knn(test.vectors, held.gallery.vectors, held.gallery.labels, k=held.record["k"]).labels
        ),
        "classification on the frozen embedding": held.head(test.vectors).argmax(1),
        "cross-entropy, end to end, same time": named_by(last, network, data.test),
    }
    groups = np.array([name.split("/")[0] for name in data.test.ids])
    folded = np.array(
        [sorted({c.lower() for c in data.test.classes}).index(c.lower()) for c in data.test.classes]
    )
    labels = data.test.labels.numpy()
    rows = []
    for name, guesses in found.items():
        for classes, code in ((62, np.arange(len(folded))), (36, folded)):
            rows.append(
                (
                    name,
                    classes,
                    *interval((code[guesses.numpy()] == code[labels]).astype(float), groups),
                )
            )
    return pd.DataFrame(rows, columns=["method", "classes", "accuracy", "low", "high"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", action="store_true", help="print what to install")
    parser.add_argument("--work", type=Path, help="keep images and checkpoints here")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.packages:
        print(*PACKAGES)
        return
    with tempfile.TemporaryDirectory() as name:
        table = compare(options.work or Path(name))
    print(table.to_string(index=False, float_format="%.4f"))
    if options.json:
        shape = {"peer": None, "peer_name": None, "ratio": None, "limit": None, "unit": "accuracy"}
        rows = [
            {"work": f"characters {row.classes} {row.method}", "ours": row.accuracy, **shape}
            for row in table.itertuples()
        ]
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
