"""The demo and its sandbox upstreams. They are not part of the product."""
