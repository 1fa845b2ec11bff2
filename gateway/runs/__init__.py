"""Runs as every door has them: begun, awaited, shown and steered; which protocol asks is not known here."""
