"""Give error files the purpose of output files: OpenAI's API knows no other for the files of a batch."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Change the purpose; an error file is known by its key."""
    op.execute("UPDATE files SET purpose = 'batch_output' WHERE purpose = 'batch_error'")
