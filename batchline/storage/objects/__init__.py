"""Object storage on the local disk or S3, and the layout of a batch's objects."""
