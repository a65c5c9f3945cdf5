"""Tell whether a listed batch is over, and late, by columns of their own, so that most lists follow one index."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

LISTED_BY = {
    "end": ["is_over"],
    "lateness": ["is_late"],
    "member_and_end": ["member_id", "is_over"],
}
"""The columns behind the name of each index, which go on with the creation."""


def upgrade() -> None:
    """Add the columns, take them from the state, and leave of the state what the status filters tell apart."""
    for name in ("is_over", "is_late"):
        op.add_column("listed_batches", sa.Column(name, sa.Boolean, nullable=False, server_default=sa.false()))
    op.execute(
        "UPDATE listed_batches SET "
        "is_over = state NOT IN ('validating', 'in_progress', 'finalizing', 'cancelling'), "
        "is_late = state IN ('expired', 'completed late', 'failed late', 'cancelled late'), "
        "state = CASE WHEN state IN ('validating', 'finalizing') THEN 'in_progress' "
        "ELSE replace(state, ' late', '') END"
    )
    for name, columns in LISTED_BY.items():
        op.create_index(f"listed_batches_by_{name}", "listed_batches", [*columns, "created_at", "batch_id"])
