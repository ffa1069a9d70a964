"""Stop training after the current step on SIGINT or SIGTERM."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class StopRequest:
    """Flag that a signal handler sets.

    Attributes:
        requested: True after SIGINT or SIGTERM.
    """

    requested = False


@contextmanager
def stop_signals(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request to stop; a second SIGINT stops at once.

    Args:
        say: Function that shows a message.

    Yields:
        The stop request. Earlier signal handlers are restored at the end.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python only lets the main thread set signal handlers
        return

    def request_stop(number: int, _: Any) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True
        say("stopping after this step and saving the state; press Ctrl-C again to stop at once")

    numbers = (signal.SIGINT, signal.SIGTERM)
    earlier = {number: signal.signal(number, request_stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
