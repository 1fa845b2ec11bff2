"""Stays with a run: tells what it does, passes on what it asks of people, and knows how to leave it to itself."""

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
"""The exit code of a command that leaves a run which waits for somebody."""

# Branches of a run ask within moments of each other: whoever is left with the links is left with all of them.
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
    """Stay with a run, print what came of it, and exit with the code that says so."""
    attending = _Attending(gateway, opens=open_links, waits=not as_json if wait is None else wait)
    with _leaving(run_id):
        while True:
            attending.until_left(run_id)
            # Asked for once more, so that the gateway knows that its caller has the outcome.
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
    """What a run returned, as JSON that people can read."""
    if state.result is not None:
        for line in json.dumps(state.result, indent=2, ensure_ascii=False).split("\n"):
            typer.echo(plain(line))


def why(state: RunState) -> str:
    """Why a run returned nothing."""
    said = state.status.replace("_", " ") if state.error is None else state.error.message
    return f"{state.tool} did not succeed: {said}"


def how_to_follow(run_id: str) -> str:
    """What to type to come back to a run."""
    return f"Follow it with: byline runs follow {run_id}"


class _Attending:
    """What has been told of one run so far, on standard error."""

    def __init__(self, gateway: Gateway, *, opens: bool, waits: bool) -> None:
        self._gateway = gateway
        self._opens = opens
        self._waits = waits
        self._steps: set[str] = set()
        self._said = ""
        self._asked: set[tuple[str, str, str | None]] = set()

    def until_left(self, run_id: str) -> None:
        """Tell what happens until the run has ended, or waits where nobody is to wait for people."""
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
        """Tell what is new about the steps of the run, and about what they wait for."""
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
        """Spare the person the way to the page, or at least the typing of its address."""
        if wait.url is None:
            return
        if wait.kind == "question" and self._waits and somebody_is_there():
            ask_here(self._gateway, wait)
        elif self._opens and wait.url.startswith(f"{self._gateway.url}/"):
            webbrowser.open(wait.url)


@contextlib.contextmanager
def _leaving(run_id: str) -> Iterator[None]:
    """Say how to come back where somebody, or the gateway, ends the command before the run has ended."""
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
