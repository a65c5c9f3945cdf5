"""The Prefect flows of batchline."""
