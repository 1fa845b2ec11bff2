"""Calls by the clock: when is Temporal's to know, who and what is on record here."""
