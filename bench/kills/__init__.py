"""Kills processes and servers at random moments, and checks that no batch loses, doubles or repeats too much."""
