"""Runs one batch: its lease, the order of the steps, retries, ingest, deletion, and senders in other processes."""
