"""Composite tools, one a file; deterministic code only, so no I/O, no clock and no settings."""
