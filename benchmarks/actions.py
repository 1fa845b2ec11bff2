"""The action of the benchmarks, which writes to their upstream."""

from byline import action, upstream


@action("bench.write", connection="bench", scopes=("write",))
async def write(name: str) -> None:
    """Write once under this name."""
    await upstream().request("POST", f"/things/{name}", record=f"thing/{name}")
