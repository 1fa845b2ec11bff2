"""The trail: append-only, chained, signed."""
