"""Runs: starting one or attaching to it, its outcome, its state, and control over it."""
