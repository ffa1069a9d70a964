"""Untrained classifiers, and ONNX files run by onnxruntime."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from factories import make_record

from pipeline.checkpoint import save_classifier
from stages.network.classifier_graph import OUTPUTS
from stages.network.embedding_net import EmbeddingNet
from stages.network.head import Head
from stages.records import Embeddings


def write_classifier(path: Path, network: EmbeddingNet, **changes: object) -> Path:
    """Write a classifier with a network and random heads."""
    dim = network.config["dim"]
    vectors = torch.nn.functional.normalize(torch.randn(3, dim), dim=1)
    gallery = Embeddings(vectors, torch.tensor([0, 1, 1]), ("a", "b"))
    validation = Embeddings(vectors[:1].roll(1, 1), torch.tensor([0]), ("a", "b"))
    record = make_record("classifier", network, **changes)
    save_classifier(path, network, Head(dim, 2), gallery, record, validation=validation)
    return path


def session(path: Path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(path: Path, values: np.ndarray) -> dict[str, np.ndarray]:
    """Run an ONNX file with one input."""
    loaded = session(path)
    (given,) = loaded.get_inputs()
    return dict(zip(OUTPUTS, loaded.run(list(OUTPUTS), {given.name: values}), strict=True))
