"""Batches, files, leases and API keys in SQL, on SQLite or PostgreSQL."""
