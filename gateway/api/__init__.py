"""The REST API under `/api/v1`: each resource in a module of its own, with `routes(...)` that gives its router."""
