"""Signals during a run: the first Ctrl-C or SIGTERM stops it cleanly, a later one kills it."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

from batchline.cli.console import messages
from batchline.steps.hold import held
from batchline.steps.sending import SAME_SIGNAL_S

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def clean_interrupt(batch_id: str) -> Iterator[None]:
    """Stop the batch's run at the first signal, raising `KeyboardInterrupt` where none runs here at the time."""
    raised = False
    first_at: float | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal raised, first_at
        del frame
        if first_at is not None:
            if time.monotonic() - first_at >= SAME_SIGNAL_S:
                _kill(number)
            return
        first_at = time.monotonic()
        hold = held(batch_id)
        if hold is None:
            raised = True
            raise KeyboardInterrupt
        grace_s = hold.engine.settings.grace_s
        messages().print(f"stopping: requests under way have {grace_s:.0f} s to finish (Ctrl-C again to kill)")
        hold.interrupt(f"stopped by {signal.Signals(number).name}")

    before = {each: signal.signal(each, stop) for each in SIGNALS}
    try:
        yield
    except Exception as error:
        # A library in whose midst the interrupt came may have wrapped it in an error of its own.
        if raised:
            raise KeyboardInterrupt from error
        raise
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _kill(number: int) -> None:
    """Die of the signal, whatever threads still wait for; only the terminal's cursor is put back."""
    messages().show_cursor()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
