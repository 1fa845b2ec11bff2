"""Follows a run by server-sent events. After a broken connection it resumes at the last event."""

import time
from collections.abc import Iterator
from typing import Final

import httpx2
from pydantic import ValidationError

from gateway.client.api_documents import AuditEventDocument, ProgressDocument, RunDocument
from gateway.client.command_errors import GatewayUnreachable
from gateway.client.gateway_client import GatewayClient

_MAX_ATTEMPTS = 12
_MAX_PAUSE_SECONDS = 30.0
_SILENCE_SECONDS: Final = (1.0, 2.0, 4.0, 8.0)
# Only the state of a run holds its waits. Audit events of these kinds change them.
_WAIT_EVENT_PREFIXES = ("authorization.", "question.")


def follow_run(
    gateway_client: GatewayClient, run_id: str
) -> Iterator[RunDocument | AuditEventDocument | ProgressDocument]:
    """Yield the states, audit events and progress of the run. The last item is the state that it ended in.

    Raises GatewayUnreachable if no gateway answers for several minutes.
    """
    run_follower = _RunFollower(gateway_client, run_id)
    failed_attempts = silence_count = 0
    while True:
        try:
            run_state = run_follower.fetch_state()
            yield run_state
            if run_state.has_ended:
                return
            for run_update in run_follower.stream_updates(
                _SILENCE_SECONDS[min(silence_count, len(_SILENCE_SECONDS) - 1)]
            ):
                failed_attempts = silence_count = 0
                yield run_update
                if isinstance(run_update, RunDocument) and run_update.has_ended:
                    return
        except httpx2.ReadTimeout:
            # No event reports that a run joins a wait that began before the run.
            failed_attempts, silence_count = 0, silence_count + 1
        except (httpx2.HTTPError, GatewayUnreachable) as error:
            failed_attempts += 1
            if failed_attempts == _MAX_ATTEMPTS:
                raise GatewayUnreachable(
                    f"The gateway at {gateway_client.gateway_url} does not answer any more. The run goes on without it."
                ) from error
            time.sleep(min(0.25 * 2**failed_attempts, _MAX_PAUSE_SECONDS))


class _RunFollower:
    def __init__(self, gateway_client: GatewayClient, run_id: str) -> None:
        self._gateway_client = gateway_client
        self._run_id = run_id
        self._last_event_id: str | None = None

    def fetch_state(self) -> RunDocument:
        return RunDocument.model_validate(self._gateway_client.get_document("runs", self._run_id))

    def stream_updates(
        self, silence_seconds: float
    ) -> Iterator[RunDocument | AuditEventDocument | ProgressDocument]:
        events_path = ("runs", self._run_id, "events")
        with self._gateway_client.stream_events(
            *events_path, last_event_id=self._last_event_id, silence_seconds=silence_seconds
        ) as event_source:
            for server_event in event_source:
                self._last_event_id = server_event.id or self._last_event_id
                try:
                    yield from self._parse_event(server_event)
                except ValidationError:
                    # A newer gateway may send events that this program does not know.
                    continue

    def _parse_event(
        self, server_event: httpx2.ServerSentEvent
    ) -> Iterator[RunDocument | AuditEventDocument | ProgressDocument]:
        if server_event.event == "ended":
            yield RunDocument.model_validate_json(server_event.data)
        elif server_event.event == "progress":
            yield ProgressDocument.model_validate_json(server_event.data)
        elif server_event.event.startswith(_WAIT_EVENT_PREFIXES):
            yield self.fetch_state()
        elif server_event.data:
            yield AuditEventDocument.model_validate_json(server_event.data)
