"""Composite tools for Byline."""
