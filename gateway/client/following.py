"""Follows a run by server-sent events. After a broken connection it resumes at the last event."""

import time
from collections.abc import Iterator
from typing import Final

import httpx2
from pydantic import ValidationError

from gateway.client.answers import Happened, Progress, RunState
from gateway.client.api import Gateway
from gateway.client.failures import GatewaySilent

_TRIES = 12
_LONGEST_PAUSE_SECONDS = 30.0
_SILENCE_SECONDS: Final = (1.0, 2.0, 4.0, 8.0)
# Only the state of a run holds its waits. Audit events of these kinds change them.
_WAITS = ("authorization.", "question.")


def following(gateway: Gateway, run_id: str) -> Iterator[RunState | Happened | Progress]:
    """Yield the states, audit events and progress of the run. The last item is the state that it ended in.

    Raises GatewayUnreachable if no gateway answers for several minutes.
    """
    follower = _Follower(gateway, run_id)
    tried = silent = 0
    while True:
        try:
            state = follower.state()
            yield state
            if state.has_ended:
                return
            for told in follower.told(_SILENCE_SECONDS[min(silent, len(_SILENCE_SECONDS) - 1)]):
                tried = silent = 0
                yield told
                if isinstance(told, RunState) and told.has_ended:
                    return
        except httpx2.ReadTimeout:
            # No event reports that a run joins a wait that began before the run.
            tried, silent = 0, silent + 1
        except (httpx2.HTTPError, GatewaySilent) as error:
            tried += 1
            if tried == _TRIES:
                raise GatewaySilent(
                    f"The gateway at {gateway.url} does not answer any more. The run goes on without it."
                ) from error
            time.sleep(min(0.25 * 2**tried, _LONGEST_PAUSE_SECONDS))


class _Follower:
    def __init__(self, gateway: Gateway, run_id: str) -> None:
        self._gateway = gateway
        self._run_id = run_id
        self._seen: str | None = None

    def state(self) -> RunState:
        return RunState.model_validate(self._gateway.get("runs", self._run_id))

    def told(self, silence: float) -> Iterator[RunState | Happened | Progress]:
        path = ("runs", self._run_id, "events")
        with self._gateway.events(*path, after=self._seen, silence=silence) as events:
            for event in events:
                self._seen = event.id or self._seen
                try:
                    yield from self._read(event)
                except ValidationError:
                    # A newer gateway may send events that this program does not know.
                    continue

    def _read(self, event: httpx2.ServerSentEvent) -> Iterator[RunState | Happened | Progress]:
        if event.event == "ended":
            yield RunState.model_validate_json(event.data)
        elif event.event == "progress":
            yield Progress.model_validate_json(event.data)
        elif event.event.startswith(_WAITS):
            yield self.state()
        elif event.data:
            yield Happened.model_validate_json(event.data)
