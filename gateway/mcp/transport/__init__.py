"""What happens to an HTTP request at the MCP door before its method is known."""
