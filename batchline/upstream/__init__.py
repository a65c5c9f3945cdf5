"""Calls to model servers: one dispatcher per process, with retries, limits and a result for every call."""
