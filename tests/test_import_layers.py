"""Imports point strictly downwards: the layers of the code map, checked against the source."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
# A module imports only from rows above its own. A package name stands for all its modules.
LAYERS = [
    ["stages.errors"],
    ["stages.settings", "stages.distance", "stages.distributed", "stages.network.digest"],
    ["stages.records", "stages.network.conv", "stages.network.head"],
    ["stages.network.pretrained"],
    ["stages.network.embedding_net"],
    ["stages.network.inference", "stages.network.initialization"],
    ["stages.evaluation.results", "stages.evaluation.knn", "stages.evaluation.retrieval"],
    ["stages.evaluation.statistics", "stages.evaluation.calibration_error"],
    ["stages.evaluation.baselines", "stages.evaluation.explore", "stages.evaluation.paired_tests"],
    ["stages.evaluation.scores"],
    ["stages.evaluation.pooling"],
    ["stages.embedding.sampler", "stages.embedding.augment", "stages.embedding.loss"],
    ["stages.embedding.schedule", "stages.embedding.validation", "stages.embedding.inputs"],
    ["stages.embedding.train", "stages.classifier"],
]
