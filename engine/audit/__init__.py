"""The audit trail: an append-only table of lines, each chained to the one before and signed."""
