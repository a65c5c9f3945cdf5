"""Room for retries: where their plans and the files that they are laid over are; and objects to be deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns and the table. Files of finished batches are where they always were."""
    op.add_column("batches", sa.Column("plan_key", sa.Text))
    op.add_column("batches", sa.Column("final_prefix", sa.Text))
    op.execute(
        "UPDATE batches SET final_prefix = 'batches/' || id || '/' WHERE completed + failed > 0 AND status IN "
        "('completed', 'failed', 'expired', 'cancelled')"
    )
    op.create_table(
        "doomed",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("prefix", sa.Text, nullable=False),
        sa.Column("kept", sa.Text),
        sa.Column("due_at", sa.BigInteger, nullable=False),
    )
    op.create_index("doomed_by_prefix", "doomed", ["prefix"], unique=True)
