"""Requests to addresses that others gave, by one set of rules."""
