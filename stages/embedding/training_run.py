"""State of a training run of stage one, and how it is saved and restored."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.embedding.best_epoch import out_of_patience
from stages.embedding.library_loss import LibraryBatchLoss, LibraryLoss
from stages.embedding.loss import TripletLoss
from stages.embedding.resume import check_state, restore_optimiser
from stages.embedding.sampler import PKSampler
from stages.embedding.summation import float64_sum
from stages.errors import SettingsError
from stages.network.embedding_net import EmbeddingNet
from stages.records import EpochLog, KeptEpoch, Split, TrainingState
from stages.settings import EmbedSettings

CHECK_EVERY = 100  # steps between two checks of the loss on a GPU


@dataclass(kw_only=True)
class TrainingRun:
    """A training run: its fixed parts, then the counters that change with every step."""

    train: Split
    settings: EmbedSettings
    device: torch.device
    precision: torch.dtype
    network: EmbeddingNet
    library_loss: LibraryLoss | None  # None: triplet loss
    optimiser: torch.optim.Optimizer
    peak_rates: list[float]  # per parameter group
    sampler: PKSampler
    own: slice  # rows of each batch that this rank embeds
    epochs: int
    step: int = 0
    # Loss, active share and mean distance, summed over the epoch's steps so far.
    sums: tuple[Tensor | float, Tensor | float, Tensor | float] = (0.0, 0.0, 0.0)
    history: tuple[EpochLog, ...] = ()
    kept: KeptEpoch | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.epochs * len(self.sampler)

    @property
    def finished(self) -> bool:
        """True after the last step, or if training should stop early."""
        return self.step >= self.steps or out_of_patience(self.settings, self.history)

    def batches(self) -> Iterator[Tensor]:
        """Yield the remaining batches of the run, int64, shape (P * K,)."""
        while not self.finished:
            self.network.train()
            yield from self.sampler

    def add(self, result: TripletLoss | LibraryBatchLoss) -> None:
        """Add the scores of the next step to the sums of the epoch, and check the loss.

        On a GPU the loss is read every ``CHECK_EVERY`` steps and at the end of an epoch only,
        because the program has to wait for it.
        """
        share = result.active_share
        self.sums = (
            self.sums[0] + float64_sum(result.loss.detach()),
            self.sums[1] + (0.0 if share is None else share),
            self.sums[2] + result.mean_distance,
        )
        step = self.step + 1
        ends_epoch = step % len(self.sampler) == 0
        if self.device.type == "cpu" or step % CHECK_EVERY == 0 or ends_epoch:
            self.check_loss(step)

    def check_loss(self, step: int) -> None:
        """Raise a SettingsError if a loss of this epoch was not finite.

        Args:
            step: Number of the last step that has been added.
        """
        total = float(self.sums[0])
        if not math.isfinite(total):
            problem = f"the loss is {total} at step {step}; use a lower learning rate"
            raise SettingsError("lr", self.settings.lr, problem)

    def state(self) -> TrainingState:
        """Return the state after the last step. Its tensors are the live ones."""
        self.check_loss(self.step)
        loss, active_share, mean_distance = (float(total) for total in self.sums)
        return TrainingState(
            step=self.step,
            steps=self.steps,
            network=self.network.state_dict(),
            optimiser=self.optimiser.state_dict(),
            sampler=self.sampler.state_dict(),
            generator=torch.get_rng_state(),
            history=self.history,
            sums=(loss, active_share, mean_distance),
            kept=self.kept,
            loss=self.library_loss.saved_state() if self.library_loss else {},
        )

    def restore(self, state: TrainingState) -> None:
        """Continue from a state, or raise an error before anything is changed."""
        check_state(
            state,
            self.network,
            self.optimiser,
            steps=self.steps,
            per_epoch=len(self.sampler),
            loss=self.library_loss.saved_state() if self.library_loss else {},
        )
        self.network.load_state_dict(state.network)
        restore_optimiser(self.optimiser, state)
        if self.library_loss:
            self.library_loss.restore(state.loss)
        self.sampler.load_state_dict(state.sampler)
        torch.set_rng_state(state.generator)
        self.step, self.sums = state.step, state.sums
        self.history, self.kept = state.history, state.kept
