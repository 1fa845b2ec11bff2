"""The built-in OAuth 2.1 authorization server: it lets MCP clients act for people who sign in here."""
