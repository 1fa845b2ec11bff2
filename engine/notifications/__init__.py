"""Notes to people: that a run waits for them, and that it ended."""
