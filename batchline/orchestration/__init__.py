"""Connects batches to Prefect: starting, monitoring and ending flow runs, and what Prefect shows of them."""
