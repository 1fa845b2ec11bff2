"""`byline runs`: shows your runs and controls them. Each command is one request."""

import uuid
from typing import Annotated, Any

import typer

from gateway.client.api_documents import RunDocument, StepDocument
from gateway.terminal.api_client import JsonOption, open_gateway, print_json
from gateway.terminal.columns import print_columns
from gateway.terminal.follow_run import (
    OpenLinksOption,
    WaitOption,
    attend_run,
    describe_follow_command,
    print_result,
)
from gateway.terminal.safe_text import escape_text

app = typer.Typer(help="Show your runs and control them.", no_args_is_help=True)

RunIdArgument = Annotated[str, typer.Argument(help="a run's id")]


@app.command("list")
def list_runs(
    tool: Annotated[str | None, typer.Option(help="only runs of this tool")] = None,
    status: Annotated[str | None, typer.Option(help="only runs with this status, such as waiting")] = None,
    limit: Annotated[int, typer.Option(min=1, help="list at most this many, the newest")] = 20,
    *,
    should_print_json: JsonOption = False,
) -> None:
    """List your runs, newest first."""
    with open_gateway() as gateway_client:
        run_items = gateway_client.list_items("runs", max_items=limit, tool=tool, status=status)
    if should_print_json:
        print_json({"items": run_items})
        return
    run_documents = [RunDocument.model_validate(run_item) for run_item in run_items]
    print_columns(
        [
            (
                run_document.id,
                run_document.status,
                f"{run_document.started_at:%Y-%m-%d %H:%M} UTC",
                run_document.trigger,
            )
            for run_document in run_documents
        ],
        empty_message="There is no run of yours that fits.",
    )


@app.command()
def show(run: RunIdArgument, *, should_print_json: JsonOption = False) -> None:
    """Show the steps of a run, what it waits for, and its result."""
    with open_gateway() as gateway_client:
        run_item = gateway_client.get_document("runs", run)
    if should_print_json:
        print_json(run_item)
        return
    run_document = RunDocument.model_validate(run_item)
    run_facts = {
        "status": run_document.status,
        "tool": run_document.tool,
        "started": f"{run_document.started_at:%Y-%m-%d %H:%M:%S} UTC",
        "ended": None if run_document.ended_at is None else f"{run_document.ended_at:%Y-%m-%d %H:%M:%S} UTC",
        "by": run_document.trigger,
        "retry of": run_document.retry_of,
        "error": None
        if run_document.error is None
        else f"{run_document.error.message} ({run_document.error.code})",
    }
    print_columns(
        [(fact_name, fact_value) for fact_name, fact_value in run_facts.items() if fact_value],
        empty_message="",
    )
    for root_step in run_document.steps:
        _print_step(root_step, "  ")
    print_result(run_document)


@app.command()
def follow(
    run: RunIdArgument,
    *,
    should_print_json: JsonOption = False,
    wait_preference: WaitOption = None,
    should_open_links: OpenLinksOption = False,
) -> None:
    """Follow a run until it ends, and print its result."""
    with open_gateway() as gateway_client:
        attend_run(
            gateway_client,
            run,
            should_print_json=should_print_json,
            wait_preference=wait_preference,
            should_open_links=should_open_links,
        )


@app.command()
def cancel(
    run: RunIdArgument,
    *,
    reason: Annotated[str | None, typer.Option(help="the reason, for the audit trail")] = None,
    should_print_json: JsonOption = False,
) -> None:
    """Cancel a run, which may clean up first."""
    request_body = {} if reason is None else {"reason": reason}
    _control_run(
        run, "cancel", request_body, f"Run {run} is asked to stop.", should_print_json=should_print_json
    )


@app.command()
def terminate(
    run: RunIdArgument,
    *,
    reason: Annotated[str, typer.Option(help="the reason, for the audit trail")],
    should_print_json: JsonOption = False,
) -> None:
    """Terminate any person's run at once, without cleanup (administrators)."""
    _control_run(
        run, "terminate", {"reason": reason}, f"Run {run} is ended.", should_print_json=should_print_json
    )


@app.command()
def retry(run: RunIdArgument, *, should_print_json: JsonOption = False) -> None:
    """Start an ended run again from the beginning, as a new run that refers to the old one."""
    with open_gateway() as gateway_client:
        run_item = gateway_client.post_document("runs", run, "retry", idempotency_key=str(uuid.uuid4()))
    if should_print_json:
        print_json(run_item)
    else:
        typer.echo(
            f"Run {escape_text(run_item['id'])} has begun. {describe_follow_command(escape_text(run_item['id']))}"
        )


def _control_run(
    run_id: str,
    operation: str,
    request_body: dict[str, str],
    success_message: str,
    *,
    should_print_json: bool,
) -> None:
    with open_gateway() as gateway_client:
        run_item: Any = gateway_client.post_document("runs", run_id, operation, request_body=request_body)
    if should_print_json:
        print_json(run_item)
    else:
        typer.echo(success_message)


def _print_step(step: StepDocument, indent: str) -> None:
    progress_text = "" if step.progress is None else f": {step.progress.message}"
    typer.echo(f"{indent}{escape_text(step.type)}  {escape_text(step.status)}{escape_text(progress_text)}")
    for pending_wait in step.waiting_for:
        address_text = "" if pending_wait.url is None else f"  {pending_wait.url}"
        typer.echo(f"{indent}  waits for {escape_text(pending_wait.title)}{escape_text(address_text)}")
    for child_step in step.children:
        _print_step(child_step, f"{indent}  ")
