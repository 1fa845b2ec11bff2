"""The edge: MCP, REST, sign-in pages, console and command line; it never speaks to an upstream itself."""
