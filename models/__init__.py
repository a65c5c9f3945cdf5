"""Data models of batchline, and logic that needs no I/O."""
