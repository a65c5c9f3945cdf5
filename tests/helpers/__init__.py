"""Servers, clients, files and waiting for tests, for all folders."""
