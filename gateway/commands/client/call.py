"""`byline call`: calls a tool with arguments from the command line, and follows its run."""

import uuid
from typing import Annotated

import typer

from gateway.commands.client.tools import ToolNameArgument
from gateway.terminal.api_client import JsonOption, open_gateway
from gateway.terminal.argument_options import ArgumentOption, ArgumentsFileOption, read_arguments
from gateway.terminal.follow_run import OpenLinksOption, WaitOption, attend_run


def call_tool(
    tool: ToolNameArgument,
    argument_pairs: ArgumentOption = None,
    args_json: ArgumentsFileOption = None,
    *,
    should_print_json: JsonOption = False,
    wait_preference: WaitOption = None,
    should_open_links: OpenLinksOption = False,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="call the tool only once, even if this command is repeated with the same key"),
    ] = None,
) -> None:
    """Call a tool, show its progress and its questions, and print its result."""
    with open_gateway() as gateway_client:
        tool_arguments = read_arguments(gateway_client, tool, argument_pairs or [], args_json)
        # Without a key, a call that is sent again after a lost answer would start a second run.
        request_key = idempotency_key or str(uuid.uuid4())
        run_document = gateway_client.post_document(
            "tools", tool, "runs", request_body=tool_arguments, idempotency_key=request_key
        )
        attend_run(
            gateway_client,
            str(run_document["id"]),
            should_print_json=should_print_json,
            wait_preference=wait_preference,
            should_open_links=should_open_links,
        )
