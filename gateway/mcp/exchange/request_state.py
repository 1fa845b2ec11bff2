"""The request state that a client carries from one request of a call to the next, and how it is sealed."""

from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from pydantic import BaseModel, ConfigDict, Field

from engine.settings import MAX_WAIT
from engine.vault.vault import Vault
from gateway.mcp.exchange.progress_cursor import ProgressCursor


class RequestState(BaseModel):
    """Which run serves the call, which of its waits the client knows of, and how far its progress was reported.

    The aliases are the names in sealed states, which a client may carry for as long as a run waits.
    """

    model_config = ConfigDict(populate_by_name=True)

    run_id: str = Field(alias="run")
    announced_waits: dict[str, str] = Field(default={}, alias="told")
    """The id of each authorization request and question that the client knows of, by the key of its input request."""
    round_number: int = Field(default=0, alias="round")
    progress_cursor: ProgressCursor = Field(default_factory=ProgressCursor, alias="heard")

    def to_text(self) -> str:
        """Return the text that `model_validate_json` reads."""
        return self.model_dump_json(by_alias=True)


def create_request_state_boundary(vault: Vault, public_url: str) -> RequestStateBoundary:
    """Create the SDK's boundary that seals request states and binds them to their principal.

    All gateways derive the same keys from the master key. A sealed state is valid for as long as a run may wait.
    """
    state_security = RequestStateSecurity(
        keys=vault.derive_keys("mcp request state"), ttl=MAX_WAIT.total_seconds()
    )
    return RequestStateBoundary(state_security, default_audience=public_url)
