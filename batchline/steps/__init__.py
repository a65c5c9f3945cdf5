"""The steps of a batch, as plain functions that do not depend on Prefect."""
