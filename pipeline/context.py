"""RunContext: device, progress, messages and cache options of a run."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipeline.device import start_device
from pipeline.processes import is_main_process


@dataclass(frozen=True)
class RunContext:
    """Where and how loudly to run: `--device --precision --threads --quiet --cache --root --download`."""

    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    quiet: bool = False
    cache: Path | None = None
    root: Path | None = None
    download: bool = False

    def start(self) -> torch.device:
        return start_device(self.device, self.threads)

    def say(self, message: str) -> None:
        """A line for the person who waits, above any progress bar."""
        if not self.quiet and is_main_process():
            tqdm.write(message, file=sys.stderr)

    def bar(
        self,
        caption: str,
        total: int,
        items: Iterable[Any] | None = None,
        *,
        initial: int = 0,
        unit: str = "it",
    ) -> Any:
        """A progress bar, on a terminal only."""
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
        """An iterable under a progress bar."""
        bar: Iterable[Any] = self.bar(caption, total, items)
        return bar
