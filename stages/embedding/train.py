"""Stage one: train the embedding with triplet loss."""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from stages.distributed import (
    all_gather_rows,
    all_reduce_gradients,
    broadcast_buffers,
    per_rank_rng,
    rank_and_world_size,
    rank_slice,
)
from stages.embedding.inputs import training_input
from stages.embedding.loss import triplet_loss
from stages.embedding.sampler import PKSampler
from stages.embedding.schedule import (
    Best,
    is_validated,
    learning_rate_factor,
    out_of_patience,
    plan_training,
)
from stages.embedding.validation import GALLERY, QUERIES, evenly_spaced_subset, validate
from stages.errors import PipelineError
from stages.network.embedding_net import EmbeddingNet, to_device
from stages.network.initialization import new_network
from stages.records import EpochLog, Split, TrainingState
from stages.settings import EmbedSettings

WEIGHT_DECAY = 1e-2


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
    own = rank_slice(plan.classes_per_batch, plan.images_per_class)
    sampler = PKSampler(train.labels, plan, seed=settings.seed)
    steps = epochs * len(sampler)
    network = to_device(network or new_network(train, settings), device)
    if rank_and_world_size()[1] > 1 and device.type == "cuda":
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

    gallery, queries = (
        evenly_spaced_subset(train, GALLERY),
        validation and evenly_spaced_subset(validation, QUERIES),
    )
    stopped = out_of_patience(settings, history, best)
    while step < steps and not stopped:
        network.train()
        for batch in sampler:
            pixels = training_input(
                network, train, batch, own, augment=settings.augment, device=device
            )
            with (
                per_rank_rng(settings.seed + step),
                torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32),
            ):
                vectors = network(pixels)
            result = triplet_loss(
                all_gather_rows(vectors),
                train.labels[batch].to(device),
                mining=settings.mining,
                margin=settings.margin,
                distance=settings.distance,
                ids=batch.to(device),
            )
            loss = result.loss.item()
            if not math.isfinite(loss):
                raise PipelineError(
                    f"--lr {settings.lr}: the loss is {loss} at step {step + 1}; use a lower rate"
                )
            optimiser.zero_grad(set_to_none=True)
            result.loss.backward()
            all_reduce_gradients(network)
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * learning_rate_factor(step, steps)
            optimiser.step()
            step += 1
            sums = (sums[0] + loss, sums[1] + result.active_share, sums[2] + result.mean_distance)
            if step % len(sampler) == 0:
                broadcast_buffers(network)
                epoch = step // len(sampler)
                validated = is_validated(epoch, epochs)
                score = validate(network, gallery, queries if validated else None, device=device)
                mean_loss, active, distance = (value / len(sampler) for value in sums)
                log = EpochLog(epoch, mean_loss, active, distance, *score)
                history, sums = (*history, log), (0.0, 0.0, 0.0)
                key = (score[0] or 0.0, score[1] or 0.0)
                if validated and (best is None or key >= best[0]):
                    best = key, epoch, copy.deepcopy(network.state_dict())
                stopped = out_of_patience(settings, history, best)
                if on_epoch:
                    on_epoch(log)
            last = stopped or step == steps
            if on_step and on_step(
                Step(step, last, loss, result.active_share, len(batch), current_state)
            ):
                stopped = True
            if stopped:
                break
    if best is not None:
        network.load_state_dict(best[2])
    network.eval()
    return TrainedEmbedding(network, best[1] if best else 0, history)
