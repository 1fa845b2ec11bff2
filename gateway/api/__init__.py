"""The REST API under `/api/v1`. Each resource has a module whose `build_routes(...)` returns its router."""
