"""What a run does, as it does it, by server-sent events; a connection that breaks is taken up where it ended."""

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
# What a run waits for is only told in its state, and changes with these.
_WAITS = ("authorization.", "question.")


def following(gateway: Gateway, run_id: str) -> Iterator[RunState | Happened | Progress]:
    """Everything that is told of the run, ending with the state that it ended in.

    Raises GatewaySilent where no gateway answers for minutes.
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
            # A run may join a wait that began before it, which no line tells.
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
                    # Some later gateway tells more than this program knows.
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
