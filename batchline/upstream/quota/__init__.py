"""Caps of an upstream that all processes share."""
