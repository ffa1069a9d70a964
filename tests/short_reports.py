"""Reports after a short training on a few small files."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from factories import QUIET
from PIL import Image

from pipeline.checkpoint import load_embedding
from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.commands.report import report
from pipeline.commands.run import run
from pipeline.report.evaluated_run import EvaluatedRun
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

QUICK = EmbedSettings(dim=8, epochs=2, augment=False)


class Report(NamedTuple):
    """A report and its checkpoints in a folder, and the images they come from."""

    folder: Path
    source: Path

    def scores(self, split: str = "test-unseen") -> pd.DataFrame:
        table = pd.read_csv(self.folder / "accuracy.csv")
        return table[table["split"] == split].set_index("metric")

    def page(self) -> str:
        return (self.folder / "report.html").read_text(encoding="utf-8")

    def vectors(self, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Embed the files of a split: vectors, class names and ids."""
        files = sorted((self.source / split).rglob("*.png"))
        pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])
        with torch.no_grad():
            network = load_embedding(self.folder / "e.safetensors").network.eval()
            vectors = network(pixels[:, None])  # (N, 1, 8, 8)
        ids = [file.relative_to(self.source).as_posix() for file in files]
        return vectors.double().numpy(), np.array([file.parent.name for file in files]), ids


def train_and_report(
    source: Path, folder: Path, read: ReadSettings | None = None, **options: object
) -> Report:
    """Train both stages on files and write a report with figures."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "e.safetensors", folder / "c.safetensors"
    embed(str(source), read or ReadSettings(), QUICK, out=paths[0], context=QUIET)
    classify(paths[0], ClassifySettings(), out=paths[1], context=QUIET)
    report(*paths, out=folder, context=QUIET, figures=folder / "figures", **options)
    return Report(folder, source)


def run_once(source: Path, read: ReadSettings | None = None, **options: object) -> EvaluatedRun:
    """Run all stages in the current folder and return the only run."""
    settings = read or ReadSettings(), QUICK, ClassifySettings()
    files = {"embedding": Path("e.safetensors"), "classifier": Path("c.safetensors")}
    (evaluated,) = run(str(source), *settings, **files, out=Path(), context=QUIET, **options)
    return evaluated
