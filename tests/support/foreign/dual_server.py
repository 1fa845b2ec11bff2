"""Runs an MCP server of the Python SDK, which speaks every version and keeps notes; it knows no Byline."""

import sys
from itertools import count

from mcp.server.mcpserver import MCPServer

numbers = count(1)
server = MCPServer("Notes")


@server.tool()
def add_note(text: str) -> dict[str, str | int]:
    """Keep a note."""
    return {"text": text, "kept": next(numbers)}


if __name__ == "__main__":
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
