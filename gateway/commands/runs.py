"""`byline runs`: shows your runs and controls them. Each command is one request."""

import uuid
from typing import Annotated, Any

import typer

from gateway.client.answers import RunState, Step
from gateway.commands.attending import OpenLinks, WaitForPeople, attend, how_to_follow, print_result
from gateway.commands.columns import print_columns
from gateway.commands.connected import AsJson, gateway_here, print_json
from gateway.commands.plain import plain

app = typer.Typer(help="Your runs: what they do, and steering them.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(help="a run's id")]


@app.command("list")
def list_runs(
    tool: Annotated[str | None, typer.Option(help="runs of this tool alone")] = None,
    status: Annotated[str | None, typer.Option(help="runs in this state alone, such as waiting")] = None,
    limit: Annotated[int, typer.Option(min=1, help="at most so many, the newest")] = 20,
    *,
    as_json: AsJson = False,
) -> None:
    """List your runs, the newest first."""
    with gateway_here() as gateway:
        found = gateway.items("runs", limit=limit, tool=tool, status=status)
    if as_json:
        print_json({"items": found})
        return
    known = [RunState.model_validate(item) for item in found]
    print_columns(
        [(run.id, run.status, f"{run.started_at:%Y-%m-%d %H:%M} UTC", run.trigger) for run in known],
        otherwise="There is no run of yours that fits.",
    )


@app.command()
def show(run: RunId, *, as_json: AsJson = False) -> None:
    """Show what a run does or waits for, and what it returned."""
    with gateway_here() as gateway:
        found = gateway.get("runs", run)
    if as_json:
        print_json(found)
        return
    state = RunState.model_validate(found)
    facts = {
        "status": state.status,
        "tool": state.tool,
        "started": f"{state.started_at:%Y-%m-%d %H:%M:%S} UTC",
        "ended": None if state.ended_at is None else f"{state.ended_at:%Y-%m-%d %H:%M:%S} UTC",
        "by": state.trigger,
        "retry of": state.retry_of,
        "error": None if state.error is None else f"{state.error.message} ({state.error.code})",
    }
    print_columns([(name, value) for name, value in facts.items() if value], otherwise="")
    for step in state.steps:
        _show_step(step, "  ")
    print_result(state)


@app.command()
def follow(
    run: RunId,
    *,
    as_json: AsJson = False,
    wait: WaitForPeople = None,
    open_links: OpenLinks = False,
) -> None:
    """Stay with a run until it has ended, and print what it returns."""
    with gateway_here() as gateway:
        attend(gateway, run, as_json=as_json, wait=wait, open_links=open_links)


@app.command()
def cancel(
    run: RunId,
    *,
    reason: Annotated[str | None, typer.Option(help="why, for the audit trail")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a run to stop; it may tidy up first."""
    body = {} if reason is None else {"reason": reason}
    _steer(run, "cancel", body, f"Run {run} is asked to stop.", as_json=as_json)


@app.command()
def terminate(
    run: RunId,
    *,
    reason: Annotated[str, typer.Option(help="why, for the audit trail")],
    as_json: AsJson = False,
) -> None:
    """End anybody's run at once, without another step of it (administrators)."""
    _steer(run, "terminate", {"reason": reason}, f"Run {run} is ended.", as_json=as_json)


@app.command()
def retry(run: RunId, *, as_json: AsJson = False) -> None:
    """Begin a run again from the start, as a new run that names the old one."""
    with gateway_here() as gateway:
        found = gateway.post("runs", run, "retry", key=str(uuid.uuid4()))
    if as_json:
        print_json(found)
    else:
        typer.echo(f"Run {plain(found['id'])} has begun. {how_to_follow(plain(found['id']))}")


def _steer(run: str, what: str, body: dict[str, str], told: str, *, as_json: bool) -> None:
    with gateway_here() as gateway:
        found: Any = gateway.post("runs", run, what, body=body)
    if as_json:
        print_json(found)
    else:
        typer.echo(told)


def _show_step(step: Step, indent: str) -> None:
    said = "" if step.progress is None else f": {step.progress.message}"
    typer.echo(f"{indent}{plain(step.type)}  {plain(step.status)}{plain(said)}")
    for wait in step.waiting_for:
        where = "" if wait.url is None else f"  {wait.url}"
        typer.echo(f"{indent}  waits for {plain(wait.title)}{plain(where)}")
    for child in step.children:
        _show_step(child, f"{indent}  ")
