"""State of a training run of stage one, and how it is saved and restored."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.embedding.best_epoch import out_of_patience
from stages.embedding.library_loss import LibraryLoss
from stages.embedding.resume import check_state, restore_optimiser
from stages.embedding.sampler import PKSampler
from stages.network.embedding_net import EmbeddingNet
from stages.records import EpochLog, KeptEpoch, Split, TrainingState
from stages.settings import EmbedSettings


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
    sums: tuple[float, float, float] = (0.0, 0.0, 0.0)
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

    def add(self, loss: float, active_share: float | None, mean_distance: float) -> None:
        """Add the scores of a step to the sums of the epoch."""
        self.sums = (
            self.sums[0] + loss,
            self.sums[1] + (active_share or 0.0),
            self.sums[2] + mean_distance,
        )

    def state(self) -> TrainingState:
        """Return the state after the last step. Its tensors are the live ones."""
        return TrainingState(
            step=self.step,
            steps=self.steps,
            network=self.network.state_dict(),
            optimiser=self.optimiser.state_dict(),
            sampler=self.sampler.state_dict(),
            generator=torch.get_rng_state(),
            history=self.history,
            sums=self.sums,
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
