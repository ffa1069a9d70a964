"""`pipeline compare`: networks, losses or mining modes on the same images and splits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.commands.compared_candidates import (
    Candidate,
    failed_entry,
    prepare_candidates,
    say_failure,
)
from pipeline.commands.compared_settings import OPTIONS, check_shared
from pipeline.commands.folds import (
    FoldContext,
    cross_validate,
    pool_splits,
    run_fold,
    warn_of_collapse,
)
from pipeline.commands.inputs import add_trunk_features
from pipeline.commands.report import reserve_report
from pipeline.context import RunContext
from pipeline.data.dataset import Dataset
from pipeline.data.folds import plan_folds
from pipeline.device import restore_torch_settings
from pipeline.network_cost import NetworkCost, measure_cost
from pipeline.report.comparison import MAIN, NOUNS, ComparedRun, Comparison
from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.formats import format_percent
from pipeline.report.write import write_report
from pipeline.weights import load_weights
from stages.distributed import rank_and_world_size
from stages.errors import DataError, PipelineError, SettingsError
from stages.network.embedding_net import to_device
from stages.network.initialization import new_network
from stages.settings import ClassifySettings, ReadSettings

INTERRUPTED = "interrupted before it was finished"


@dataclass(frozen=True, eq=False)
class _Plan:
    """Settings and folds that all candidates share.

    Attributes:
        classify_settings: Settings of stage two.
        folds: Split of each image by the name of the fold; empty without cross-validation.
        repeats: Number of repeats of the folds.
        notes: Notes about the folds for the report.
    """

    classify_settings: ClassifySettings
    folds: Mapping[str, Sequence[str]]
    repeats: int
    notes: Sequence[str]


@restore_torch_settings()
def compare(
    source: str | Dataset,
    read: ReadSettings,
    classify_settings: ClassifySettings,
    *,
    field: str = "network",
    values: Sequence[str],
    shared: Mapping[str, Any] | None = None,
    folds: int | None = None,
    repeats: int = 1,
    out: Path,
    context: RunContext,
    figures: Path | None = None,
    force: bool = False,
) -> Comparison:
    """Train networks, losses or mining modes on the same images and write one report.

    All of them have the same training, validation and test images, or the same folds. One that
    fails is reported with the reason, and the others are still compared. No model is kept.

    Args:
        source: Source of the images, or a data set that is already read; then all networks read
            the images at its size.
        read: How to read and split the source. Ignored if the source is already read.
        classify_settings: Settings of stage two.
        field: Setting of stage one that differs: ``network``, ``loss`` or ``mining``.
        values: Its values, at least two. They are the names of the runs in the report.
        shared: Other settings of stage one, fields of :class:`stages.settings.EmbedSettings`, by
            name. ``weights`` and ``trunk`` apply to the networks that can have weights.
        folds: Number of folds. None: one split into training, validation and test images.
        repeats: Number of times that all folds are repeated with other splits.
        out: Folder for the report.
        context: Device, output and cache options.
        figures: Folder for the figures as PNG and SVG files.
        force: Replace an earlier report on cross-validation or a comparison.

    Returns:
        The comparison, with an evaluated run per network that has not failed.

    Raises:
        SettingsError: If a shared setting is wrong, two values are the same, or the images cannot
            be divided into so many folds.
        DataError: If the images cannot be used.
        PipelineError: If fewer than two can be trained, or all fail in training.
        KeyboardInterrupt: After a signal, once the report on the finished ones is written.

    Example:
        >>> comparison = compare(
        ...     "photos/", ReadSettings(), ClassifySettings(),
        ...     values=["conv", "efficientnet-lite0"],
        ...     shared={"weights": "default", "trunk": "frozen"},
        ...     folds=5, out=Path("reports"), context=RunContext(),
        ... )  # doctest: +SKIP
    """
    device = context.start()
    shared = shared or {}
    check_shared(field, values, shared)
    _check_splits(source, read, folds)
    with reserve_report(out, figures, force):
        candidates, entries = prepare_candidates(source, read, field, values, shared, context)
        if len(candidates) < 2:
            raise PipelineError(_too_few(field, candidates, entries))
        plan = _plan(candidates[0], classify_settings, folds, repeats, context)
        entries |= _train_all(candidates, plan, field, device, context)
        comparison = Comparison(
            field=field,
            entries=tuple(entries[value] for value in values),
            folds=folds or 0,
            interrupted=any(entry.error == INTERRUPTED for entry in entries.values()),
        )
        if comparison.runs:
            write_report(out, comparison.runs, figures=figures, comparison=comparison)
    _raise_if_unfinished(comparison, out)
    return comparison


def _too_few(
    field: str, candidates: Sequence[Candidate], failures: Mapping[str, ComparedRun]
) -> str:
    """Return why there is nothing to compare."""
    left = f"only {candidates[0].name}" if candidates else f"none of the {NOUNS[field][1]}"
    reasons = "; ".join(f"{name}: {entry.error}" for name, entry in failures.items())
    return f"nothing to compare, {left} can be trained: {reasons}"


def _check_splits(source: str | Dataset, read: ReadSettings, folds: int | None) -> None:
    if rank_and_world_size()[1] > 1:
        problem = "a single process trains all in sequence; start without torchrun"
        raise SettingsError("nproc_per_node", None, problem)
    unseen = (source.read if isinstance(source, Dataset) else read).unseen_classes
    if unseen and folds is not None:
        problem = "folds pool the images of all classes; use 0, or leave out the folds"
        raise SettingsError("unseen_classes", unseen, problem)


def _plan(
    first: Candidate,
    classify_settings: ClassifySettings,
    folds: int | None,
    repeats: int,
    context: RunContext,
) -> _Plan:
    """Plan the folds once; they do not depend on the size at which the images are read."""
    data = first.data
    images = f"{data.source}: {len(data.origin.entries):,} images"
    if folds is None:
        if data.test is None and data.unseen is None:
            raise DataError(f"{data.source}: no test images; use a larger --test, or --folds")
        context.say(
            f"{images} of {len(data.train.classes)} classes, {len(data.test or ()):,} tested"
        )
        return _Plan(classify_settings, {}, 1, ())
    pool, notes = pool_splits(data, context)
    plans, remarks = plan_folds(pool, folds, repeats)
    for remark in remarks:
        context.say(f"note: {remark}")
    context.say(f"{images}, {folds} folds" + (f" x {repeats} repeats" if repeats > 1 else ""))
    return _Plan(classify_settings, plans, repeats, [*notes, *remarks])


def _train_all(
    candidates: Sequence[Candidate],
    plan: _Plan,
    field: str,
    device: torch.device,
    context: RunContext,
) -> dict[str, ComparedRun]:
    """Train and evaluate the candidates in turn, and return their rows by name."""
    entries: dict[str, ComparedRun] = {}
    with context.bar(OPTIONS[field], len(candidates)) as bar:
        for number, candidate in enumerate(candidates, 1):
            context.say(f"{number} of {len(candidates)}: {candidate.name}")
            try:
                entry = _train(candidate, plan, device, context)
            except KeyboardInterrupt:
                break
            except Exception as error:
                size = candidate.data.read.size
                entry = failed_entry(candidate.name, candidate.settings, size, error, context)
                say_failure(entry, context)
            entries[candidate.name] = entry
            bar.update()
            if entry.run:
                context.say(_describe(entry))
    for candidate in candidates:
        if candidate.name not in entries:
            entries[candidate.name] = candidate.entry(error=INTERRUPTED)
    return entries


def _train(
    candidate: Candidate, plan: _Plan, device: torch.device, context: RunContext
) -> ComparedRun:
    """Train and evaluate one network, and measure its cost."""
    seconds: list[float] = []
    cost = NetworkCost(None, None)

    def on_trained(embedding: Path, training_seconds: float) -> None:
        nonlocal cost
        if not seconds:  # the networks of all folds cost the same
            cost = measure_cost(embedding, device=device.type, threads=torch.get_num_threads())
            if cost.problem:
                problem = f"speed and memory could not be measured ({cost.problem})"
                context.say(f"warning: {candidate.name}: {problem}")
        seconds.append(training_seconds)

    settings = (candidate.settings, plan.classify_settings)
    pretrained = load_weights(candidate.settings)
    if candidate.settings.trunk == "frozen":
        # Before the clock starts: the cache may have the features from an earlier run.
        train = candidate.data.embedding_train
        network = to_device(new_network(train, candidate.settings, pretrained), device)
        add_trunk_features(candidate.data, network, device, context)
    quiet = FoldContext(**vars(context))
    run: EvaluatedRun
    if plan.folds:
        pool, _ = pool_splits(candidate.data, replace(context, quiet=True))
        run = cross_validate(
            pool,
            plan.folds,
            pretrained,
            settings,
            quiet,
            repeats=plan.repeats,
            notes=plan.notes,
            name=candidate.name,
            on_trained=on_trained,
        )
        warn_of_collapse(run.folds, context, name=candidate.name)
    else:
        run = run_fold(
            candidate.name,
            candidate.data,
            pretrained,
            settings,
            quiet,
            within=True,
            on_trained=on_trained,
        )
        warn_of_collapse([run], context, name=candidate.name)
    if candidate.reason:
        run = replace(run, embedding={**run.embedding, "network_choice": candidate.reason})
    return candidate.entry(
        run=run,
        training_seconds=sum(seconds),
        seconds_per_image=cost.seconds_per_image,
        memory=cost.memory,
    )


def _describe(entry: ComparedRun) -> str:
    accuracy = entry.score(MAIN)
    text = f"{entry.name}: classification accuracy {format_percent(accuracy.value)}"
    if entry.training_seconds is not None:
        text += f", trained in {entry.training_seconds:,.0f} s"
    return text


def _raise_if_unfinished(comparison: Comparison, out: Path) -> None:
    """Raise an error if nothing can be compared, or after an interrupt."""
    nouns = comparison.nouns[1]
    if comparison.interrupted:
        if not comparison.runs:
            raise KeyboardInterrupt("interrupted; nothing was finished")
        finished = f"{len(comparison.runs)} of {len(comparison.entries)} {nouns}"
        raise KeyboardInterrupt(f"interrupted; {out} has the report on {finished}")
    if not comparison.runs:
        reasons = "; ".join(f"{entry.name}: {entry.error}" for entry in comparison.entries)
        raise PipelineError(f"none of the {nouns} could be evaluated: {reasons}")
