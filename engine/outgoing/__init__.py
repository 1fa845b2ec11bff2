"""Requests to addresses that others supplied, under one set of rules."""
