"""Stage one: train the embedding with triplet loss."""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.augment import AFFINE, PHOTO, random_affine, random_photo
from stages.errors import PipelineError
from stages.loss import triplet_loss
from stages.metrics import knn, measure_split, triplet_accuracy, usual_neighbours
from stages.network import Backbone, EmbeddingNet, Pretrained, embed_split, has_features, pixel_statistics, to_device
from stages.processes import gather_rows, own_chance, own_part, place, share_buffers, sum_gradients
from stages.records import EpochLog, Split, TrainingState
from stages.sampler import BATCH, BatchPlan, PKSampler, plan_batches
from stages.settings import EmbedSettings

VALIDATIONS = 10  # in a run; where epochs are short, one each would take half as long as training
QUERIES, GALLERY = 2000, 1000  # validation images at most, and training images that their kNN searches
WEIGHT_DECAY = 1e-2
WARM_UP = 0.2  # of all steps
EPOCHS, STEPS = 20, 400  # each at least
TUNED_EPOCHS, TUNED_STEPS = 10, 50  # the same where a pretrained trunk is trained
LARGE_BATCH = 32  # images, where a library's trunk is trained

# (kNN accuracy, triplet accuracy), the epoch, its weights
Best = tuple[tuple[float, float], int, dict[str, Tensor]]
OnEpoch = Callable[[EpochLog], None]


class Step(NamedTuple):
    """One optimiser step. done: how many so far. last: none will follow. images: of its batch, in all processes.

    state: makes the state after it.
    """

    done: int
    last: bool
    loss: float
    active_share: float
    images: int
    state: Callable[[], TrainingState]


OnStep = Callable[[Step], bool | None]


class TrainedEmbedding(NamedTuple):
    """network: with the weights of `epoch`, the best that validation saw. history: one log an epoch."""

    network: EmbeddingNet
    epoch: int
    history: tuple[EpochLog, ...]


def plan_training(labels: Tensor, settings: EmbedSettings) -> tuple[BatchPlan, int]:
    """The batches and how many epochs, as far as the settings leave them open. labels: int64 (N,), of the training part.

    20 epochs, or as many as make 400 steps; three times that for `conv-deep`. A library's trunk that is trained takes batches
    of 32 images, or it would need more memory than most machines have; a pretrained one comes far in half the epochs.
    Raises SettingsError as `plan_batches` does.
    """
    tuned = settings.from_library and settings.trunk != "frozen"
    chosen = settings.classes_per_batch, settings.images_per_class
    plan = plan_batches(labels, classes_per_batch=chosen[0], images_per_class=chosen[1], batch=LARGE_BATCH if tuned else BATCH)
    extra = -plan.images_per_class % place()[1]
    if extra and chosen[1] is None:  # so that the processes can share a batch
        plan = plan_batches(labels, classes_per_batch=plan.classes_per_batch, images_per_class=plan.images_per_class + extra)
    epochs, steps = (TUNED_EPOCHS, TUNED_STEPS) if tuned and settings.weights != "none" else (EPOCHS, STEPS)
    patience = 3 if settings.network == "conv-deep" else 1
    return plan, settings.epochs or patience * max(epochs, math.ceil(steps / plan.per_epoch))


def is_validated(epoch: int, epochs: int) -> bool:
    """Ten epochs of a run, evenly spaced, and the last; all of a run of fewer than 20."""
    return epoch % max(1, epochs // VALIDATIONS) == 0 or epoch == epochs


def rate_factor(done: int, steps: int) -> float:
    """The learning rate after `done` of all steps as a share of its peak: up in a line, then down along a cosine to 0."""
    warm = max(1, round(WARM_UP * steps))
    if done < warm:
        return (done + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, steps - warm)))


def train_embedding(
    train: Split,
    validation: Split | None,
    settings: EmbedSettings,
    *,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    network: EmbeddingNet | None = None,
    state: TrainingState | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainedEmbedding:
    """Train a network on P x K batches; of the epochs that are validated the one with the best kNN accuracy wins.

    Among epochs with equal kNN accuracy the higher triplet accuracy decides, then the later epoch. Without validation
    images the last epoch is taken.

    network: as training starts it; None: `new_network`. state: where to go on; None starts anew, from `settings.seed`.
    on_epoch: called after each epoch. on_step: called after each step (and after `on_epoch`); a true return stops training
    there.

    Where a process group is open, each process embeds its share of every batch, mines the whole of it, and all take the
    same step; BatchNorm spans the processes on CUDA only.
    Raises SettingsError if the batches can't be formed or shared, PipelineError if the loss stops being finite.
    """
    torch.manual_seed(settings.seed)
    plan, epochs = plan_training(train.labels, settings)
    own = own_part(plan.classes_per_batch, plan.images_per_class)
    sampler = PKSampler(train.labels, plan, seed=settings.seed)
    steps = epochs * len(sampler)
    network = to_device(network or new_network(train, settings), device)
    if place()[1] > 1 and device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    groups = network.parameter_groups(settings.lr)
    rates = [group["lr"] for group in groups]
    optimiser = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=True)
    step, sums = 0, (0.0, 0.0, 0.0)
    history: tuple[EpochLog, ...] = ()
    best: Best | None = None
    if state is not None:
        network.load_state_dict(state.network)
        optimiser.load_state_dict(state.optimiser)
        sampler.load_state_dict(state.sampler)
        torch.set_rng_state(state.generator)
        step, history, sums, best = state.step, state.history, state.sums, state.best

    def current_state() -> TrainingState:
        return TrainingState(
            step=step,
            steps=steps,
            network=network.state_dict(),
            optimiser=optimiser.state_dict(),
            sampler=sampler.state_dict(),
            generator=torch.get_rng_state(),
            history=history,
            sums=sums,
            best=best,
        )

    gallery, queries = bounded(train, GALLERY), validation and bounded(validation, QUERIES)
    stopped = _lost_patience(settings, history, best)
    while step < steps and not stopped:
        network.train()
        for batch in sampler:
            pixels = training_input(network, train, batch, own, augment=settings.augment, device=device)
            with own_chance(settings.seed + step), torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
                vectors = network(pixels)
            result = triplet_loss(
                gather_rows(vectors),
                train.labels[batch].to(device),
                mining=settings.mining,
                margin=settings.margin,
                distance=settings.distance,
                ids=batch.to(device),
            )
            loss = result.loss.item()
            if not math.isfinite(loss):
                raise PipelineError(f"--lr {settings.lr}: the loss is {loss} at step {step + 1}; use a lower rate")
            optimiser.zero_grad(set_to_none=True)
            result.loss.backward()
            sum_gradients(network)
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * rate_factor(step, steps)
            optimiser.step()
            step += 1
            sums = (sums[0] + loss, sums[1] + result.active_share, sums[2] + result.mean_distance)
            if step % len(sampler) == 0:
                share_buffers(network)
                epoch = step // len(sampler)
                validated = is_validated(epoch, epochs)
                score = validate(network, gallery, queries if validated else None, device=device)
                mean_loss, active, distance = (value / len(sampler) for value in sums)
                log = EpochLog(epoch, mean_loss, active, distance, *score)
                history, sums = (*history, log), (0.0, 0.0, 0.0)
                key = (score[0] or 0.0, score[1] or 0.0)
                if validated and (best is None or key >= best[0]):
                    best = key, epoch, copy.deepcopy(network.state_dict())
                stopped = _lost_patience(settings, history, best)
                if on_epoch:
                    on_epoch(log)
            last = stopped or step == steps
            if on_step and on_step(Step(step, last, loss, result.active_share, len(batch), current_state)):
                stopped = True
            if stopped:
                break
    if best is not None:
        network.load_state_dict(best[2])
    network.eval()
    return TrainedEmbedding(network, best[1] if best else 0, history)


def _lost_patience(settings: EmbedSettings, history: tuple[EpochLog, ...], best: Best | None) -> bool:
    if settings.patience is None or best is None or history[-1].val_knn is None:
        return False
    return history[-1].epoch - best[1] >= settings.patience


def training_input(network: EmbeddingNet, train: Split, batch: Tensor, own: slice, *, augment: bool, device: torch.device) -> Tensor:
    """What the network sees of a process's part of a batch: changed images, or features of one of their fixed views where its
    trunk has made them. Chance is drawn for the whole batch, so that several processes see what a single one would.

    batch: int64 (B,), positions in `train`; own: the b of them that are this process's. Returns uint8 (not augmented) or float32
    (b, C, S, S) in [0, 255], or features, float32 (b, F), on the device.
    """
    if train.features and has_features(network, train):
        views = torch.randint(train.features.values.shape[1] if augment else 1, (len(batch),))[own]
        return train.features.values[train.rows[batch[own]], views].to(device)
    pixels = train.take(batch[own]).to(device)
    if not augment:
        return pixels
    photos = isinstance(network.trunk, Backbone) and pixels.shape[1] == 3
    change, numbers = (random_photo, PHOTO) if photos else (random_affine, AFFINE)
    return change(pixels, torch.rand(numbers, len(batch))[:, own])


def new_network(train: Split, settings: EmbedSettings, pretrained: Pretrained | None = None) -> EmbeddingNet:
    """The network as training starts it; it is the report's "untrained" baseline too.

    Weights are drawn from `settings.seed` and pixel statistics taken from the training part, save what is `pretrained`.
    """
    torch.manual_seed(settings.seed)
    mean, std = (pretrained.mean, pretrained.std) if pretrained else pixel_statistics(train)
    network = EmbeddingNet(
        train.store.shape[1],
        train.store.shape[-1],
        settings.dim,
        name=settings.network,
        trunk=settings.trunk,
        pretrained=pretrained is not None,
        mean=mean,
        std=std,
    )
    if pretrained:
        network.load_trunk(pretrained.tensors, where=f"--weights {pretrained.origin}")
    return network


def bounded(split: Split, most: int) -> Split:
    """The split if it has no more than `most` images, else evenly spaced ones of each class."""
    if len(split) <= most:
        return split
    by_class = split.labels.argsort(stable=True)
    return split.select(by_class[torch.linspace(0, len(split) - 1, most).round().long()])


def validate(network: nn.Module, gallery: Split, validation: Split | None, *, device: torch.device) -> tuple[float | None, float | None]:
    """kNN accuracy of the validation images in the gallery, and triplet accuracy among them."""
    if validation is None:
        return None, None
    queries, known = (embed_split(network, part, device=device) for part in (validation, gallery))
    votes = knn(queries.vectors, known.vectors, known.labels, k=usual_neighbours(known.labels)).labels
    triplets = triplet_accuracy(measure_split(queries.vectors, queries.labels))[0]
    return float((votes == validation.labels.numpy()).mean()), None if math.isnan(triplets) else triplets
