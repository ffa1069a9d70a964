"""RunContext: device, progress, messages and cache options of a run."""

import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipeline.device import start_device
from pipeline.escape import printable
from pipeline.processes import is_main_process


@dataclass(frozen=True)
class RunContext:
    """Device, verbosity and cache options of a run.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``fp32`` or ``bf16``; used in training.
        threads: Number of CPU threads. ``None`` keeps PyTorch's choice.
        quiet: Show neither messages nor progress.
        cache: Folder for decoded images and trunk features. ``None`` is the user's cache folder.
        root: Folder of torchvision's data sets. ``None`` is a folder in the user's cache.
        download: Allow downloads of data sets.
        given: Options that the user gave on the command line or in the --config file, even with
            their default values. ``--network auto`` respects them.
    """

    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    quiet: bool = False
    cache: Path | None = None
    root: Path | None = None
    download: bool = False
    given: frozenset[str] = frozenset()

    def start(self) -> torch.device:
        """Set up the device; see :func:`pipeline.device.start_device`.

        Returns:
            The chosen device.

        Raises:
            SettingsError: If the device is not available or ``threads`` is out of range.
        """
        return start_device(self.device, self.threads)

    def say(self, message: str) -> None:
        """Print a message to stderr, above any progress bar.

        Args:
            message: One or more lines.
        """
        if not self.quiet and is_main_process():
            with suppress(OSError):  # a closed or full standard error must not stop the work
                tqdm.write(printable(message), file=sys.stderr)

    def bar(
        self,
        caption: str,
        total: int,
        items: Iterable[Any] | None = None,
        *,
        initial: int = 0,
        unit: str = "it",
    ) -> Any:
        """Create a progress bar, shown only if stderr is a terminal.

        Args:
            caption: Text before the bar.
            total: Count at the end.
            items: Iterable to wrap. Without it the caller updates the bar.
            initial: Count at the start.
            unit: Unit of the count.

        Returns:
            A ``tqdm`` progress bar.
        """
        hidden = self.quiet or not sys.stderr.isatty() or not is_main_process()
        return tqdm(
            items,
            total=total,
            desc=caption,
            file=sys.stderr,
            disable=hidden,
            leave=False,
            initial=initial,
            unit=unit,
            unit_scale=True,
        )

    def show(self, caption: str, total: int, items: Iterable[Any]) -> Iterable[Any]:
        """Wrap an iterable in a progress bar.

        Args:
            caption: Text before the bar.
            total: Number of items.
            items: Iterable to wrap.

        Returns:
            An iterable over the same items.
        """
        bar: Iterable[Any] = self.bar(caption, total, items)
        return bar
