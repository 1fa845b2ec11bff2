"""Signs a person in by authorization code with PKCE over the loopback (RFC 8252). It never sees a password."""

import secrets
from collections.abc import Callable
from typing import Final

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import OAuth2Client
from mcp.client.auth import OAuthFlowError
from mcp.client.auth.utils import validate_authorization_response_iss
from pydantic import ValidationError

from gateway.client.credentials import TIMEOUT, signed_in
from gateway.client.discovery import SignInService, discover, register
from gateway.client.failures import CommandFailed, GatewaySilent, Refused
from gateway.client.loopback import REGISTERED_REDIRECT, Loopback
from gateway.client.stored_tokens import Kept, Registration, SignIn, StoredTokens

ANSWER_WITHIN_SECONDS: Final = 300.0


def sign_in(
    gateway: str, stored: StoredTokens, *, client_id: str | None, show: Callable[[str], None]
) -> None:
    """Let a person sign in at the address that `show_url` receives, and store the tokens.

    Raises AccessRefused, GatewayUnreachable, UsageInvalid or CommandFailed.
    """
    with httpx2.Client(timeout=TIMEOUT, follow_redirects=False) as http:
        service = discover(gateway, http)
        registration = _registration(service, stored, client_id, http)
    fresh = _authorized(service, registration.client_id, show)
    with stored.held():
        stored.write(Kept(registration=registration, sign_in=fresh))
        stored.choose(gateway)


def _registration(
    service: SignInService, stored: StoredTokens, client_id: str | None, http: httpx2.Client
) -> Registration:
    if client_id is not None:
        return Registration(issuer=service.issuer, client_id=client_id)
    with stored.held():
        kept = stored.read()
        if kept.registration is not None and kept.registration.issuer == service.issuer:
            return kept.registration
        registration = register(service, http, REGISTERED_REDIRECT)
        stored.write(kept.model_copy(update={"registration": registration}))
    return registration


def _authorized(service: SignInService, client_id: str, show: Callable[[str], None]) -> SignIn:
    metadata, state, verifier = service.metadata, secrets.token_urlsafe(32), secrets.token_urlsafe(64)
    with (
        Loopback(state) as loopback,
        OAuth2Client(
            client_id,
            scope=service.scope,
            redirect_uri=loopback.redirect_uri,
            code_challenge_method="S256",
            timeout=TIMEOUT,
        ) as client,
    ):
        address, _ = client.create_authorization_url(
            str(metadata.authorization_endpoint),
            state=state,
            code_verifier=verifier,
            resource=service.resource,
            **_prompt(service),
        )
        show(address)
        code = _code(service, loopback.wait(ANSWER_WITHIN_SECONDS))
        try:
            token = client.fetch_token(
                str(metadata.token_endpoint), code=code, code_verifier=verifier, resource=service.resource
            )
            return signed_in(_unsigned(service, client_id), token)
        except OAuthError as error:
            raise Refused(f"The sign-in service {service.issuer} refused: {error.error}.") from error
        except ValidationError as error:
            raise CommandFailed(f"The sign-in service {service.issuer} gave no token.") from error
        except (httpx2.HTTPError, ValueError) as error:
            raise GatewaySilent(
                f"The sign-in service {service.issuer} does not answer. Sign in again."
            ) from error


def _prompt(service: SignInService) -> dict[str, str]:
    # OpenID Connect Core section 11: `offline_access` is ignored unless the prompt asks for consent.
    return {"prompt": "consent"} if "offline_access" in (service.scope or "").split() else {}


def _code(service: SignInService, answer: dict[str, str] | None) -> str:
    if answer is None:
        raise Refused(
            f"Nobody signed in within {ANSWER_WITHIN_SECONDS / 60:.0f} minutes. Run `byline login` again."
        )
    try:
        validate_authorization_response_iss(answer.get("iss"), service.metadata)
    except OAuthFlowError as error:
        raise Refused("The answer came from another sign-in service than the one that was asked.") from error
    if answer.get("error") == "access_denied":
        raise Refused("You declined. Nothing was kept.")
    if "code" not in answer:
        raise Refused(
            f"The sign-in service {service.issuer} refused: {answer.get('error', 'it gave no code')}."
        )
    return answer["code"]


def _unsigned(service: SignInService, client_id: str) -> SignIn:
    revocation = service.metadata.revocation_endpoint
    return SignIn(
        client_id=client_id,
        token_endpoint=str(service.metadata.token_endpoint),
        revocation_endpoint=None if revocation is None else str(revocation),
        resource=service.resource,
        access_token="",
        refresh_token=None,
        expires_at=None,
    )
