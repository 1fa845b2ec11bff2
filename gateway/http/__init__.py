"""HTTP for all entry points: body size limits, slow clients, cross-origin routes, and problem documents."""
