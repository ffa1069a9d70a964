"""`pipeline embed`: train the embedding and save it."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.checkpoint import save_embedding
from pipeline.commands.inputs import add_trunk_features, load_data
from pipeline.context import RunContext
from pipeline.data.audit import audit_source, audit_warnings
from pipeline.data.dataset import Dataset
from pipeline.device import choose_precision, package_versions
from pipeline.files import check_writable
from pipeline.identity import describe_differences, embedding_identity, refuse_to_replace
from pipeline.monitor import TrainingMonitor, state_path
from pipeline.processes import assert_equal_across_ranks, main_process_only
from pipeline.signals import stop_signals
from pipeline.training_state import load_state
from pipeline.weights import load_weights, with_pretrained_size
from stages.distributed import rank_and_world_size
from stages.embedding.schedule import plan_training
from stages.embedding.train import train_embedding
from stages.errors import CheckpointError
from stages.network.embedding_net import to_device
from stages.network.initialization import new_network
from stages.records import TrainingState
from stages.settings import EmbedSettings, ReadSettings


def embed(
    source: str | Dataset,
    read: ReadSettings,
    settings: EmbedSettings,
    *,
    out: Path,
    context: RunContext,
    force: bool = False,
    resume: bool = False,
    tensorboard: Path | None = None,
) -> Path:
    """Stage one: train the embedding on the source's training part and save it at `out`; its epochs and state go beside it.

    resume: go on from the saved state; start if there is none; do nothing if the run is finished.
    Raises CheckpointError if `out` holds a run of another source or other settings, or its state an unfinished run that is not
    to be resumed, and `force` is off; KeyboardInterrupt, the state being saved, if a signal has asked to stop.
    """
    device = context.start()
    pretrained = load_weights(settings)
    data = load_data(source, with_pretrained_size(read, settings), context)
    assert_equal_across_ranks(data.source, data.fingerprint)
    identity = embedding_identity(data, settings, pretrained)
    refuse_to_replace(out, "embedding", identity, force)
    for warning in audit_warnings(audit_source(data.origin, dataset=data)):
        context.say(f"warning: {warning}; `pipeline data` lists them")
    plan, epochs = plan_training(data.train.labels, settings)
    check_writable(out.parent)
    network = None
    if pretrained or settings.trunk == "frozen" or settings.from_library:
        network = to_device(new_network(data.train, settings, pretrained), device)
    precision = choose_precision(context.precision, device, network)
    processes = rank_and_world_size()[1]
    resumable = identity | {"precision": str(precision), "processes": processes}
    state: TrainingState | None = None
    speeds: list[float | None] = []
    if state_path(out).exists():
        state, speeds = load_saved_state(state_path(out), resumable, resume=resume, force=force)
    elif (
        resume and out.exists() and not force
    ):  # of the same source and settings, or it would have been refused
        context.say(f"{out}: finished; nothing to resume")
        return out
    counts = {
        name: len(part) if part else 0
        for name, part in (("train", data.train), ("val", data.validation), ("test", data.test))
    }
    batch = plan.classes_per_batch * plan.images_per_class
    context.say(
        f"{data.source}: {len(data.train.classes)} classes, {counts['train']} training, {counts['val']} validation and "
        f"{counts['test']} test images of {data.read.size} x {data.read.size}, {'grey' if data.read.channels == 1 else 'colour'}\n"
        f"{epochs} epochs of {plan.per_epoch} batches, {plan.classes_per_batch} classes x {plan.images_per_class} images, "
        f"on {device.type} in {str(precision).removeprefix('torch.')}"
        + (f", {processes} processes" if processes > 1 else "")
    )
    if data.validation is None:
        context.say("note: there is no validation image; the last epoch is taken")
    if processes > 1 and device.type != "cuda":
        context.say(
            "note: BatchNorm in training sees each process's share of the batch; spanning processes takes CUDA"
        )
    if settings.trunk == "frozen" and not pretrained:
        context.say(
            "warning: the trunk is frozen and its weights are random; give --weights, or --trunk tune"
        )
    if network:
        data = add_trunk_features(data, network, device, context)
    if state:
        context.say(f"going on after step {state.step} of {state.steps}")
    with (
        context.bar(
            "training",
            epochs * plan.per_epoch * batch,
            initial=state.step * batch if state else 0,
            unit=" images",
        ) as bar,
        stop_signals(context.say) as stop,
    ):
        watch = TrainingMonitor(
            out,
            resumable,
            epochs=epochs,
            bar=bar,
            say=context.say,
            stop=stop,
            speeds=speeds,
            tensorboard=tensorboard,
        )
        trained = train_embedding(
            data.train,
            data.validation,
            settings,
            device=device,
            precision=precision,
            network=network,
            state=state,
            on_step=watch.on_step,
            on_epoch=watch.on_epoch,
        )
    if watch.stopped:
        raise KeyboardInterrupt(
            f"interrupted; the same command with --resume goes on from {state_path(out)}"
        )
    record = {
        **identity,
        "network": trained.network.config,
        "weights": pretrained and {"origin": pretrained.origin, "digest": pretrained.digest},
        "classes": data.train.classes,
        "source": data.source,
        "root": str(context.root.resolve()) if context.root else None,
        "counts": counts,
        "skipped": [skipped._asdict() for skipped in data.skipped],
        "epoch": trained.epoch,
        "history": [asdict(log) for log in trained.history],
        "precision": str(precision).removeprefix("torch."),
        "processes": processes,
        "versions": package_versions(),
    }

    def write() -> None:
        save_embedding(out, trained.network, record)
        watch.write_history(trained.history)

    main_process_only(write)
    return out


def load_saved_state(
    path: Path, identity: Mapping[str, Any], *, resume: bool, force: bool
) -> tuple[TrainingState | None, list[float | None]]:
    """The state to go on from, None to start anew, and the speeds that it remembers."""
    if not resume and force:
        return None, []
    state, record = load_state(path)
    if not resume:
        if not record["finished"]:
            raise CheckpointError(
                f"{path}: an unfinished run, at step {state.step} of {state.steps}; go on with --resume, or start anew with --force"
            )
        return None, []
    if differing := describe_differences(identity, record):
        raise CheckpointError(
            f"{path}: can't be resumed: it holds {differing}; give its settings, or start anew with --force"
        )
    return state, record["speeds"]
