"""`pipeline run`: all three stages in sequence."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.commands.inputs import EmbedInputs, prepare_inputs, source_files
from pipeline.commands.report import evaluate_run, reserve_report
from pipeline.context import RunContext
from pipeline.data.dataset import Dataset
from pipeline.device import restore_torch_settings
from pipeline.identity import classifier_identity, embedding_identity, refuse_to_replace
from pipeline.monitor import embedding_files
from pipeline.network_choice import choose_network
from pipeline.outputs import reserve_outputs
from pipeline.processes import main_process_only
from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.write import write_report
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings


@dataclass(frozen=True)
class _Run:
    """One run of both stages.

    Attributes:
        name: Name in the report.
        embed_settings: Settings of stage one.
        classify_settings: Settings of stage two.
        embedding: Checkpoint of stage one.
        classifier: Checkpoint of stage two.
    """

    name: str
    embed_settings: EmbedSettings
    classify_settings: ClassifySettings
    embedding: Path
    classifier: Path

    def with_seed(self, seed: int) -> "_Run":
        """Return the same run with another seed and its own checkpoints."""
        return _Run(
            name=f"seed-{seed}",
            embed_settings=replace(self.embed_settings, seed=seed),
            classify_settings=replace(self.classify_settings, seed=seed),
            embedding=seed_path(self.embedding, seed),
            classifier=seed_path(self.classifier, seed),
        )


def seed_path(path: Path, seed: int) -> Path:
    """Return the path of one seed's checkpoint.

    Example:
        >>> seed_path(Path("embedding.safetensors"), 2).name
        'embedding-seed-2.safetensors'
    """
    return path.with_name(f"{path.stem}-seed-{seed}{path.suffix}")


@restore_torch_settings()
def run(
    source: str | Dataset,
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
    """Run the three stages in sequence.

    Images and initial weights are loaded once. All checkpoints are checked before training starts.

    Args:
        source: Source of the images, or a data set that is already read.
        read: How to read and split the source. Ignored if the source is already read.
        embed_settings: Settings of stage one.
        classify_settings: Settings of stage two.
        embedding: Checkpoint of stage one to write.
        classifier: Checkpoint of stage two to write.
        out: Folder for the report.
        context: Device, output and cache options.
        force: Replace checkpoints of other runs.
        resume: Resume stage one, as in :func:`pipeline.commands.embed.embed`.
        seeds: Run the stages once per seed, on the same split. The checkpoints of a seed have
            ``-seed-N`` in their names.
        figures: Folder for the figures as PNG and SVG files.

    Returns:
        One evaluated run, or one per seed; none if there are no test images.

    Raises:
        CheckpointError: If a checkpoint of another run would be replaced.
        DataError: If the images cannot be used.
        KeyboardInterrupt: After a signal, once the state of stage one is saved.

    Example:
        >>> runs = run(
        ...     "digits", ReadSettings(), EmbedSettings(), ClassifySettings(),
        ...     embedding=Path("embedding.safetensors"),
        ...     classifier=Path("classifier.safetensors"),
        ...     out=Path("reports"), context=RunContext(),
        ... )  # doctest: +SKIP
    """
    context.start()
    read, embed_settings, reason = choose_network(source, read, embed_settings, context)
    runs = [_Run(embedding.stem, embed_settings, classify_settings, embedding, classifier)]
    if seeds:
        runs = [runs[0].with_seed(seed) for seed in seeds]
    outputs = []
    for planned in runs:
        outputs += [planned.embedding, *embedding_files(planned.embedding), planned.classifier]
    with reserve_outputs(outputs, inputs=source_files(source)), reserve_report(out, figures, force):
        inputs = prepare_inputs(source, read, embed_settings, context)
        inputs = replace(inputs, network_choice=reason)
        evaluated = _run_all(runs, inputs, read, context, force=force, resume=resume)
        if evaluated:
            main_process_only(
                lambda: write_report(out, evaluated, figures=figures, pooled=bool(seeds))
            )
    return tuple(evaluated)


def _run_all(
    runs: Sequence[_Run],
    inputs: EmbedInputs,
    read: ReadSettings,
    context: RunContext,
    *,
    force: bool,
    resume: bool,
) -> list[EvaluatedRun]:
    """Train and evaluate all runs. Without test images nothing is evaluated."""
    data, pretrained = inputs.data, inputs.pretrained
    for planned in runs:
        identity = embedding_identity(data, planned.embed_settings, pretrained)
        refuse_to_replace(planned.embedding, "embedding", identity, force)
        identity = classifier_identity(identity, planned.classify_settings)
        refuse_to_replace(planned.classifier, "classifier", identity, force)
    evaluated = []
    for planned in runs:
        embed(
            inputs,
            read,
            planned.embed_settings,
            out=planned.embedding,
            context=context,
            force=force,
            resume=resume,
        )
        classify(
            planned.embedding,
            planned.classify_settings,
            out=planned.classifier,
            context=context,
            source=data,
            force=force,
        )
        if data.test is None and data.unseen is None:
            continue
        evaluated.append(
            evaluate_run(
                planned.name,
                planned.embedding,
                planned.classifier,
                context=context,
                source=data,
                pretrained=pretrained,
            )
        )
    if not evaluated:
        context.say("note: there are no test images, so no report is written")
    return evaluated
