"""Stop training after the current step on SIGINT or SIGTERM."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class StopRequest:
    """Whether a signal has asked to stop."""

    requested = False


@contextmanager
def stop_signals(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """SIGINT and SIGTERM ask to stop, where they would have ended the program; a second SIGINT ends it."""
    stop = StopRequest()
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # only the main thread may change handlers
        yield stop
        return

    def ask(number: int, _: Any) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True
        say("stopping after this step, and saving the state; Ctrl-C again to stop at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
