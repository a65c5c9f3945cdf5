"""Count requests that were left unanswered apart from failed ones, and keep the model that all requests name.

Batches of before keep their counts: of them `failed` includes the unanswered requests.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("batches", sa.Column("unanswered", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("batches", sa.Column("model", sa.Text))
