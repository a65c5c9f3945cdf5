"""The shapes of things, and what is decided without I/O."""
