"""The report of a finished batch as a page: what came of it, what it cost, what failed."""
