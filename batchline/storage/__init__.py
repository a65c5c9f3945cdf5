"""Storage: objects on the local disk or S3, and records of files and batches in SQL."""
