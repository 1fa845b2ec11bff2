"""A server of the `mcp` package with one trivial tool. It shows what the protocol alone costs.

python -m benchmarks.bare_mcp
"""

import socket

import uvicorn
import uvloop
from mcp.server.mcpserver import MCPServer


async def main() -> None:
    """Serve on a free port, and tell it."""
    server = MCPServer("bare", log_level="WARNING")

    @server.tool()
    def noop() -> dict[str, int]:
        """Do nothing."""
        return {"writes": 0}

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        print("ready", listening.getsockname()[1], flush=True)
        config = uvicorn.Config(server.streamable_http_app(), log_level="warning", access_log=False)
        await uvicorn.Server(config).serve([listening])


if __name__ == "__main__":
    uvloop.run(main())
