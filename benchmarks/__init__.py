"""Byline measured beside raw Temporal; it measures, and changes nothing."""
