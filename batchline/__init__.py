"""Runs OpenAI-format batch files against any OpenAI-compatible server, as Prefect flows."""
