"""The tables of files, batches and keys. Times are Unix seconds; nested models are JSON text."""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    false,
    text,
)

HEAD: Final = "0014"
"""The newest migration; a test compares it with the scripts."""

metadata = MetaData()

IS_UNANNOUNCED: Final = text("announced_at IS NULL AND last_flow_run_id IS NOT NULL")
"""Condition for batches that have a flow run, in which their end is not announced yet."""

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("purpose", String(32), nullable=False),
    Column("filename", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("sha256", String(64)),
    Column("key", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("member_id", String(36)),
    Index("files_by_creation", "created_at", "id"),
    Index("files_by_purpose", "purpose", "created_at", "id"),
    Index("files_by_member", "member_id", "created_at", "id"),
    Index("files_by_member_and_purpose", "member_id", "purpose", "created_at", "id"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("input_filename", Text, nullable=False),
    Column("completion_window", String(16), nullable=False),
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("in_progress_at", BigInteger),
    Column("finalizing_at", BigInteger),
    Column("completed_at", BigInteger),
    Column("failed_at", BigInteger),
    Column("expired_at", BigInteger),
    Column("cancelling_at", BigInteger),
    Column("cancelled_at", BigInteger),
    Column("total", BigInteger, nullable=False),
    Column("completed", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("unanswered", BigInteger, nullable=False, server_default="0"),
    Column("model", Text),
    Column("metadata", Text),
    Column("errors", Text),
    Column("analytics", Text),
    Column("dwext", Text),
    Column("member_id", String(36)),
    Column("flow_run_id", String(64)),
    Column("generation", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("lease_owner", Text),
    Column("lease_at", Double),
    Column("output_expires_after", BigInteger),
    Column("plan_key", Text),
    Column("final_prefix", Text),
    Column("last_flow_run_id", String(64)),
    Column("announced_at", BigInteger),
    Column("paused_at", BigInteger),
    Column("pause_code", String(32)),
    Column("pause_message", Text),
    Column("pauses", Integer, nullable=False, server_default="0"),
    Column("options", Text),
    Column("default_on_limit", String(8)),
    Index("batches_by_flow_run", "flow_run_id", unique=True),
    Index("batches_by_last_flow_run", "last_flow_run_id"),
    Index("batches_by_input_file", "input_file_id"),
    Index("batches_by_output_file", "output_file_id"),
    Index("batches_by_error_file", "error_file_id"),
    Index("batches_to_announce", "id", sqlite_where=IS_UNANNOUNCED, postgresql_where=IS_UNANNOUNCED),
)

batch_index = Table(
    "listed_batches",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("batch_id", String(64).with_variant(String(64, "C"), "postgresql"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("state", String(32), nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("member_id", String(36)),
    Column("search_text", Text, nullable=False),
    Column("is_over", Boolean, nullable=False, server_default=false()),
    Column("is_late", Boolean, nullable=False, server_default=false()),
    Column("is_paused", Boolean, nullable=False, server_default=false()),
    Index("listed_batches_by_id", "batch_id", unique=True),
    Index("listed_batches_by_creation", "created_at", "batch_id"),
    Index("listed_batches_by_state", "state", "created_at", "batch_id"),
    Index("listed_batches_by_end", "is_over", "created_at", "batch_id"),
    Index("listed_batches_by_lateness", "is_late", "created_at", "batch_id"),
    # Only of the few that are paused: the condition that a batch is not must not choose this index.
    Index(
        "listed_batches_by_pause",
        "created_at",
        "batch_id",
        sqlite_where=text("is_paused = 1"),
        postgresql_where=text("is_paused = true"),
    ),
    Index("listed_batches_by_member", "member_id", "created_at", "batch_id"),
    Index("listed_batches_by_member_and_end", "member_id", "is_over", "created_at", "batch_id"),
    Index("listed_batches_by_member_and_state", "member_id", "state", "created_at", "batch_id"),
)
"""A narrow row per batch for lists, updated with the batch; ids are ordered by code points.

A batch is late if it expired or ended after its deadline. No index covers the search text: searches scan it.
"""

synced_files = Table(
    "source_files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("source_id", String(36), nullable=False),
    Column("uri", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("batch_id", String(64), nullable=False),
    Column("sync_id", String(64), nullable=False),
    Column("taken_at", BigInteger, nullable=False),
    Column("place", Text, nullable=False),
    Column("place_id", String(64), nullable=False),
    Column("writes_back", Boolean, nullable=False),
    Column("started_at", BigInteger),
    Column("written_generation", Integer),
    Index("source_files_by_place", "place_id", unique=True),
    Index("source_files_by_batch", "batch_id", unique=True),
    Index("source_files_by_start", "source_id", "started_at"),
)
"""Versions of synced files; a row is inserted in one transaction with its batch, and kept after its deletion."""

senders = Table(
    "senders",
    metadata,
    Column("batch_id", String(64), primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("sender", String(32), primary_key=True),
    Column("report", Text, nullable=False),
)
"""Reports of a batch's sender processes to its runner, and of the runner to them."""

pending_deletions = Table(
    "doomed",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("prefix", Text, nullable=False),
    Column("kept", Text),
    Column("due_at", BigInteger, nullable=False),
    Index("doomed_by_prefix", "prefix", unique=True),
)
"""Objects to be deleted when they are due."""

members = Table(
    "members",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index("members_by_name", "name", unique=True),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("hint", String(16), nullable=False),
    Column("member_id", String(36), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    Column("max_upload_bytes", BigInteger),
    Column("max_open_batches", BigInteger),
    Column("requests_per_minute", BigInteger),
    Index("api_keys_by_sha256", "sha256", unique=True),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("request", String(64), nullable=False),
    Column("batch_id", String(64), nullable=False),
    Index("idempotency_keys_by_batch", "batch_id"),
)
"""Digests of idempotency keys and of the requests that used them."""
