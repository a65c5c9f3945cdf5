"""The client object: files and batches as a program handles them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from batchline.models.batches import Source
from batchline.models.settings import Settings
from batchline.operations.access import EVERYTHING, Access
from batchline.operations.batches import Batches
from batchline.operations.files import Files
from batchline.operations.runner import Runner, Starter
from batchline.steps.engine import Engine, open_engine
from batchline.upstream.ledger import Ledger


class Batchline:
    """Files and batches in the storage and the records that the settings name.

    ```python
    with Batchline() as client:
        file = client.files.create(file="requests.jsonl")
        batch = client.batches.create(input_file_id=file.id)
        batch = client.batches.wait(batch.id)
        for item in client.batches.results(batch.id, status="failed"):
            print(item.custom_id, item.error)
    ```

    Leaving the block stops the batches that still run in this process; they can be resumed.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        engine: Engine | None = None,
        source: Source = "api",
        access: Access = EVERYTHING,
        runner: Starter | None = None,
    ) -> None:
        self.engine = engine or open_engine(settings)
        self.runner: Starter = runner or Runner(self.engine)
        self.source = source
        self.access = access
        self.files = Files(self.engine, access)
        self.batches = Batches(self.engine, self.runner, source, access)

    def acting_for(self, access: Access) -> Batchline:
        """The same client on somebody's behalf; what it starts runs where this one's batches run."""
        return Batchline(engine=self.engine, source=self.source, access=access, runner=self.runner)

    def coming_from(self, source: Source) -> Batchline:
        """The same client, for batches of which that is to be known."""
        return Batchline(engine=self.engine, source=source, access=self.access, runner=self.runner)

    def check(self) -> None:
        """Raise `StorageFault` unless the database and the storage answer."""
        self.engine.records.overview.check()
        self.engine.store.exists("readiness")

    def share_budgets(self) -> None:
        """Let the upstreams' caps hold over all processes that use the Prefect server of the settings, if any.

        Its client takes seconds to import: that is done in the background, and sending begins after it.
        """
        settings = self.engine.settings
        if settings.share_budgets and settings.prefect_api_url:
            self.engine.caller.share(_prefect_ledger)

    def close(self) -> None:
        """Stop the batches that run in this process; what was answered is saved."""
        self.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _prefect_ledger() -> AbstractContextManager[Ledger]:
    from batchline.orchestration.budgets import PrefectLedger  # noqa: PLC0415 - Prefect takes seconds to import

    return PrefectLedger()
