"""Stage one: train the embedding with triplet loss, or with a loss of a library."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from stages.distributed import (
    all_gather_rows,
    all_reduce_gradients,
    broadcast_gradients,
    rank_slice,
)
from stages.embedding.best_epoch import epoch_score, is_kept
from stages.embedding.inputs import resident_split, training_input
from stages.embedding.library_loss import (
    LibraryBatchLoss,
    library_batch_loss,
    loss_parameter_groups,
    new_library_loss,
)
from stages.embedding.loss import TripletLoss, triplet_loss
from stages.embedding.muon import Muon
from stages.embedding.sampler import PKSampler
from stages.embedding.schedule import (
    augmentation_strength,
    is_validated,
    learning_rate_factor,
    plan_training,
)
from stages.embedding.training_run import TrainingRun
from stages.embedding.validation import (
    GALLERY,
    GALLERY_PER_CLASS,
    QUERIES,
    evenly_spaced_subset,
    gallery_subset,
    validate,
    validate_held_out,
)
from stages.gpu import copy_to
from stages.network.embedding_net import EmbeddingNet, to_device
from stages.network.initialization import fit_projection, new_network
from stages.network.whole_batch import as_whole_batch
from stages.records import EpochLog, KeptEpoch, Split, TrainingState
from stages.settings import EmbedSettings

WEIGHT_DECAY = 1e-2

OnEpoch = Callable[[EpochLog], None]


class Step(NamedTuple):
    """Report of one optimiser step.

    Attributes:
        done: Steps done so far, over all epochs.
        last: True if training ends with this step.
        loss: Loss of the batch, a scalar. To read its value, or that of the active share, makes
            the program wait for the device.
        active_share: Share of the batch's triplets with a loss above 0, a scalar; None for a
            library's loss.
        images: Images in the batch, over all ranks.
        state: Function that returns the state after this step.
    """

    done: int
    last: bool
    loss: Tensor
    active_share: Tensor | None
    images: int
    state: Callable[[], TrainingState]


OnStep = Callable[[Step], bool | None]


class TrainedEmbedding(NamedTuple):
    """Result of :func:`train_embedding`.

    Attributes:
        network: Network with the weights of the kept epoch, in evaluation mode.
        epoch: Number of the kept epoch, from 1; 0 if no epoch was finished.
        history: One log per epoch.
    """

    network: EmbeddingNet
    epoch: int
    history: tuple[EpochLog, ...]


def train_embedding(
    train: Split,
    validation: Split | None,
    settings: EmbedSettings,
    *,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    network: EmbeddingNet | None = None,
    gallery: Split | None = None,
    held_out: Split | None = None,
    state: TrainingState | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainedEmbedding:
    """Train an embedding network on batches of P classes with K images each.

    The result has the weights of the latest epoch that is not clearly worse on validation than the
    best one, see :func:`stages.embedding.best_epoch.is_kept`; without validation images and
    held-out classes, of the last epoch.

    With several ranks, each embeds its share of every batch, computes the loss of the whole batch
    and takes the same step, that of a single process.

    Args:
        train: Training images.
        validation: Validation images, or None.
        settings: Settings of stage one.
        device: Device to train on.
        precision: Data type of the forward pass under autocast. Evaluation is always float32.
        network: Initial network. None: from
            :func:`stages.network.initialization.new_network`.
        gallery: Images that kNN searches in validation. None: ``train``.
        held_out: Images of classes that ``train`` lacks, to choose the epoch by recall@1, or None.
        state: State to resume from. The resumed run equals an uninterrupted one. None: start from
            ``settings.seed``.
        on_step: Called after each step, and after ``on_epoch`` if the step ends an epoch. Training
            stops if it returns True.
        on_epoch: Called after each epoch.

    Returns:
        The trained network, the kept epoch and the history.

    Raises:
        SettingsError: If the batches cannot be formed or divided among ranks, or the loss is no
            longer finite.
        CheckpointError: If ``state`` does not fit the run.

    Example:
        >>> images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8)
        >>> split = Split(
        ...     store=images,
        ...     rows=torch.arange(8),
        ...     labels=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
        ...     classes=("cat", "dog"),
        ...     ids=tuple("abcdefgh"),
        ... )
        >>> settings = EmbedSettings(dim=4, epochs=2)
        >>> trained = train_embedding(split, None, settings, device=torch.device("cpu"))
        >>> trained.epoch, len(trained.history), trained.network(images).shape
        (2, 2, torch.Size([8, 4]))
    """
    run = _start(train, settings, network, device, precision)
    if state is not None:
        run.restore(state)
    gallery = gallery_subset(gallery or train, GALLERY, GALLERY_PER_CLASS)
    queries = validation and evenly_spaced_subset(validation, QUERIES)
    held_out = held_out and evenly_spaced_subset(held_out, QUERIES)
    for batch in run.batches():
        result = _forward(run, batch)
        run.add(result)
        run.optimiser.zero_grad(set_to_none=True)
        result.loss.backward()
        all_reduce_gradients(run.network)
        if run.library_loss:  # every rank has computed the whole gradient of its weights
            broadcast_gradients(run.library_loss)
        _set_learning_rates(run)
        run.optimiser.step()
        run.step += 1
        if run.step % len(run.sampler) == 0:
            log = _end_of_epoch(run, gallery, queries, held_out)
            if on_epoch:
                on_epoch(log)
        report = Step(
            done=run.step,
            last=run.finished,
            loss=result.loss.detach(),
            active_share=result.active_share,
            images=len(batch),
            state=run.state,
        )
        if on_step and on_step(report):
            break
    if run.kept is not None:
        run.network.load_state_dict(run.kept.network)
    run.network.eval()
    return TrainedEmbedding(run.network, run.kept.epoch if run.kept else 0, run.history)


def _start(
    train: Split,
    settings: EmbedSettings,
    network: EmbeddingNet | None,
    device: torch.device,
    precision: torch.dtype,
) -> TrainingRun:
    torch.manual_seed(settings.seed)
    plan, epochs = plan_training(train.labels, settings)
    own = rank_slice(plan.classes_per_batch, plan.images_per_class)
    network = to_device(network or new_network(train, settings), device)
    fit_projection(network, train, device=device)
    library_loss = new_library_loss(settings, train.labels.unique(), plan)
    library_loss = library_loss and library_loss.to(device)
    groups = network.parameter_groups(settings.lr)
    groups += loss_parameter_groups(library_loss, settings.lr)
    return TrainingRun(
        train=resident_split(train, network, device),
        settings=settings,
        device=device,
        precision=precision,
        network=network,
        library_loss=library_loss,
        peak_rates=[group["lr"] for group in groups],
        optimiser=Muon(groups, weight_decay=WEIGHT_DECAY),
        sampler=PKSampler(train.labels, plan, seed=settings.seed),
        own=own,
        epochs=epochs,
    )


def _forward(run: TrainingRun, batch: Tensor) -> TripletLoss | LibraryBatchLoss:
    """Embed this rank's images of a batch and compute the loss of the whole batch."""
    settings, device = run.settings, run.device
    strength = 0.0
    if settings.augment:
        strength = augmentation_strength(run.step, run.steps, len(run.train))
    inputs = training_input(
        run.network, run.train, batch, run.own, strength=strength, device=device
    )
    mixed = run.precision != torch.float32
    if device.type == "cuda":  # for dropout; the state of a GPU's generator is not saved
        torch.cuda.manual_seed(int(torch.randint(2**62, ())))
    with (
        as_whole_batch(run.own),
        torch.autocast(device.type, dtype=run.precision, enabled=mixed),
    ):
        vectors = run.network(inputs)
    vectors, labels = all_gather_rows(vectors), run.train.labels[batch]
    if run.library_loss:
        return library_batch_loss(run.library_loss, vectors, copy_to(labels, device))
    return triplet_loss(
        vectors,
        labels,
        mining=settings.mining,
        margin=settings.margin,
        distance=settings.distance,
        ids=batch,
    )


def _set_learning_rates(run: TrainingRun) -> None:
    """Set the learning rate of each parameter group for the next step."""
    library = run.settings.from_library
    factor = learning_rate_factor(run.step, run.steps, from_library=library)
    for group, peak_rate in zip(run.optimiser.param_groups, run.peak_rates, strict=True):
        group["lr"] = peak_rate * factor


def _end_of_epoch(
    run: TrainingRun, gallery: Split, queries: Split | None, held_out: Split | None
) -> EpochLog:
    """Validate the network, log the epoch, and keep its weights unless they are clearly worse."""
    epoch = run.step // len(run.sampler)
    validated = is_validated(epoch, run.epochs)
    val_knn, val_triplet = validate(
        run.network, gallery, queries if validated else None, device=run.device
    )
    val_recall = validate_held_out(run.network, held_out if validated else None, device=run.device)
    loss, active_share, mean_distance = (float(total) / len(run.sampler) for total in run.sums)
    log = EpochLog(
        epoch=epoch,
        loss=loss,
        active_share=None if run.library_loss else active_share,
        mean_distance=mean_distance,
        val_knn=val_knn,
        val_triplet=val_triplet,
        val_recall=val_recall,
    )
    run.history = (*run.history, log)
    run.sums = (0.0, 0.0, 0.0)
    if validated:
        score = epoch_score(log)
        highest = max(score, run.kept.highest) if run.kept else score
        if is_kept(score, highest, len(held_out or queries or ())):
            run.kept = KeptEpoch(highest, epoch, copy.deepcopy(run.network.state_dict()))
    return log
