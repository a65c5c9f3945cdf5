"""`batchline db`: the database schema."""

import cyclopts

from batchline.cli.console import print_note
from batchline.client import upgrade_database
from batchline.models.settings import load_settings

app = cyclopts.App(name="db", help="Maintain the database of records.", help_format="plaintext")


@app.command
def upgrade() -> None:
    """Bring the database's schema up to this version; SQLite does it by itself."""
    upgrade_database(load_settings())
    print_note("the database's schema is that of this version")
