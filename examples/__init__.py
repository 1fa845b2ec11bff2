"""The demo and its sandbox upstreams: what a newcomer runs first, and no part of the product."""
