"""Questions and approvals: what runs ask people and MCP clients, and what those answer."""
