"""Reads replies of model servers: one table per endpoint, errors, framing and streams. No network, no state."""
