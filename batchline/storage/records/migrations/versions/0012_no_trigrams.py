"""Drop the trigram indexes of batch search; searches scan the narrow table instead.

The extension pg_trgm stays: Prefect or another program may use it in this database, and only its owner may drop
it. Search texts of earlier versions end with two separators, which the trigrams needed; no search can find them.
"""

from alembic import op

revision = "0012"
down_revision = "0011"

SQLITE_STATEMENTS = (
    "DROP TRIGGER IF EXISTS listed_batches_inserted",
    "DROP TRIGGER IF EXISTS listed_batches_deleted",
    "DROP TRIGGER IF EXISTS listed_batches_changed",
    "DROP TABLE IF EXISTS listed_batches_terms",
    "DROP TABLE IF EXISTS listed_batches_trigrams",
)
POSTGRESQL_STATEMENTS = ("DROP INDEX IF EXISTS listed_batches_trigrams",)


def upgrade() -> None:
    """Drop what 0003 made in earlier versions; databases made since have none of it."""
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in SQLITE_STATEMENTS if is_sqlite else POSTGRESQL_STATEMENTS:
        op.execute(statement)
