"""Picks up files from watched folders: one batch for each new version of a file, exactly once."""

from batchline.sync.sync_pass import sync_source

__all__ = ["sync_source"]
