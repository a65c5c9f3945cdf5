"""Says once more how a cancelled batch ended, after its worker has put its own words over the flow run's state.

A worker sets the last state of a run that it cancels once the run's process is gone, whatever that said. So this
is a process of its own, which outlives the run's for as long as the worker takes.
"""

from __future__ import annotations

import subprocess
import sys
import time
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.states import Cancelled

PATIENCE_S = 120.0
LOOKED_EVERY_S = 1.0


def leave(run_id: str, message: str) -> None:
    """Have the message said once the worker is through, without waiting for that."""
    subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", __name__, run_id, message],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def say(run_id: str, message: str) -> None:
    """Wait until the flow run is cancelled in other words, and put these in their place."""
    give_up_at = time.monotonic() + PATIENCE_S
    with get_client(sync_client=True) as client:
        while time.monotonic() < give_up_at:
            if _is_overwritten(client, run_id, message):
                client.set_flow_run_state(UUID(run_id), Cancelled(message=message), force=True)
                return
            time.sleep(LOOKED_EVERY_S)


def _is_overwritten(client: SyncPrefectClient, run_id: str, message: str) -> bool:
    state = client.read_flow_run(UUID(run_id)).state
    return state is not None and state.is_cancelled() and state.message != message


if __name__ == "__main__":
    say(sys.argv[1], sys.argv[2])
