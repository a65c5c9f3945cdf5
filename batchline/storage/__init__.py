"""Where things are kept: objects through fsspec, records of files and batches in SQL."""
