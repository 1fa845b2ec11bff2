"""Handles an HTTP request to an MCP endpoint until its method is known."""
