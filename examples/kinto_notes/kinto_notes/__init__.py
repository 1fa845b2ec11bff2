"""Composite tools on Kinto, for Byline."""
