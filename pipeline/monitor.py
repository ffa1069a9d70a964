"""Monitor a training run: progress, history, saved state and requests to stop."""

import csv
import io
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.files import write_atomically
from pipeline.numbers import format_percentage, format_share
from pipeline.processes import any_rank, is_main_process
from pipeline.signals import StopRequest
from pipeline.training_state import save_state
from stages.embedding.train import Step
from stages.errors import PipelineError, SettingsError
from stages.records import EpochLog

SHOW_INTERVAL = 0.1  # seconds between two texts on the progress bar
SAVE_INTERVAL = 30.0  # seconds between two saves within an epoch
SAVE_TIME_SHARE = 0.03  # largest share of the training time that saving may take


def state_path(out: Path) -> Path:
    """Return the path of the training state that belongs to a checkpoint.

    Args:
        out: Checkpoint file.

    Returns:
        A path next to the checkpoint, with the ending ``.state``.

    Example:
        >>> state_path(Path("checkpoints/embedding.safetensors")).name
        'embedding.state'
    """
    return out.with_name(f"{out.stem}.state")


def history_path(out: Path) -> Path:
    """Return the path of the training history that belongs to a checkpoint.

    Args:
        out: Checkpoint file.

    Returns:
        A path next to the checkpoint, with the ending ``.history.csv``.
    """
    return out.with_name(f"{out.stem}.history.csv")


def vectors_path(out: Path) -> Path:
    """Return the path of the cached vectors that belong to a checkpoint.

    Args:
        out: Checkpoint file.

    Returns:
        A path next to the checkpoint, with the ending ``.vectors``.
    """
    return out.with_name(f"{out.stem}.vectors")


def embedding_files(out: Path) -> list[Path]:
    """Return the files next to a checkpoint that stage one and stage two write.

    Args:
        out: Checkpoint file.
    """
    return [state_path(out), history_path(out), vectors_path(out)]


class TrainingMonitor:
    """Callbacks for :func:`stages.embedding.train.train_embedding`.

    All ranks agree on when to stop; the main process prints and writes. One line is printed per
    validated epoch, the progress bar shows every step. State and history are saved next to the
    checkpoint: after an epoch and every ``SAVE_INTERVAL`` seconds within one, as far as
    ``SAVE_TIME_SHARE`` allows, and after the last step.

    Args:
        out: Checkpoint that the run will write.
        identity: Data, settings and precision that identify the run; saved with the state.
        epochs: Number of epochs of the run.
        bar: Progress bar that counts images.
        say: Function that prints a message.
        stop: Request to stop, set by a signal handler.
        speeds: Images per second of each finished epoch, ``None`` where unknown. The monitor
            appends to the list.
        has_validation: False if no epoch is validated; then every epoch is printed.
        tensorboard: Folder for TensorBoard's event files.

    Attributes:
        stopped: True after a request to stop.

    Raises:
        SettingsError: If TensorBoard is not installed or its folder cannot be written to.
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
        has_validation: bool = True,
        tensorboard: Path | None = None,
    ):
        self.out, self.identity, self.epochs = out, identity, epochs
        self.bar, self.say, self.stop = bar, say, stop
        self.speeds, self.has_validation = speeds, has_validation
        self.stopped = False
        self._writer: Any = None
        if tensorboard and is_main_process():
            self._writer = _summary_writer(tensorboard, first_epoch=len(speeds) + 1)
        self._images, self._seconds = 0, 0.0  # of the current epoch, without validation
        self._step_ended = self._save_ended = time.monotonic()
        self._save_seconds = 0.0  # duration of the last save
        self._shown = -math.inf  # time of the last text on the progress bar
        self._epoch_ended = self._collapsed = False

    def on_epoch(self, log: EpochLog) -> None:
        """Print a validated epoch, warn of a collapse, and write to TensorBoard.

        Args:
            log: Log of the epoch that has just ended.
        """
        speed = self._images / self._seconds if self._seconds else None
        self.speeds.append(speed)
        self._images, self._seconds, self._epoch_ended = 0, 0.0, True
        if log.validated or not self.has_validation:
            self.say(describe_epoch(log, self.epochs, speed))
        collapsed = log.collapsed(self.identity["settings"]["distance"])
        if collapsed and not self._collapsed:
            self.say(
                "warning: the embedding has collapsed: the mean distance between two images is "
                f"{log.mean_distance:.3f}, so nearly all images have the same embedding. "
                "Try a lower --lr, or more classes and images per batch"
            )
        self._collapsed = collapsed
        if self._writer:
            for name, value in _history_row(log, speed).items():
                if name != "epoch" and value is not None:
                    self._writer.add_scalar(name, value, log.epoch)
            self._writer.flush()

    def on_step(self, step: Step) -> bool:
        """Update the progress bar, and save the state if a save is due.

        Args:
            step: The optimiser step that has just ended.

        Returns:
            True if training should stop.
        """
        self._show_step(step)
        now = time.monotonic()
        if not self._epoch_ended:  # the time of an epoch's last step includes validation
            self._images += step.images
            self._seconds += now - self._step_ended
        self.stopped = any_rank(self.stop.requested)
        interval = 0 if self._epoch_ended else SAVE_INTERVAL
        interval = max(interval, self._save_seconds / SAVE_TIME_SHARE)
        if self.stopped or step.last or now - self._save_ended > interval:
            self.save(step)
        self._epoch_ended = False
        self._step_ended = time.monotonic()
        return self.stopped

    def _show_step(self, step: Step) -> None:
        self.bar.update(step.images)
        now = time.monotonic()
        if now - self._shown < SHOW_INTERVAL:  # reading the loss makes a GPU wait
            return
        self._shown = now
        epoch = len(self.speeds) if self._epoch_ended else len(self.speeds) + 1
        text = f"epoch {epoch}/{self.epochs}, loss {step.loss:.4f}"
        if step.active_share is not None:
            text += f", active {format_percentage(float(step.active_share), 2)}"
        self.bar.set_postfix_str(text, refresh=False)

    def save(self, step: Step) -> None:
        """Save state and history. A failure is reported and training continues.

        Args:
            step: The optimiser step after which to save.
        """
        if not is_main_process():
            return
        start = time.monotonic()
        state = step.state()
        try:
            record = {**self.identity, "speeds": self.speeds, "finished": step.last}
            save_state(state_path(self.out), state, record)
            self.write_history(state.history)
        except PipelineError as error:
            self.say(f"warning: {error}. Training continues; the state saved before is kept")
        self._save_ended = time.monotonic()
        self._save_seconds = self._save_ended - start

    def write_history(self, history: tuple[EpochLog, ...]) -> None:
        """Write the history next to the checkpoint, a CSV file with one row per epoch.

        Args:
            history: Logs of the finished epochs.

        Raises:
            PipelineError: If the file cannot be written.
        """
        rows = [_history_row(log, speed) for log, speed in zip(history, self.speeds, strict=False)]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(history_path(self.out), text.getvalue().encode())


def _history_row(log: EpochLog, speed: float | None) -> dict[str, Any]:
    row = {**asdict(log), "images_per_second": speed}
    recall = row.pop("val_recall")
    return row if recall is None else {**row, "val_recall": recall}


def describe_epoch(log: EpochLog, epochs: int, speed: float | None = None) -> str:
    """Describe an epoch in one line.

    Args:
        log: Log of the epoch.
        epochs: Number of epochs of the run.
        speed: Images per second.

    Returns:
        Loss, active share, mean distance and validation scores; ``-`` for a missing score. A loss
        of a library has no active share.

    Example:
        >>> describe_epoch(EpochLog(9, 0.1, 0.25, 1.2, 0.98, None), epochs=10)
        'epoch  9/10  loss 0.1000  active 25.00%  distance 1.200  val kNN 0.9800  triplet -'
    """
    knn = "-" if log.val_knn is None else format_share(log.val_knn, 4)
    triplet = "-" if log.val_triplet is None else format_share(log.val_triplet, 5)
    line = f"epoch {log.epoch:>{len(str(epochs))}}/{epochs}  loss {log.loss:.4f}  "
    if log.active_share is not None:
        line += f"active {format_percentage(log.active_share, 2):>6}  "
    line += f"distance {log.mean_distance:.3f}  val kNN {knn}  triplet {triplet}"
    if log.val_recall is not None:
        line += f"  held-out recall@1 {format_share(log.val_recall, 4)}"
    return f"{line}  {speed:,.0f} images/s" if speed else line


def _summary_writer(folder: Path, *, first_epoch: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SettingsError(
            "tensorboard",
            folder,
            "TensorBoard is not installed; run pip install tensorboard",
        ) from error
    try:
        # Events of an interrupted run from this epoch on are discarded.
        return SummaryWriter(str(folder), purge_step=first_epoch)
    except OSError as error:
        raise SettingsError(
            "tensorboard", folder, f"cannot be written to ({error.strerror}); use another folder"
        ) from error
