"""Keep which flow run had a batch last, beside the one that made it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column with its index."""
    op.add_column("batches", sa.Column("last_flow_run_id", sa.String(64)))
    op.create_index("batches_by_last_flow_run", "batches", ["last_flow_run_id"])
