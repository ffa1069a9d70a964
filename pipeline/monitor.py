"""A training run seen from outside: its progress, its history and state on disk, and the signals that stop it."""

import glob
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.files import write_atomically
from pipeline.processes import any_rank, is_main_process
from pipeline.signals import StopRequest
from pipeline.training_state import save_state
from stages.embedding.train import Step
from stages.errors import PipelineError, SettingsError
from stages.records import EpochLog

INTERVAL = 30.0  # seconds after which the state is saved, if no epoch ends before


SHARE = 0.03  # of the time, that saving may take


def state_path(out: Path) -> Path:
    """Where the state of the run that makes `out` lies."""
    return out.with_name(f"{out.stem}.state")


class TrainingMonitor:
    """The callbacks of one `train_embedding`; the processes of a run agree on when to stop, and the leader writes.

    out: the checkpoint to be; state and history lie beside it. identity: what makes the run this run, kept with the state.
    epochs: in all. bar: a progress bar that counts images. say: shows a line. stop: set by a signal.
    speeds: images a second in each epoch before this start, None where not known. tensorboard: a folder for event files.
    """

    def __init__(
        self,
        out: Path,
        identity: Mapping[str, Any],
        *,
        epochs: int,
        bar: Any,
        say: Callable[[str], None],
        stop: StopRequest,
        speeds: list[float | None],
        tensorboard: Path | None = None,
    ):
        self.out, self.identity, self.epochs, self.bar, self.say, self.stop = (
            out,
            identity,
            epochs,
            bar,
            say,
            stop,
        )
        self.speeds = speeds
        self.stopped = False
        for stale in out.parent.glob(
            f".{glob.escape(out.stem)}.*.????????"
        ):  # of a save that was killed
            stale.unlink(missing_ok=True)
        self._board = (
            _board(tensorboard, len(speeds)) if tensorboard and is_main_process() else None
        )
        self._images, self._seconds = 0, 0.0
        self._last = self._saved = time.monotonic()
        self._cost = 0.0  # of the last save, in seconds
        self._epoch_ended = self._collapsed = False

    def on_epoch(self, log: EpochLog) -> None:
        speed = self._images / self._seconds if self._seconds else None
        self.speeds.append(speed)
        self._images, self._seconds, self._epoch_ended = 0, 0.0, True
        self.say(describe_epoch(log, self.epochs, speed))
        if log.collapsed and not self._collapsed:
            self.say(
                f"warning: the embedding has collapsed: two images lie {log.mean_distance:.3f} apart on average, so nearly all "
                "look alike to it. Try a lower --lr, or more classes and images in a batch"
            )
        self._collapsed = log.collapsed
        if self._board:
            for name, value in {**asdict(log), "images_per_second": speed}.items():
                if name != "epoch" and value is not None:
                    self._board.add_scalar(name, value, log.epoch)
            self._board.flush()

    def on_step(self, step: Step) -> bool:
        now = time.monotonic()
        if not self._epoch_ended:  # an epoch's last step has validation in its time
            self._images += step.images
            self._seconds += now - self._last
        self.bar.update(step.images)
        self.bar.set_postfix_str(
            f"loss {step.loss:.4f}, active {step.active_share:.2%}", refresh=False
        )
        self.stopped = any_rank(self.stop.requested)
        since = now - self._saved
        if (
            self.stopped
            or step.last
            or since > max(self._cost / SHARE, 0 if self._epoch_ended else INTERVAL)
        ):
            self.save(step)
        self._epoch_ended = False
        self._last = time.monotonic()
        return self.stopped

    def save(self, step: Step) -> None:
        """State and history; a failure is told and costs neither the run nor the last state."""
        if not is_main_process():
            return
        start = time.monotonic()
        try:
            state = step.state()
            save_state(
                state_path(self.out),
                state,
                {**self.identity, "speeds": self.speeds, "finished": step.last},
            )
            self.write_history(state.history)
        except PipelineError as error:
            self.say(f"warning: {error}. Training goes on; what was saved before stays")
        self._saved = time.monotonic()
        self._cost = self._saved - start

    def write_history(self, history: tuple[EpochLog, ...]) -> None:
        rows = [
            {**asdict(log), "images_per_second": speed}
            for log, speed in zip(history, self.speeds, strict=False)
        ]
        write_atomically(
            self.out.with_name(f"{self.out.stem}.history.csv"),
            pd.DataFrame(rows).to_csv(index=False).encode(),
        )


def describe_epoch(log: EpochLog, epochs: int, speed: float | None = None) -> str:
    """An epoch in one line."""
    knn = "-" if log.val_knn is None else f"{log.val_knn:.4f}"
    triplet = "-" if log.val_triplet is None else f"{log.val_triplet:.5f}"
    return (
        f"epoch {log.epoch:>{len(str(epochs))}}/{epochs}  loss {log.loss:.4f}  active {log.active_share:6.2%}  "
        f"distance {log.mean_distance:.3f}  val kNN {knn}  val triplet {triplet}"
        + (f"  {speed:,.0f} images/s" if speed else "")
    )


def _board(folder: Path, epochs: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SettingsError(
            "tensorboard",
            folder,
            "TensorBoard is not installed; pip install 'embedding-pipeline[tensorboard]'",
        ) from error
    try:
        return SummaryWriter(str(folder), purge_step=epochs + 1)
    except OSError as error:
        raise SettingsError(
            "tensorboard", folder, f"can't be written to ({error.strerror}); give another folder"
        ) from error
