"""HTTP for all doors: limits on body size, slow clients, cross-origin routes, and problem documents for errors."""
