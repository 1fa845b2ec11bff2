"""HTTP protections for all endpoints: limits on body size, slow clients, and cross-origin routes."""
