"""What a batch goes through, as plain functions that know nothing of Prefect and need no server."""
