"""The MCP endpoints. They list what a caller may use, start runs, and report them in the client's protocol version."""
