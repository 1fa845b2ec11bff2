"""Requests as HTTP brings them: how large and how slow one may be, and which may come from another origin."""
