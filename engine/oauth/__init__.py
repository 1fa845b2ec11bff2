"""Byline as an OAuth client of upstreams: discovery, registration, requests for tokens, and proofs of possession."""
