"""Signals during a run: the first Ctrl-C or SIGTERM stops it cleanly, a later one kills it."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from batchline.cli.console import messages
from batchline.models.signals import StopSignals
from batchline.steps.hold import held

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def clean_interrupt(batch_id: str) -> Iterator[None]:
    """Stop the batch's run at the first signal, raising `KeyboardInterrupt` where none runs here at the time."""
    raised, signals = False, StopSignals()

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        del frame
        which = signals.next()
        if which == "later":
            _kill(number)
        if which != "first":
            return
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
