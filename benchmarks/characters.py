"""Recognition of rendered characters in font families that were not trained on.

    apt-get install --no-install-recommends $(python benchmarks/characters.py --packages)
    python benchmarks/characters.py [--work DIR] [--json FILE]

The characters 0-9, A-Z and a-z are rendered from Debian's font packages. All fonts of a package are
in one split (the manifest's `group`), so the test families are unseen. The embedding is trained
with default settings, then the head on top of it. The baseline is a network with the same layers
and augmentation, trained end to end with cross-entropy for the same wall time; its learning rate is
chosen on validation. Accuracy is reported for 62 classes, and with upper and lower case merged.
"""

import argparse
import json
import subprocess
import tempfile
import time
import zlib
from pathlib import Path
from typing import NamedTuple

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
FONTS_PER_PACKAGE = 4  # at most
# Names of the packages without the prefix `fonts-`.
NAMES = """
    3270 adf-accanthis adf-baskervald adf-berenis adf-gillius adf-ikarius adf-irianis adf-libris
    adf-mekanus adf-oldania adf-romande adf-solothurn adf-switzera adf-tribun adf-universalis
    adf-verana agave allerta anonymous-pro arapey averia-gwf averia-sans-gwf averia-serif-gwf
    b612 bajaderka beteckna breip cabin cabinsketch cantarell century-catalogue cherrybomb
    clear-sans comfortaa comic-neue compagnon courier-prime crosextra-caladea crosextra-carlito
    dancingscript dejavu-core dkg-handwriting dosis dustin ebgaramond ecolier-court essays1743
    eurofurence f500 fantasque-sans fanwood femkeklaver ferrite-core firacode freefont-ttf
    georgewilliams gnutypewriter go goudybookletter hack havana hermit humor-sans inconsolata
    inter isabella jetbrains-mono johnsmith-induni joscelyn junction junicode jura karla
    kaushanscript klaudia-berenika kristi lato league-mono league-spartan leckerli-one
    levien-museum levien-typoscript liberation lindenhill linex linuxlibertine lobster
    lobstertwo manrope millimetre mona monofur mononoki national-park ocr-a ocr-b okolaks
    oldstandard open-sans opendin opendyslexic osifont oxygen paratype pc play prociono
    quattrocento quicksand radisnoir roadgeek roboto-slab roboto-unhinted routed-gothic
    rufscript sil-andika sil-charis sil-doulos sil-gentium sjfonts solide-mirage sora staypuft
    summersby tiresias tomsontalks train tuffy ubuntu-title urw-base35 vollkorn
    yanone-kaffeesatz yrsa-rasa
"""
PACKAGES = [f"fonts-{name}" for name in NAMES.split()]


def is_test(package: str) -> bool:
    """Return True for a quarter of the packages; the choice depends on the name only."""
    return zlib.crc32(package.encode()) % 4 == 0


def draw_alphabet(font: Path) -> list[Image.Image] | None:
    """Draw all characters on one baseline at one size; None if the font lacks a character.

    Only the size and the position distinguish o from O.
    """
    from fontTools.ttLib import TTFont

    with TTFont(font, lazy=True) as tables:
        if not set(map(ord, CHARACTERS)) <= set(tables.getBestCmap() or ()):
            return None
    face = ImageFont.truetype(str(font), 20)
    images = []
    for character in CHARACTERS:
        image = Image.new("L", (SIZE, SIZE))
        ImageDraw.Draw(image).text((SIZE / 2, 20), character, fill=255, font=face, anchor="ms")
        images.append(image)
    # Fonts of pictures, or of capitals only, draw several characters in the same way.
    return images if len({image.tobytes() for image in images}) > 50 else None


def font_files(package: str) -> list[Path]:
    """Return the fonts of an installed package, thinned evenly.

    Neighbouring files are often weights and slants of one family.
    """
    listing = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True).stdout
    fonts = sorted(
        Path(line)
        for line in listing.split("\n")
        if line.endswith((".ttf", ".otf", ".TTF")) and "ymbol" not in line
    )
    return fonts[:: max(1, len(fonts) // FONTS_PER_PACKAGE)]


def write_characters(root: Path) -> Path:
    """Render the fonts of the installed packages and return the path of the manifest."""
    rows = []
    for package in PACKAGES:
        split = "test" if is_test(package) else "train"
        kept = 0
        for font in font_files(package):
            images = draw_alphabet(font) if kept < FONTS_PER_PACKAGE else None
            if images is None:
                continue
            kept += 1
            folder = root / package / font.stem.replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            for character, image in zip(CHARACTERS, images, strict=True):
                path = folder / f"{ord(character)}.png"
                image.save(path)
                rows.append((path.relative_to(root).as_posix(), character, package, split))
    manifest = root / "characters.csv"
    pd.DataFrame(rows, columns=["path", "label", "group", "split"]).to_csv(manifest, index=False)
    return manifest


class Classifier(NamedTuple):
    """A network with a linear layer on top, and its validation accuracy (0 without validation)."""

    network: EmbeddingNet
    linear: nn.Linear
    accuracy: float


def train_cross_entropy(data: Dataset, seconds: float, lr: float) -> Classifier:
    """Train our network and a linear layer end to end with cross-entropy for a wall time.

    Batches are 160 shuffled images. Augmentation, optimiser, weight decay, shape of the learning
    rate schedule and precision are those of stage one.
    """
    torch.manual_seed(0)
    mean, std = pixel_statistics(data.train)
    network = to_device(EmbeddingNet(1, SIZE, 128, mean=mean, std=std), CPU).train()
    linear = nn.Linear(128, len(data.train.classes))
    parameters = [*network.parameters(), *linear.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=WEIGHT_DECAY, fused=True)
    precision = choose_precision("auto", CPU)
    start = time.perf_counter()
    while (share := (time.perf_counter() - start) / seconds) < 1:
        for batch in torch.randperm(len(data.train)).split(160):
            optimiser.param_groups[0]["lr"] = lr * learning_rate_factor(round(1000 * share), 1000)
            pixels = random_affine(data.train.take(batch))
            with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
                logits = linear(network.project(network.features(pixels)))
            loss = F.cross_entropy(logits.float(), data.train.labels[batch])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            if (share := (time.perf_counter() - start) / seconds) >= 1:
                break
    network.eval()
    accuracy = 0.0
    if data.validation:
        correct = predict(linear, network, data.validation) == data.validation.labels
        accuracy = float(correct.float().mean())
    return Classifier(network, linear, accuracy)


@torch.no_grad()
def predict(linear: nn.Module, network: EmbeddingNet, split: Split) -> Tensor:
    """Return the predicted classes, int64 (N,)."""
    return torch.cat(
        [linear(network.project(network.features(images))).argmax(1) for images in split.blocks()]
    )


def interval(correct: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """Return accuracy and its 95% confidence interval, clustered by package.

    Errors on fonts of one package are correlated, so the packages are the sample.
    """
    accuracy = correct.mean()
    residuals = pd.Series(correct - accuracy).groupby(groups).sum()
    half = 1.96 * float(np.sqrt(np.square(residuals).sum())) / len(correct)
    return float(accuracy), float(accuracy) - half, float(accuracy) + half


def compare(work: Path) -> pd.DataFrame:
    """Train all methods, then evaluate them on the test split."""
    context = RunContext(device="cpu", quiet=True, cache=work / "cache")
    manifest = write_characters(work / "characters")
    data = load_dataset(str(manifest), ReadSettings(), cache=work / "cache")
    if data.test is None:
        raise SystemExit("no font of a test package is installed; install more with --packages")
    counts = len(data.train), len(data.validation or ()), len(data.test)
    print("{} training, {} validation, {} test images".format(*counts), flush=True)
    start = time.perf_counter()
    out = work / "embedding.safetensors"
    embedding = embed(data, data.read, EmbedSettings(), out=out, context=context, force=True)
    seconds = time.perf_counter() - start
    out = work / "classifier.safetensors"
    settings = ClassifySettings()
    classifier = classify(embedding, settings, out=out, context=context, source=data, force=True)
    print(f"stage one in {seconds:.1f} s", flush=True)
    # Too few packages leave no validation images, and then there is nothing to choose by.
    rates = (1e-3, 3e-3) if data.validation else (1e-3,)
    candidates = [train_cross_entropy(data, seconds, lr) for lr in rates]
    baseline = max(candidates, key=lambda candidate: candidate.accuracy)
    checkpoint = load_classifier(classifier)
    gallery, k = checkpoint.gallery, checkpoint.record["k"]
    test = embed_split(to_device(checkpoint.network, CPU), data.test, device=CPU)
    predictions = {
        "kNN on the embedding": knn(test.vectors, gallery.vectors, gallery.labels, k=k).labels,
        "classification on the frozen embedding": checkpoint.head(test.vectors).argmax(1).numpy(),
        "cross-entropy, end to end, same time": predict(
            baseline.linear, baseline.network, data.test
        ).numpy(),
    }
    return score(predictions, data.test)


def score(predictions: dict[str, np.ndarray], test: Split) -> pd.DataFrame:
    """Return accuracy per method, with 62 classes and with upper and lower case merged."""
    groups = np.array([image.split("/")[0] for image in test.ids])
    lower = sorted({name.lower() for name in test.classes})
    merged = np.array([lower.index(name.lower()) for name in test.classes])
    labels = test.labels.numpy()
    rows = []
    for method, predicted in predictions.items():
        for classes, code in ((62, np.arange(len(merged))), (36, merged)):
            correct = (code[predicted] == code[labels]).astype(float)
            rows.append((method, classes, *interval(correct, groups)))
    return pd.DataFrame(rows, columns=["method", "classes", "accuracy", "low", "high"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", action="store_true", help="print the packages to install")
    parser.add_argument("--work", type=Path, help="keep images and checkpoints in this folder")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    if options.packages:
        print(*PACKAGES)
        return
    with tempfile.TemporaryDirectory() as name:
        table = compare(options.work or Path(name))
    print(table.to_string(index=False, float_format="%.4f"))
    if options.json:
        shared = {"peer": None, "peer_name": None, "ratio": None, "limit": None, "unit": "accuracy"}
        rows = [
            {"work": f"characters {row.classes} {row.method}", "ours": row.accuracy, **shared}
            for row in table.itertuples()
        ]
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
