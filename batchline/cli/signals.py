"""Signal handling during a run: the first Ctrl-C or SIGTERM stops it cleanly, a later one kills it."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from batchline.cli.console import stderr_console
from batchline.engine.lease import active_lease
from batchline.models.stop_signals import StopSignals

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def interrupt_on_signal(batch_id: str) -> Iterator[None]:
    """Stop the batch's run at the first signal; raises `KeyboardInterrupt` if none is running here."""
    has_raised, stop_signals = False, StopSignals()

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal has_raised
        del frame
        ordinal = stop_signals.classify_next()
        if ordinal == "later":
            _kill_process(number)
        if ordinal != "first":
            return
        lease = active_lease(batch_id)
        if lease is None:
            has_raised = True
            raise KeyboardInterrupt
        grace_s = lease.services.settings.grace_s
        stderr_console().print(
            f"stopping: requests under way have {grace_s:.0f} s to finish (Ctrl-C again to kill)"
        )
        lease.interrupt(f"stopped by {signal.Signals(number).name}")

    previous_handlers = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    except Exception as error:
        # A library that was interrupted may have wrapped the interrupt in an error of its own.
        if has_raised:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


def _kill_process(number: int) -> None:
    """Die by the signal without waiting for threads; only the terminal's cursor is restored."""
    stderr_console().show_cursor()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
