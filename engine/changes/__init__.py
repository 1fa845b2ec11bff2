"""What runs say has changed, for whoever listens."""
