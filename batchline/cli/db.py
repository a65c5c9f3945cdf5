"""`batchline db`: the database schema."""

import cyclopts

from batchline.cli.console import stderr_console
from batchline.models.settings import load_settings

app = cyclopts.App(name="db", help="Look after the database of records.", help_format="plaintext")


@app.command
def upgrade() -> None:
    """Bring the database's schema up to this version; SQLite does it by itself."""
    from batchline.storage.records.store import upgrade_database  # noqa: PLC0415 - Alembic is slow to import

    upgrade_database(load_settings())
    stderr_console().print("the database's schema is that of this version")
