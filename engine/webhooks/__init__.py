"""Inbound webhooks: who signed a delivery, what it says to a tool, and the endpoints that people declare."""
