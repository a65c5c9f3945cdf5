"""What Prefect deploys."""
