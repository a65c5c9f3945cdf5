"""What batches have to do with Prefect beside their steps: what people see of a run, how it starts and ends."""
