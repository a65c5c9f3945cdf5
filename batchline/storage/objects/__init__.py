"""Files on the local disk or S3, and where a batch's files lie."""
