"""Waiters: the actions that wait for a person's answer, and the wake-up signals that they get."""
