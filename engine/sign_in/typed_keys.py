"""Sign-in with an API key, a personal access token or HTTP Basic, which is sent unchanged and never renewed.

A person types it on a page of Byline or, on a shared connection, an administrator sets it.
"""

import secrets
from base64 import b64encode
from typing import ClassVar, Final

import httpx2

from engine.connections.connection import (
    BEARER_PLACE,
    SHARED_HOLDER,
    Connection,
    KeyDeclaration,
    ProviderDeclaration,
    TokenPlace,
)
from engine.errors import (
    AddressRefused,
    BylineError,
    ConnectionMisconfigured,
    KeyRefused,
    UpstreamUnavailable,
)
from engine.oauth.dpop import attach_token
from engine.oauth.token_response import find_text
from engine.oauth.tokens import UpstreamTokens
from engine.outgoing.client import OutgoingTransport
from engine.sign_in.method import (
    CheckResult,
    SignInAnswer,
    SignInRecords,
    SignInResources,
    SignInResult,
    SignInStart,
)
from engine.sign_in.steps import FormField, FormStep, StepKind

_MAX_KEY_CHARS: Final = 8000
_REFUSAL_STATUSES: Final = frozenset({401, 403})


class TypedKeySignIn:
    """The keys of one connection: those that people type, or the one that an administrator set."""

    name: ClassVar[str]
    modes: ClassVar[frozenset[str]] = frozenset({"user", "shared"})
    step_kind: ClassVar[StepKind | None] = "form"
    alternatives: ClassVar[tuple[str, ...]] = ()
    is_asserted_by_idp: ClassVar[bool] = False
    secret_label: ClassVar[str]

    def __init__(self, connection: Connection, resources: SignInResources) -> None:
        self._connection = connection
        self._key_declaration = connection.key or KeyDeclaration()
        self._resources = resources

    @classmethod
    def validate_declaration(cls, connection: Connection) -> None:
        """Raise ValueError if the declaration holds what belongs to OAuth, or a key in the wrong mode."""
        if connection.provider != ProviderDeclaration() or connection.client_id or connection.mcp is not None:
            raise ValueError(f"sign_in {cls.name} knows no provider, no client_id and no mcp: leave them out")
        key_declaration = connection.key or KeyDeclaration()
        if connection.mode == "shared" and not cls._is_key_declared(key_declaration):
            raise ValueError(
                "a shared key is not typed by anybody: write key.secret, and key.username where sign_in is basic"
            )
        if connection.mode == "user" and (key_declaration.secret, key_declaration.username) != (None, None):
            raise ValueError("people type their own key: leave key.secret and key.username out")

    @classmethod
    def find_token_place(cls, connection: Connection) -> TokenPlace:
        """Return the header and the prefix that the key declares."""
        key_declaration = connection.key or KeyDeclaration()
        return TokenPlace(key_declaration.header, key_declaration.prefix)

    async def request_tokens_without_person(
        self, principal_id: str, scopes: tuple[str, ...]
    ) -> UpstreamTokens | None:
        """Return the key that an administrator set for all, or None if people type their own.

        Raises ConnectionMisconfigured if the key cannot be sent.
        """
        del principal_id
        shared_key = self._read_shared_key()
        if shared_key is None:
            return None
        key_secret, username = shared_key
        try:
            return UpstreamTokens(
                self._format_credential(key_secret, username), None, None, scopes, account=username
            )
        except KeyRefused as error:
            raise ConnectionMisconfigured(
                f"The key of connection '{self._connection.name}' cannot be sent: {error}"
            ) from None

    async def renew(self, principal_id: str, tokens: UpstreamTokens) -> UpstreamTokens | None:
        """Return the administrator's current key, or None if a person has to type another."""
        del tokens
        return await self.request_tokens_without_person(principal_id, self._connection.scopes)

    async def revoke(self, tokens: UpstreamTokens) -> bool:
        """Return False: only its owner can revoke a key, at the upstream."""
        del tokens
        return False

    async def is_offered(self) -> bool:
        """Return True: a form can always be filled in."""
        return True

    async def begin(self, start: SignInStart, records: SignInRecords) -> FormStep:
        """Return the form in which the person types the key. Nothing is stored until then."""
        del start, records
        made_at = self._key_declaration.made_at
        return FormStep(self._list_fields(), None if made_at is None else str(made_at))

    async def finish(self, answer: SignInAnswer, records: SignInRecords) -> SignInResult:
        """Return a typed key as tokens for the requested scopes. Raises as `accept_typed_key` does."""
        del records
        tokens = await self.accept_typed_key(
            answer.fields.get("secret", ""), answer.fields.get("username", ""), answer.scopes
        )
        return SignInResult(tokens, tokens.account, answer.tool_name)

    async def accept_typed_key(
        self, key_secret: str, username: str, scopes: tuple[str, ...]
    ) -> UpstreamTokens:
        """Check a typed key, if the connection declares a check, and return it as tokens for these scopes.

        Raises KeyRefused, whose message says what to do, if it cannot be a key or the upstream refuses it. Raises
        UpstreamUnavailable if the check gives no answer, and ConnectionMisconfigured if it cannot be called.
        """
        key_secret, username = key_secret.strip(), username.strip()
        credential_text = self._format_credential(key_secret, username)
        account = await self._find_account(credential_text, username)
        return UpstreamTokens(credential_text, None, None, scopes, account=account)

    async def run_checks(self) -> list[CheckResult]:
        """Check the administrator's key of a shared connection, or an invalid key where people type their own."""
        check_results, is_shared = [], self._connection.mode == "shared"
        if is_shared:
            await self.request_tokens_without_person(SHARED_HOLDER, ())
            check_results.append(CheckResult("secret", "ok", "there is one"))
        if self._key_declaration.check is None:
            explanation = (
                "the connection declares none, so that a wrong key is found out when it is first used"
            )
            return [*check_results, CheckResult("check", "unclear", explanation)]
        key_secret, username = self._read_shared_key() or (secrets.token_urlsafe(24), "nobody")
        return [*check_results, await self._check_key(key_secret, username, is_invalid_key=not is_shared)]

    @classmethod
    def _is_key_declared(cls, key_declaration: KeyDeclaration) -> bool:
        """Return whether the declaration holds the key of a shared connection."""
        return key_declaration.secret is not None

    def _list_fields(self) -> tuple[FormField, ...]:
        return (FormField("secret", self.secret_label, is_secret=True),)

    def _read_shared_key(self) -> tuple[str, str] | None:
        """Return the secret and the username that an administrator set, or None if people type their own."""
        secret_reference = self._key_declaration.secret
        if self._connection.mode == "user" or secret_reference is None:
            return None
        key_secret = self._resources.secret_reader.read_secret(self._connection.name, secret_reference)
        return key_secret, self._key_declaration.username or ""

    def _format_credential(self, key_secret: str, username: str) -> str:
        """Return what requests carry of a key. Raises KeyRefused if it cannot be a key."""
        _require_plausible_size(key_secret, username)
        if not key_secret.isascii() or not key_secret.isprintable() or " " in key_secret:
            raise KeyRefused(
                "A key holds no spaces, line breaks or letters beyond ASCII: copy it again, and it alone."
            )
        return key_secret

    async def _check_key(self, key_secret: str, username: str, *, is_invalid_key: bool) -> CheckResult:
        checked_part = "check"
        try:
            account = (await self.accept_typed_key(key_secret, username, ())).account
        except KeyRefused as error:
            if is_invalid_key:
                return CheckResult(checked_part, "ok", "the upstream refuses a key that nobody issued")
            return CheckResult(checked_part, "wrong", str(error))
        except BylineError as error:
            return CheckResult(checked_part, "wrong", f"{error} Check base_url and key.check.path.")
        if is_invalid_key:
            return CheckResult(
                checked_part, "wrong", "it succeeds with a key that nobody issued: name another path"
            )
        return CheckResult(
            checked_part, "ok", f"the upstream takes the key, which is {account or 'nobody in particular'}'s"
        )

    async def _find_account(self, credential_text: str, username: str) -> str:
        """Return the account that the response to the check names, or the username that was typed."""
        key_check, connection_title = self._key_declaration.check, self._connection.title
        if key_check is None:
            return username
        check_url = f"{str(self._connection.base_url).rstrip('/')}{key_check.path}"
        try:
            async with httpx2.AsyncClient(
                transport=OutgoingTransport(self._resources.outgoing)
            ) as http_client:
                request = http_client.build_request("GET", check_url, headers={"Accept": "application/json"})
                attach_token(
                    request, credential_text, None, token_place=self.find_token_place(self._connection)
                )
                response = await http_client.send(request)
        except AddressRefused as error:
            raise ConnectionMisconfigured(
                f"The check of connection '{self._connection.name}' cannot be made: {error}"
            ) from None
        except httpx2.HTTPError:
            raise UpstreamUnavailable(
                f"The answer of {connection_title} cannot be read. Try again later."
            ) from None
        if response.status_code in _REFUSAL_STATUSES:
            raise KeyRefused(
                f"{connection_title} does not accept this: check that it is whole and still in "
                "force, and type it again."
            )
        if not response.is_success:
            raise UpstreamUnavailable(
                f"{connection_title} cannot say whether this is right ({response.status_code}). Try again later.",
                status_code=response.status_code,
            )
        return (find_text(response.content, key_check.account) if key_check.account else "") or username


class ApiKeySignIn(TypedKeySignIn):
    """An API key, in the header that its connection declares."""

    name: ClassVar[str] = "api_key"
    secret_label: ClassVar[str] = "API key"

    @classmethod
    def validate_declaration(cls, connection: Connection) -> None:
        """Raise ValueError if the declaration lacks `key`, or what every typed key needs."""
        if connection.key is None:
            raise ValueError("sign_in api_key needs key: write it")
        super().validate_declaration(connection)


class PersonalAccessTokenSignIn(TypedKeySignIn):
    """A personal access token, by default sent as a bearer token."""

    name: ClassVar[str] = "personal_access_token"
    secret_label: ClassVar[str] = "Personal access token"

    @classmethod
    def find_token_place(cls, connection: Connection) -> TokenPlace:
        """Return the header that the key declares, with `Bearer` before the token unless the key declares a prefix."""
        token_place = super().find_token_place(connection)
        return token_place._replace(value_prefix=token_place.value_prefix or BEARER_PLACE.value_prefix)


class BasicSignIn(TypedKeySignIn):
    """A username and a password (RFC 7617)."""

    name: ClassVar[str] = "basic"
    secret_label: ClassVar[str] = "Password"

    @classmethod
    def find_token_place(cls, connection: Connection) -> TokenPlace:
        """Return the header that the key declares, with `Basic` before the credentials."""
        return super().find_token_place(connection)._replace(value_prefix="Basic ")

    @classmethod
    def _is_key_declared(cls, key_declaration: KeyDeclaration) -> bool:
        return super()._is_key_declared(key_declaration) and key_declaration.username is not None

    def _list_fields(self) -> tuple[FormField, ...]:
        username_label = f"Username at {self._connection.title}"
        return (FormField("username", username_label, is_secret=False), *super()._list_fields())

    def _format_credential(self, key_secret: str, username: str) -> str:
        if not username:
            raise KeyRefused("Nothing was typed: fill in every field.")
        _require_plausible_size(key_secret, username)
        if ":" in username or not (username + key_secret).isprintable():
            raise KeyRefused(
                "A username holds no colon, and neither part holds a line break: copy them again."
            )
        return b64encode(f"{username}:{key_secret}".encode()).decode()


def _require_plausible_size(key_secret: str, username: str) -> None:
    if not key_secret:
        raise KeyRefused("Nothing was typed: fill in every field.")
    if len(key_secret) + len(username) > _MAX_KEY_CHARS:
        raise KeyRefused(
            f"That is longer than any key is: copy the key alone, of at most {_MAX_KEY_CHARS} characters."
        )
