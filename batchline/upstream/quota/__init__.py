"""Quota sharing: the caps of an upstream apply to all processes together."""
