"""Scheduled calls of tools. Temporal keeps the times; the owner and the call are stored here."""
