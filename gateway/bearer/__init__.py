"""Verifies the bearer tokens of every resource, whoever issued them."""
