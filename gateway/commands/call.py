"""`byline call`: calls a tool with arguments from the command line, and follows its run."""

import uuid
from typing import Annotated

import typer

from gateway.commands.attending import OpenLinks, WaitForPeople, attend
from gateway.commands.connected import AsJson, gateway_here
from gateway.commands.given import Arg, ArgsJson, given_arguments
from gateway.commands.tools import ToolName


def call(
    tool: ToolName,
    arg: Arg = None,
    args_json: ArgsJson = None,
    *,
    as_json: AsJson = False,
    wait: WaitForPeople = None,
    open_links: OpenLinks = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="call once, however often this is repeated with the same key")
    ] = None,
) -> None:
    """Call a tool, show what it does and asks, and print what it returns."""
    with gateway_here() as gateway:
        found = given_arguments(gateway, tool, arg or [], args_json)
        # Without a key, a call that is sent again after a lost answer would start a second run.
        key = idempotency_key or str(uuid.uuid4())
        run = gateway.post("tools", tool, "runs", body=found, key=key)
        attend(gateway, str(run["id"]), as_json=as_json, wait=wait, open_links=open_links)
