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

from gateway.client.bearer_auth import OAUTH_TIMEOUT, apply_token_response
from gateway.client.command_errors import AccessRefused, CommandFailed, GatewayUnreachable
from gateway.client.credentials_file import (
    ClientRegistration,
    CredentialsFile,
    StoredCredentials,
    StoredSignIn,
)
from gateway.client.discovery import SignInService, discover_sign_in_service, register_client
from gateway.client.loopback import REGISTERED_REDIRECT_URI, LoopbackServer

SIGN_IN_TIMEOUT_SECONDS: Final = 300.0


def sign_in_person(
    gateway_url: str,
    credentials_file: CredentialsFile,
    *,
    client_id: str | None,
    show_url: Callable[[str], None],
) -> None:
    """Let a person sign in at the address that `show_url` receives, and store the tokens.

    Raises AccessRefused, GatewayUnreachable, UsageInvalid or CommandFailed.
    """
    with httpx2.Client(timeout=OAUTH_TIMEOUT, follow_redirects=False) as http_client:
        sign_in_service = discover_sign_in_service(gateway_url, http_client)
        registration = _load_registration(sign_in_service, credentials_file, client_id, http_client)
    new_sign_in = _authorize_person(sign_in_service, registration.client_id, show_url)
    with credentials_file.lock_file():
        credentials_file.write_credentials(StoredCredentials(registration=registration, sign_in=new_sign_in))
        credentials_file.select_gateway(gateway_url)


def _load_registration(
    sign_in_service: SignInService,
    credentials_file: CredentialsFile,
    client_id: str | None,
    http_client: httpx2.Client,
) -> ClientRegistration:
    if client_id is not None:
        return ClientRegistration(issuer=sign_in_service.issuer, client_id=client_id)
    with credentials_file.lock_file():
        stored_credentials = credentials_file.read_credentials()
        if (
            stored_credentials.registration is not None
            and stored_credentials.registration.issuer == sign_in_service.issuer
        ):
            return stored_credentials.registration
        registration = register_client(sign_in_service, http_client, REGISTERED_REDIRECT_URI)
        credentials_file.write_credentials(
            stored_credentials.model_copy(update={"registration": registration})
        )
    return registration


def _authorize_person(
    sign_in_service: SignInService, client_id: str, show_url: Callable[[str], None]
) -> StoredSignIn:
    server_metadata, oauth_state, code_verifier = (
        sign_in_service.server_metadata,
        secrets.token_urlsafe(32),
        secrets.token_urlsafe(64),
    )
    with (
        LoopbackServer(oauth_state) as loopback_server,
        OAuth2Client(
            client_id,
            scope=sign_in_service.scope,
            redirect_uri=loopback_server.redirect_uri,
            code_challenge_method="S256",
            timeout=OAUTH_TIMEOUT,
        ) as oauth_client,
    ):
        authorization_url, _ = oauth_client.create_authorization_url(
            str(server_metadata.authorization_endpoint),
            state=oauth_state,
            code_verifier=code_verifier,
            resource=sign_in_service.resource,
            **_choose_prompt(sign_in_service),
        )
        show_url(authorization_url)
        authorization_code = _read_authorization_code(
            sign_in_service, loopback_server.wait_for_redirect(SIGN_IN_TIMEOUT_SECONDS)
        )
        try:
            token_response = oauth_client.fetch_token(
                str(server_metadata.token_endpoint),
                code=authorization_code,
                code_verifier=code_verifier,
                resource=sign_in_service.resource,
            )
            return apply_token_response(_build_empty_sign_in(sign_in_service, client_id), token_response)
        except OAuthError as error:
            raise AccessRefused(
                f"The sign-in service {sign_in_service.issuer} refused: {error.error}."
            ) from error
        except ValidationError as error:
            raise CommandFailed(f"The sign-in service {sign_in_service.issuer} gave no token.") from error
        except (httpx2.HTTPError, ValueError) as error:
            raise GatewayUnreachable(
                f"The sign-in service {sign_in_service.issuer} does not answer. Sign in again."
            ) from error


def _choose_prompt(sign_in_service: SignInService) -> dict[str, str]:
    # OpenID Connect Core section 11: `offline_access` is ignored unless the prompt asks for consent.
    return {"prompt": "consent"} if "offline_access" in (sign_in_service.scope or "").split() else {}


def _read_authorization_code(
    sign_in_service: SignInService, redirect_parameters: dict[str, str] | None
) -> str:
    if redirect_parameters is None:
        raise AccessRefused(
            f"Nobody signed in within {SIGN_IN_TIMEOUT_SECONDS / 60:.0f} minutes. Run `byline login` again."
        )
    try:
        validate_authorization_response_iss(redirect_parameters.get("iss"), sign_in_service.server_metadata)
    except OAuthFlowError as error:
        raise AccessRefused(
            "The answer came from another sign-in service than the one that was asked."
        ) from error
    if redirect_parameters.get("error") == "access_denied":
        raise AccessRefused("You declined. Nothing was kept.")
    if "code" not in redirect_parameters:
        raise AccessRefused(
            f"The sign-in service {sign_in_service.issuer} refused: "
            f"{redirect_parameters.get('error', 'it gave no code')}."
        )
    return redirect_parameters["code"]


def _build_empty_sign_in(sign_in_service: SignInService, client_id: str) -> StoredSignIn:
    revocation_url = sign_in_service.server_metadata.revocation_endpoint
    return StoredSignIn(
        client_id=client_id,
        token_endpoint=str(sign_in_service.server_metadata.token_endpoint),
        revocation_endpoint=None if revocation_url is None else str(revocation_url),
        resource=sign_in_service.resource,
        access_token="",
        refresh_token=None,
        expires_at=None,
    )
