"""The four steps of a batch as Prefect tasks."""
