"""Secrets at rest: master keys and the sealing of rows."""
