"""Keep when the end of a batch was announced in Prefect; the ends before this version count as announced."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the column, with an index of the few batches that have a flow run and are not announced."""
    op.add_column("batches", sa.Column("announced_at", sa.BigInteger))
    op.execute(
        "UPDATE batches SET announced_at = created_at "
        "WHERE status IN ('completed', 'failed', 'expired', 'cancelled')"
    )
    waiting = sa.text("announced_at IS NULL AND last_flow_run_id IS NOT NULL")
    op.create_index("batches_to_announce", "batches", ["id"], sqlite_where=waiting, postgresql_where=waiting)
