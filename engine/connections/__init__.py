"""How Byline signs in to upstream systems, and what people granted."""
