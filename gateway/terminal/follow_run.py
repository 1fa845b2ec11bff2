"""Follows a run at the terminal: reports what it does, asks its questions, and says how to follow it again."""

import contextlib
import json
import time
import webbrowser
from collections.abc import Iterator
from typing import Annotated, Final

import typer

from gateway.client.api_documents import AuditEventDocument, ProgressDocument, RunDocument, WaitDocument
from gateway.client.command_errors import CommandFailed, ResourceNotFound
from gateway.client.gateway_client import GatewayClient
from gateway.client.run_updates import follow_run
from gateway.terminal.api_client import print_json
from gateway.terminal.safe_text import escape_text
from gateway.terminal.terminal_questions import ask_at_terminal, has_terminal

WAITING_EXIT_CODE: Final = 3
"""The exit code of a command that ends while its run waits for somebody."""

# Branches of a run begin to wait within moments of each other. After this pause, all of their links are known.
_QUIET_PERIOD_SECONDS = 0.6

OpenLinksOption = Annotated[bool, typer.Option("--open/--no-open", help="also open each link in a browser")]
WaitOption = Annotated[
    bool | None,
    typer.Option(
        "--wait/--no-wait",
        help="wait while somebody has to act, or exit with 3 in that case; --json implies --no-wait",
        show_default=False,
    ),
]


def attend_run(
    gateway_client: GatewayClient,
    run_id: str,
    *,
    should_print_json: bool,
    wait_preference: bool | None,
    should_open_links: bool,
) -> None:
    """Follow a run, print its result, and exit with the code for its outcome.

    Raises typer.Exit if the run waits for somebody, and CommandFailed if it did not complete.
    """
    run_reporter = _RunReporter(
        gateway_client,
        should_open_links=should_open_links,
        should_wait=not should_print_json if wait_preference is None else wait_preference,
    )
    with _explain_return(run_id):
        while True:
            run_reporter.report_until_left(run_id)
            # This last request tells the gateway that the caller has the outcome.
            run_document = gateway_client.get_document("runs", run_id)
            run_state = RunDocument.model_validate(run_document)
            run_reporter.report_state(run_state)
            if run_state.status != "running":
                break
    if should_print_json:
        print_json(run_document)
    elif run_state.status == "completed":
        print_result(run_state)
    if not run_state.has_ended:
        typer.echo(f"The run waits for somebody. {describe_follow_command(run_id)}", err=True)
        raise typer.Exit(WAITING_EXIT_CODE)
    if run_state.status != "completed":
        raise CommandFailed(describe_failure(run_state))


def print_result(run_state: RunDocument) -> None:
    """Print what a run returned, as indented JSON."""
    if run_state.result is not None:
        for result_line in json.dumps(run_state.result, indent=2, ensure_ascii=False).split("\n"):
            typer.echo(escape_text(result_line))


def describe_failure(run_state: RunDocument) -> str:
    """Describe why a run returned nothing."""
    failure_text = run_state.status.replace("_", " ") if run_state.error is None else run_state.error.message
    return f"{run_state.tool} did not succeed: {failure_text}"


def describe_follow_command(run_id: str) -> str:
    """Return a sentence with the command that follows a run."""
    return f"Follow it with: byline runs follow {run_id}"


class _RunReporter:
    """Reports one run on standard error, and remembers what it has reported."""

    def __init__(self, gateway_client: GatewayClient, *, should_open_links: bool, should_wait: bool) -> None:
        self._gateway_client = gateway_client
        self._should_open_links = should_open_links
        self._should_wait = should_wait
        self._reported_steps: set[str] = set()
        self._reported_progress = ""
        self._reported_waits: set[tuple[str, str, str | None]] = set()

    def report_until_left(self, run_id: str) -> None:
        """Report what happens until the run has ended, or until it waits if the command is not to wait for people."""
        for run_update in follow_run(self._gateway_client, run_id):
            match run_update:
                case RunDocument():
                    self.report_state(run_update)
                    if run_update.status == "waiting" and not self._should_wait:
                        time.sleep(_QUIET_PERIOD_SECONDS)
                        return
                case ProgressDocument():
                    self._report_progress(run_update)
                case AuditEventDocument():
                    _report_action(run_update)

    def report_state(self, run_state: RunDocument) -> None:
        """Report new steps of the run, and what they newly wait for."""
        for step in run_state.iterate_steps():
            if step.workflow_id not in self._reported_steps:
                self._reported_steps.add(step.workflow_id)
                _print_message(f"→ {step.type}")
        waits_by_key = {
            (pending_wait.kind, pending_wait.title, pending_wait.url): pending_wait
            for pending_wait in run_state.list_waits()
        }
        new_waits = [
            pending_wait
            for wait_key, pending_wait in waits_by_key.items()
            if wait_key not in self._reported_waits
        ]
        if self._reported_waits and not waits_by_key and not run_state.has_ended:
            _print_message("The run goes on.")
        self._reported_waits = set(waits_by_key)
        for pending_wait in new_waits:
            self._report_wait(pending_wait)
        for pending_wait in new_waits:
            self._assist_person(pending_wait)

    def _report_progress(self, progress: ProgressDocument) -> None:
        done_text = "" if progress.done is None else f"{progress.done:g}"
        share_text = f"{done_text} of {progress.of:g}" if done_text and progress.of is not None else done_text
        progress_text = " – ".join(text_part for text_part in (progress.message, share_text) if text_part)
        if progress_text != self._reported_progress:
            self._reported_progress = progress_text
            _print_message(f"  {progress_text}")

    def _report_wait(self, pending_wait: WaitDocument) -> None:
        if pending_wait.url is None:
            awaited_party = (
                "somebody else"
                if pending_wait.role is None
                else f"somebody with the role {pending_wait.role}"
            )
            _print_message(f"Waits for {awaited_party}: {pending_wait.title}")
        else:
            _print_message(f"Waits for you: {pending_wait.title}")
            _print_message(f"  {pending_wait.url}")

    def _assist_person(self, pending_wait: WaitDocument) -> None:
        """Ask the question at the terminal if possible, or else open its page if links are to be opened."""
        if pending_wait.url is None:
            return
        if pending_wait.kind == "question" and self._should_wait and has_terminal():
            ask_at_terminal(self._gateway_client, pending_wait)
        elif self._should_open_links and pending_wait.url.startswith(f"{self._gateway_client.gateway_url}/"):
            webbrowser.open(pending_wait.url)


@contextlib.contextmanager
def _explain_return(run_id: str) -> Iterator[None]:
    """Print how to follow the run again if Ctrl-C or a failure ends the command before the run has ended."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"\nThe run goes on. {describe_follow_command(run_id)}", err=True)
        raise typer.Exit(130) from None
    except ResourceNotFound:
        raise
    except CommandFailed:
        typer.echo(describe_follow_command(run_id), err=True)
        raise


def _report_action(audit_event: AuditEventDocument) -> None:
    event_fields = audit_event.event
    if audit_event.kind not in {"action.ended", "action.refused"}:
        return
    record_text = (
        f" {event_fields['system']}:{event_fields['record_id']}" if event_fields.get("record_id") else ""
    )
    verdict = event_fields.get("verdict") or event_fields.get("error")
    _print_message(f"  {event_fields.get('action', 'an action')}{record_text}: {verdict}")


def _print_message(message_text: str) -> None:
    typer.echo(escape_text(message_text), err=True)
