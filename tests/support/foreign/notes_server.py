"""Runs an MCP server of fastmcp's that keeps notes for whom an OpenID provider vouches for; it knows no Byline."""

import sys

from fastmcp import FastMCP
from fastmcp.server.auth import RemoteAuthProvider
from fastmcp.server.auth.providers.jwt import JWTVerifier
from fastmcp.server.dependencies import get_access_token
from pydantic import AnyHttpUrl

SCOPE = "notes"


def server(port: int, issuer: str) -> FastMCP:
    """The server, which takes the issuer's tokens for its own address alone."""
    origin = f"http://127.0.0.1:{port}"
    verifier = JWTVerifier(
        jwks_uri=f"{issuer}/jwks", issuer=issuer, audience=f"{origin}/mcp", required_scopes=[SCOPE]
    )
    auth = RemoteAuthProvider(
        token_verifier=verifier, authorization_servers=[AnyHttpUrl(issuer)], base_url=origin
    )
    notes = FastMCP("Notes", auth=auth)

    @notes.tool
    def add_note(text: str) -> dict[str, str]:
        """Keep a note, and say whose it is."""
        token = get_access_token()
        return {"by": str(token.claims["sub"]) if token else "nobody", "text": text}

    @notes.tool
    def fail() -> str:
        """Fail."""
        raise ValueError("there are no more pages")

    return notes


if __name__ == "__main__":
    server(int(sys.argv[1]), sys.argv[2]).run(
        transport="http", host="127.0.0.1", port=int(sys.argv[1]), show_banner=False
    )
