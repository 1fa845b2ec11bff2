"""Temporal interceptors that propagate identity, park runs and guard actions."""
