"""Open questions to people, and the waking of the runs that wait for an answer."""
