"""Composite tools, one file for each. Their code is deterministic: no I/O, no clock and no settings."""
