"""Signal handling during a run: the first Ctrl-C or SIGTERM stops it cleanly, a later one kills it."""

import contextlib
import signal
from collections.abc import Iterator

from batchline.cli.console import print_note, stderr_console
from batchline.client import Batchline
from batchline.models.stop_signals import handle_stop_signals, kill_process


@contextlib.contextmanager
def interrupt_on_signal(client: Batchline, batch_id: str) -> Iterator[None]:
    """Stop the batch's run at the first signal; raises `KeyboardInterrupt` if none is running here."""
    has_raised = False

    def stop(number: int) -> None:
        nonlocal has_raised
        if not client.batches.interrupt(batch_id, f"stopped by {signal.Signals(number).name}"):
            has_raised = True
            raise KeyboardInterrupt
        grace_s = client.settings.grace_s
        print_note(f"stopping: requests in flight have {grace_s:.0f} s to finish (Ctrl-C again to kill)")

    def kill(number: int) -> None:
        stderr_console().show_cursor()  # the live display hides it
        kill_process(number)

    try:
        with handle_stop_signals(stop, kill):
            yield
    except Exception as error:
        # A library that was interrupted may have wrapped the interrupt in an error of its own.
        if has_raised:
            raise KeyboardInterrupt from error
        raise
