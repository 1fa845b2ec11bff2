"""Benchmarks that compare Byline with raw Temporal."""
