"""The MCP edge: each offer is listed to whom it is for, and each call is a run, told in the way its client can show."""
