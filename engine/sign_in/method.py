"""What a way to sign in is: what it needs, how it gets, renews and revokes tokens, and what a person does for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

from engine.connections.connection import Connection, TokenPlace
from engine.connections.secret_reader import SecretReader
from engine.grants.token_source import TokenSource
from engine.oauth.discovery import Discovery
from engine.oauth.registration import ClientRegistrations
from engine.oauth.tokens import UpstreamTokens
from engine.outgoing.client import OutgoingClient
from engine.sign_in.authorization_attempts import AuthorizationAttempts
from engine.sign_in.identity_provider import IdentityProvider
from engine.sign_in.pending_device_codes import PendingDeviceCodes
from engine.sign_in.steps import SignInStep, StepKind


@dataclass(frozen=True, slots=True)
class SignInResources:
    """What the ways to sign in share in one process.

    Without `identity_provider` no identity assertions are requested.
    """

    secret_reader: SecretReader
    discovery: Discovery
    outgoing: OutgoingClient
    redirect_uri: str
    registrations: ClientRegistrations | None = None
    identity_provider: IdentityProvider | None = None


@dataclass(frozen=True, slots=True)
class SignInRecords:
    """Where a sign-in that a person has begun is stored until they finish it."""

    authorization_attempts: AuthorizationAttempts
    pending_device_codes: PendingDeviceCodes


@dataclass(frozen=True, slots=True)
class SignInStart:
    """A sign-in that a person begins, to answer an authorization request.

    `account` is the account that is asked for, if it matters which. `is_additional_account` says that others are
    connected already. `tool_name` is the tool that shall use the account, and is empty if every tool shall.
    """

    request_id: str
    principal_id: str
    scopes: tuple[str, ...]
    account: str = ""
    is_additional_account: bool = False
    browser_session: str = ""
    tool_name: str = ""


@dataclass(frozen=True, slots=True)
class SignInAnswer:
    """What a person, or the provider's redirect of their browser, brings to finish a sign-in.

    `attempt_secret` is what the way sealed when the sign-in began. `is_awaited` says that the authorization request
    is open, or was granted meanwhile.
    """

    request_id: str
    scopes: tuple[str, ...]
    fields: Mapping[str, str] = field(repr=False)
    attempt_secret: str = field(default="", repr=False)
    tool_name: str = ""
    is_awaited: bool = True


@dataclass(frozen=True, slots=True)
class SignInResult:
    """The tokens of a finished sign-in, their account, and the tool for which it is chosen (empty for every tool)."""

    tokens: UpstreamTokens = field(repr=False)
    account: str
    tool_name: str


@dataclass(frozen=True, slots=True)
class SignInDeclined:
    """The person said no at the provider."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one part of a check. `unclear` means that only a person's sign-in can tell."""

    checked_part: str
    state: Literal["ok", "unclear", "wrong"]
    explanation: str


class SignInMethod(TokenSource, Protocol):
    """One way to sign in to the system of one connection.

    `name` is what a connection's declaration calls it, and `modes` are the connection modes that may declare it.
    `step_kind` is the kind of step that a person takes, None if nobody takes part. `alternatives` are the ways that a
    person may take instead. `is_asserted_by_idp` says that nobody need act if the identity provider asserts who they
    are.
    """

    name: ClassVar[str]
    modes: ClassVar[frozenset[str]]
    step_kind: ClassVar[StepKind | None]
    alternatives: ClassVar[tuple[str, ...]]
    is_asserted_by_idp: ClassVar[bool]

    def __init__(self, connection: Connection, resources: SignInResources) -> None:
        """Raise ConnectionMisconfigured if a secret is missing or a key cannot be read."""

    @classmethod
    def validate_declaration(cls, connection: Connection) -> None:
        """Raise ValueError, whose message says what to write, if the declaration lacks what this way needs."""

    @classmethod
    def find_token_place(cls, connection: Connection) -> TokenPlace:
        """Return the header in which requests to the upstream carry the token or key."""

    async def run_checks(self) -> list[CheckResult]:
        """Check the sign-in against its provider, for which no person has to act and no token is stored."""


@runtime_checkable
class PersonalSignInMethod(SignInMethod, Protocol):
    """A way to sign in for which a person takes a step."""

    async def is_offered(self) -> bool:
        """Return whether a person can take the step. Raises BylineError if that cannot be found out now."""

    async def begin(self, start: SignInStart, records: SignInRecords) -> SignInStep:
        """Return the step that the person takes. Raises AuthorizationRefused if there is none for them."""

    async def finish(
        self, answer: SignInAnswer, records: SignInRecords
    ) -> SignInResult | SignInDeclined | SignInStep | None:
        """Return the result, or the step that the person has still to take, or None if no sign-in was begun.

        Raises AuthorizationRefused or AuthorizationExpired, whose messages say what to do.
        """
