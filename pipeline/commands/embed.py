"""`pipeline embed`: train the embedding and save it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint import save_embedding
from pipeline.commands.inputs import EmbedInputs, add_trunk_features, prepare_inputs, source_files
from pipeline.context import RunContext
from pipeline.data.dataset import Dataset, describe_unseen
from pipeline.device import choose_precision, package_versions, restore_torch_settings
from pipeline.identity import describe_differences, embedding_identity, refuse_to_replace
from pipeline.monitor import TrainingMonitor, embedding_files, state_path
from pipeline.network_choice import choose_network
from pipeline.numbers import count_of
from pipeline.outputs import reserve_outputs
from pipeline.processes import assert_equal_across_ranks, main_process_only
from pipeline.signals import stop_signals
from pipeline.training_state import load_state
from stages.distributed import rank_and_world_size
from stages.embedding.sampler import BatchPlan
from stages.embedding.schedule import plan_training
from stages.embedding.train import TrainedEmbedding, train_embedding
from stages.errors import CheckpointError
from stages.network.embedding_net import EmbeddingNet, to_device
from stages.network.initialization import new_network
from stages.records import TrainingState
from stages.settings import EmbedSettings, ReadSettings

# The training state to start from, if any, and the images per second of each epoch so far.
SavedState = tuple[TrainingState | None, list[float | None]]


@dataclass(frozen=True, eq=False)
class _Training:
    """A training run whose inputs and output path have been checked.

    Attributes:
        inputs: Images and initial weights.
        settings: Settings of stage one.
        identity: Identity of the run, as in the checkpoint's record.
        device: Device to train on.
        precision: Data type of the convolutions in training.
        network: Initial network. None: training builds it.
        plan: Size and number of batches.
        epochs: Number of epochs.
        processes: Number of processes that share each batch.
    """

    inputs: EmbedInputs
    settings: EmbedSettings
    identity: dict[str, Any]
    device: torch.device
    precision: torch.dtype
    network: EmbeddingNet | None
    plan: BatchPlan
    epochs: int
    processes: int

    @property
    def state_identity(self) -> dict[str, Any]:
        """Identity of the run in its saved state."""
        return {
            **self.identity,
            "precision": str(self.precision),
            "processes": self.processes,
        }

    @property
    def batch_size(self) -> int:
        """Images per batch."""
        return self.plan.classes_per_batch * self.plan.images_per_class


@restore_torch_settings()
def embed(
    source: str | Dataset | EmbedInputs,
    read: ReadSettings,
    settings: EmbedSettings,
    *,
    out: Path,
    context: RunContext,
    force: bool = False,
    resume: bool = False,
    tensorboard: Path | None = None,
) -> Path:
    """Train the embedding on the training split and save it: stage one.

    The history (one row per epoch) and the training state are written next to the checkpoint.

    Args:
        source: Source of the images, a data set that is already read, or inputs from
            :func:`pipeline.commands.inputs.prepare_inputs`.
        read: How to read and split the source. Ignored if the source is already read.
        settings: Settings of stage one.
        out: Checkpoint to write.
        context: Device, output and cache options.
        force: Replace a checkpoint or training state of another run.
        resume: Resume from the saved state. Without a saved state training starts from the
            beginning; a finished run is left unchanged.
        tensorboard: Folder for TensorBoard's event files.

    Returns:
        The path ``out``.

    Raises:
        CheckpointError: If ``out`` holds a run on another source or with other settings, or its
            state is that of an unfinished run.
        KeyboardInterrupt: After a signal, once the training state is saved.

    Example:
        >>> embed(
        ...     "digits", ReadSettings(), EmbedSettings(epochs=2),
        ...     out=Path("embedding.safetensors"), context=RunContext(),
        ... )  # doctest: +SKIP
        PosixPath('embedding.safetensors')
    """
    context.start()
    folders = [tensorboard] if tensorboard else []
    inputs = source_files(source)
    with reserve_outputs([out, *embedding_files(out)], folders=folders, inputs=inputs):
        training = _prepare(source, read, settings, out=out, context=context, force=force)
        saved = load_saved_state(
            state_path(out), training.state_identity, resume=resume, force=force
        )
        state = saved[0]
        # A checkpoint that is there is of this run: that of another run has been refused.
        is_done = state is None or state.step == state.steps
        is_finished = resume and not force and out.exists() and is_done
        # Ranks that start at different steps would wait for each other for ever.
        assert_equal_across_ranks(
            str(state_path(out)),
            "finished" if is_finished else f"step {state.step if state else 0}",
            "copy the files of the first machine to the others, or use a shared folder",
        )
        if is_finished:
            context.say(f"{out}: finished; nothing to resume")
            return out
        _announce(training, context)
        trained, monitor = _train(
            training, saved, out=out, context=context, tensorboard=tensorboard
        )
        if monitor.stopped:
            raise KeyboardInterrupt(
                f"interrupted; the same command with --resume continues from {state_path(out)}"
            )
        main_process_only(lambda: _save(out, training, trained, monitor, context))
    return out


def _prepare(
    source: str | Dataset | EmbedInputs,
    read: ReadSettings,
    settings: EmbedSettings,
    *,
    out: Path,
    context: RunContext,
    force: bool,
) -> _Training:
    """Load the inputs, and check them before anything is trained."""
    device = context.start()
    read, settings, reason = choose_network(source, read, settings, context)
    inputs = prepare_inputs(source, read, settings, context)
    inputs = replace(inputs, network_choice=reason or inputs.network_choice)
    train, pretrained = inputs.data.embedding_train, inputs.pretrained
    identity = embedding_identity(inputs.data, settings, pretrained)
    refuse_to_replace(out, "embedding", identity, force)
    for warning in inputs.warnings:
        context.say(f"warning: {warning}; `pipeline data` lists them")
    plan, epochs = plan_training(train.labels, settings)
    network = None
    if pretrained or settings.trunk == "frozen" or settings.from_library:
        network = to_device(new_network(train, settings, pretrained), device)
    return _Training(
        inputs=inputs,
        settings=settings,
        identity=identity,
        device=device,
        precision=choose_precision(context.precision, device, network),
        network=network,
        plan=plan,
        epochs=epochs,
        processes=rank_and_world_size()[1],
    )


def load_saved_state(
    path: Path, identity: Mapping[str, Any], *, resume: bool, force: bool
) -> SavedState:
    """Load the training state to resume from.

    Args:
        path: File of the state, which may be missing.
        identity: Identity of the run that would resume.
        resume: Resume the run.
        force: Without ``resume``, start from the beginning even if the run is unfinished.

    Returns:
        The state, or None to start from the beginning, and the images per second of each epoch
        so far.

    Raises:
        CheckpointError: If the file is damaged or holds another run; without ``resume``, if it
            holds an unfinished run.
    """
    if not path.exists() or (force and not resume):
        return None, []
    state, record = load_state(path)
    if resume:
        if difference := describe_differences(identity, record):
            raise CheckpointError(
                f"{path}: cannot be resumed, it holds {difference}; use the settings of that run, "
                "or start from the beginning with --force"
            )
        return state, record["speeds"]
    if not record["finished"]:
        raise CheckpointError(
            f"{path}: holds an unfinished run, at step {state.step} of {state.steps}; "
            "resume with --resume, or start from the beginning with --force"
        )
    return None, []


def _announce(training: _Training, context: RunContext) -> None:
    """Say what is trained, on which images and how."""
    data, plan, processes = training.inputs.data, training.plan, training.processes
    counts, size = split_sizes(data), data.read.size
    colour = "grey" if data.read.channels == 1 else "colour"
    precision = str(training.precision).removeprefix("torch.")
    context.say(
        f"{data.source}: {len(data.train.classes)} classes; {counts['train']:,} training, "
        f"{counts['val']:,} validation, {counts['test']:,} test images of {size} x {size}, {colour}"
    )
    for line in describe_unseen(data):
        context.say(line)
    context.say(
        f"{count_of(training.epochs, 'epoch')} of {plan.per_epoch} batches, "
        f"{plan.classes_per_batch} classes x {plan.images_per_class} images, "
        f"on {training.device.type} in {precision}"
        + (f", {processes} processes" if processes > 1 else "")
    )
    if data.validation is None and data.held_out is None:
        context.say("note: there are no validation images; the last epoch is used")
    if training.settings.trunk == "frozen" and not training.inputs.pretrained:
        context.say(
            "warning: the trunk is frozen and its weights are random; "
            "use --weights, or --trunk tune"
        )


def split_sizes(data: Dataset) -> dict[str, int]:
    """Return the number of images per split. Images of unseen classes are not counted."""
    splits = {"train": data.train, "val": data.validation, "test": data.test}
    return {name: len(split) if split else 0 for name, split in splits.items()}


def _train(
    training: _Training,
    saved: SavedState,
    *,
    out: Path,
    context: RunContext,
    tensorboard: Path | None,
) -> tuple[TrainedEmbedding, TrainingMonitor]:
    """Train the network under a progress bar, stoppable by signals."""
    state, speeds = saved
    data, network = training.inputs.data, training.network
    if network:
        data = add_trunk_features(data, network, training.device, context)
    if state:
        context.say(f"resuming after step {state.step} of {state.steps}")
    bar = context.bar(
        "training",
        training.epochs * training.plan.per_epoch * training.batch_size,
        initial=state.step * training.batch_size if state else 0,
        unit=" images",
    )
    with bar, stop_signals(context.say) as stop:
        monitor = TrainingMonitor(
            out,
            training.state_identity,
            epochs=training.epochs,
            bar=bar,
            say=context.say,
            stop=stop,
            speeds=speeds,
            tensorboard=tensorboard,
            has_validation=data.validation is not None or data.held_out is not None,
        )
        try:
            trained = train_embedding(
                data.embedding_train,
                data.validation,
                training.settings,
                device=training.device,
                precision=training.precision,
                network=network,
                gallery=data.train,
                held_out=data.held_out,
                state=state,
                on_step=monitor.on_step,
                on_epoch=monitor.on_epoch,
            )
        except CheckpointError as error:
            raise CheckpointError(
                f"{state_path(out)}: does not fit this run ({error}); start from the beginning "
                "with --force"
            ) from error
    return trained, monitor


def _save(
    out: Path,
    training: _Training,
    trained: TrainedEmbedding,
    monitor: TrainingMonitor,
    context: RunContext,
) -> None:
    """Write the checkpoint with its record, and the history."""
    data, pretrained = training.inputs.data, training.inputs.pretrained
    weights = pretrained and {"origin": pretrained.origin, "digest": pretrained.digest}
    record = {
        **training.identity,
        "network": trained.network.config,
        "weights": weights,
        "classes": data.train.classes,
        "source": data.source,
        "root": str(context.root.resolve()) if context.root else None,
        "counts": split_sizes(data),
        "unseen": data.unseen and {"classes": data.unseen.classes, "images": len(data.unseen)},
        "held_out_classes": data.held_out_classes,
        "skipped": [skipped._asdict() for skipped in data.skipped],
        "epoch": trained.epoch,
        "history": [asdict(log) for log in trained.history],
        "precision": str(training.precision).removeprefix("torch."),
        "processes": training.processes,
        "versions": package_versions(),
    }
    if training.inputs.network_choice:
        record["network_choice"] = training.inputs.network_choice
    save_embedding(out, trained.network, record)
    monitor.write_history(trained.history)
