"""Calling model servers: one caller a process, with retries, limits and an answer for every call."""
