"""`pipeline run`: all three stages in sequence."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.commands.inputs import load_data
from pipeline.commands.report import evaluate_run
from pipeline.context import RunContext
from pipeline.identity import classifier_identity, embedding_identity, refuse_to_replace
from pipeline.processes import main_process_only
from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.write import write_report
from pipeline.weights import load_weights, with_pretrained_size
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings


class _Run(NamedTuple):
    """One of several runs: its name, the settings of both stages, its checkpoints."""

    name: str
    first: EmbedSettings
    second: ClassifySettings
    embedding: Path
    classifier: Path

    def with_seed(self, seed: int) -> "_Run":
        paths = (
            path.with_name(f"{path.stem}-seed-{seed}{path.suffix}")
            for path in (self.embedding, self.classifier)
        )
        return _Run(
            f"seed-{seed}", replace(self.first, seed=seed), replace(self.second, seed=seed), *paths
        )


def run(
    source: str,
    read: ReadSettings,
    embed_settings: EmbedSettings,
    classify_settings: ClassifySettings,
    *,
    embedding: Path,
    classifier: Path,
    out: Path,
    context: RunContext,
    force: bool = False,
    resume: bool = False,
    seeds: Sequence[int] = (),
    figures: Path | None = None,
) -> tuple[EvaluatedRun, ...]:
    """The three stages in a row, the images read once; all checkpoints are checked before anything is trained.

    resume: of stage one, see `embed`. seeds: run it once a seed, on the same split; each run has its own checkpoints,
    `-seed-N` in their names.
    """
    data = load_data(source, with_pretrained_size(read, embed_settings), context)
    pretrained = load_weights(embed_settings)
    runs = [_Run(embedding.stem, embed_settings, classify_settings, embedding, classifier)]
    if seeds:
        runs = [runs[0].with_seed(seed) for seed in seeds]
    for one in runs:
        identity = embedding_identity(data, one.first, pretrained)
        refuse_to_replace(one.embedding, "embedding", identity, force)
        refuse_to_replace(
            one.classifier, "classifier", classifier_identity(identity, one.second), force
        )
    comparisons = []
    for one in runs:
        embed(data, read, one.first, out=one.embedding, context=context, force=force, resume=resume)
        classify(
            one.embedding, one.second, out=one.classifier, context=context, source=data, force=force
        )
        comparisons.append(
            evaluate_run(one.name, one.embedding, one.classifier, context=context, source=data)
        )
    main_process_only(
        lambda: write_report(out, comparisons, figures=figures, pooled=len(seeds) > 0)
    )
    return tuple(comparisons)
