"""Connections: how Byline signs in to upstream systems, and the grants that it holds there."""
