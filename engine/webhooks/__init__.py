"""Inbound webhooks: the endpoints that people declare, and the signatures of deliveries and their mapping to calls."""
