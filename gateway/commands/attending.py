"""Follows a run at the terminal: reports what it does, asks its questions, and says how to follow it again."""

import contextlib
import json
import time
import webbrowser
from collections.abc import Iterator
from typing import Annotated, Final

import typer

from gateway.client.answers import Happened, Progress, RunState, Wait
from gateway.client.api import Gateway
from gateway.client.failures import CommandFailed, NotThere
from gateway.client.following import following
from gateway.commands.asking import ask_here, somebody_is_there
from gateway.commands.connected import print_json
from gateway.commands.plain import plain

WAITS: Final = 3
"""The exit code of a command that ends while its run waits for somebody."""

# Branches of a run begin to wait within moments of each other. After this pause, all of their links are known.
_SETTLED_SECONDS = 0.6

OpenLinks = Annotated[bool, typer.Option("--open/--no-open", help="open each link in a browser as well")]
WaitForPeople = Annotated[
    bool | None,
    typer.Option(
        "--wait/--no-wait",
        help="stay while somebody has to act, or exit with 3 then, which is what --json does",
        show_default=False,
    ),
]


def attend(gateway: Gateway, run_id: str, *, as_json: bool, wait: bool | None, open_links: bool) -> None:
    """Follow a run, print its result, and exit with the code for its outcome.

    Raises typer.Exit if the run waits for somebody, and CommandFailed if it did not complete.
    """
    attending = _Attending(gateway, opens=open_links, waits=not as_json if wait is None else wait)
    with _leaving(run_id):
        while True:
            attending.until_left(run_id)
            # This last request tells the gateway that the caller has the outcome.
            document = gateway.get("runs", run_id)
            state = RunState.model_validate(document)
            attending.tell_state(state)
            if state.status != "running":
                break
    if as_json:
        print_json(document)
    elif state.status == "completed":
        print_result(state)
    if not state.has_ended:
        typer.echo(f"The run waits for somebody. {how_to_follow(run_id)}", err=True)
        raise typer.Exit(WAITS)
    if state.status != "completed":
        raise CommandFailed(why(state))


def print_result(state: RunState) -> None:
    """Print what a run returned, as indented JSON."""
    if state.result is not None:
        for line in json.dumps(state.result, indent=2, ensure_ascii=False).split("\n"):
            typer.echo(plain(line))


def why(state: RunState) -> str:
    """Describe why a run returned nothing."""
    said = state.status.replace("_", " ") if state.error is None else state.error.message
    return f"{state.tool} did not succeed: {said}"


def how_to_follow(run_id: str) -> str:
    """Return a sentence with the command that follows a run."""
    return f"Follow it with: byline runs follow {run_id}"


class _Attending:
    """Reports one run on standard error, and remembers what it has reported."""

    def __init__(self, gateway: Gateway, *, opens: bool, waits: bool) -> None:
        self._gateway = gateway
        self._opens = opens
        self._waits = waits
        self._steps: set[str] = set()
        self._said = ""
        self._asked: set[tuple[str, str, str | None]] = set()

    def until_left(self, run_id: str) -> None:
        """Report what happens until the run has ended, or until it waits if the command is not to wait for people."""
        for told in following(self._gateway, run_id):
            match told:
                case RunState():
                    self.tell_state(told)
                    if told.status == "waiting" and not self._waits:
                        time.sleep(_SETTLED_SECONDS)
                        return
                case Progress():
                    self._tell_progress(told)
                case Happened():
                    _tell_action(told)

    def tell_state(self, state: RunState) -> None:
        """Report new steps of the run, and what they newly wait for."""
        for step in state.all_steps():
            if step.workflow_id not in self._steps:
                self._steps.add(step.workflow_id)
                _say(f"→ {step.type}")
        waits = {(wait.kind, wait.title, wait.url): wait for wait in state.waits()}
        new = [wait for known, wait in waits.items() if known not in self._asked]
        if self._asked and not waits and not state.has_ended:
            _say("The run goes on.")
        self._asked = set(waits)
        for wait in new:
            self._tell_wait(wait)
        for wait in new:
            self._help(wait)

    def _tell_progress(self, progress: Progress) -> None:
        done = "" if progress.done is None else f"{progress.done:g}"
        share = f"{done} of {progress.of:g}" if done and progress.of is not None else done
        said = " – ".join(part for part in (progress.message, share) if part)
        if said != self._said:
            self._said = said
            _say(f"  {said}")

    def _tell_wait(self, wait: Wait) -> None:
        if wait.url is None:
            whom = "somebody else" if wait.role is None else f"somebody with the role {wait.role}"
            _say(f"Waits for {whom}: {wait.title}")
        else:
            _say(f"Waits for you: {wait.title}")
            _say(f"  {wait.url}")

    def _help(self, wait: Wait) -> None:
        """Ask the question at the terminal if possible, or else open its page if links are to be opened."""
        if wait.url is None:
            return
        if wait.kind == "question" and self._waits and somebody_is_there():
            ask_here(self._gateway, wait)
        elif self._opens and wait.url.startswith(f"{self._gateway.url}/"):
            webbrowser.open(wait.url)


@contextlib.contextmanager
def _leaving(run_id: str) -> Iterator[None]:
    """Print how to follow the run again if Ctrl-C or a failure ends the command before the run has ended."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"\nThe run goes on. {how_to_follow(run_id)}", err=True)
        raise typer.Exit(130) from None
    except NotThere:
        raise
    except CommandFailed:
        typer.echo(how_to_follow(run_id), err=True)
        raise


def _tell_action(happened: Happened) -> None:
    event = happened.event
    if happened.kind not in {"action.ended", "action.refused"}:
        return
    record = f" {event['system']}:{event['record_id']}" if event.get("record_id") else ""
    verdict = event.get("verdict") or event.get("error")
    _say(f"  {event.get('action', 'an action')}{record}: {verdict}")


def _say(text: str) -> None:
    typer.echo(plain(text), err=True)
