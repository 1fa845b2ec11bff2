"""The OAuth endpoints that the client calls: metadata, token, revocation and userinfo."""

import base64
import binascii
import hmac
import secrets
from typing import Annotated
from urllib.parse import unquote_plus

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from examples.sandbox.access import Caller, caller_with
from examples.sandbox.storage import Document
from examples.sandbox.system import OAuthPaths, Sandbox, sandbox_of
from examples.sandbox.tokens import Consent, InvalidGrant, ScopeExceeded

_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}


class OAuthError(Exception):
    """An error response of RFC 6749, 5.2."""

    def __init__(self, error: str, description: str, status: int = 400) -> None:
        super().__init__(error)
        self.error = error
        self.description = description
        self.status = status


def oauth_routes(paths: OAuthPaths) -> APIRouter:
    """Build the router with the endpoints at the system's paths."""
    router = APIRouter()
    router.add_api_route("/.well-known/oauth-authorization-server", metadata, methods=["GET"])
    router.add_api_route(paths.tokens, token, methods=["POST"])
    router.add_api_route(paths.revoke, revoke, methods=["POST"])
    router.add_api_route(paths.userinfo, userinfo, methods=["GET"])
    return router


async def metadata(request: Request) -> Document:
    """Describe the server (RFC 8414)."""
    sandbox = sandbox_of(request)
    paths = sandbox.system.oauth
    methods = ["client_secret_basic", "client_secret_post"]
    return {
        "issuer": sandbox.issuer,
        "authorization_endpoint": sandbox.issuer + paths.authorize,
        "token_endpoint": sandbox.issuer + paths.tokens,
        "revocation_endpoint": sandbox.issuer + paths.revoke,
        "userinfo_endpoint": sandbox.issuer + paths.userinfo,
        "scopes_supported": list(sandbox.system.scopes),
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": ["authorization_code", "refresh_token", "client_credentials"],
        "token_endpoint_auth_methods_supported": methods,
        "revocation_endpoint_auth_methods_supported": methods,
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": True,
    }


async def token(request: Request) -> JSONResponse:
    """Issue tokens for a code, a refresh token, or the client's own credentials."""
    sandbox = sandbox_of(request)
    try:
        form = await _form(request)
        _authenticate_client(request, form, sandbox)
        request.state.grant_type = form.get("grant_type")
        return JSONResponse(_grant(form, sandbox), headers=_NO_STORE)
    except OAuthError as problem:
        return _refusal(problem)


async def revoke(request: Request) -> Response:
    """Revoke a token. An unknown token is no error (RFC 7009, 2.2)."""
    sandbox = sandbox_of(request)
    try:
        form = await _form(request)
        _authenticate_client(request, form, sandbox)
        sandbox.tokens.revoke(_require_field(form, "token"))
    except OAuthError as problem:
        return _refusal(problem)
    return Response()


async def userinfo(caller: Annotated[Caller, Depends(caller_with())]) -> Document:
    """Return the account of the token."""
    person = caller.person
    return {"sub": person.sub, "preferred_username": person.username, "name": person.name}


def _grant(form: dict[str, str], sandbox: Sandbox) -> Document:
    system = sandbox.system
    # A refresh may request fewer scopes than the consent, which stays as it is.
    scopes = tuple(form.get("scope", "").split())
    try:
        consent = _consent(form, scopes, sandbox)
    except InvalidGrant as problem:
        raise OAuthError("invalid_grant", "The code or refresh token is not valid (any more)") from problem
    except ScopeExceeded as problem:
        raise OAuthError("invalid_scope", "The scope is wider than allowed") from problem
    by_a_person = form["grant_type"] != "client_credentials"
    refreshable = by_a_person and (system.refresh_scope is None or system.refresh_scope in consent.scopes)
    if form["grant_type"] == "authorization_code":
        scopes = consent.scopes
    response = sandbox.tokens.issue(consent, scopes, refreshable=refreshable)
    return system.token_response(response, sandbox.issuer, consent.sub)


def _consent(form: dict[str, str], scopes: tuple[str, ...], sandbox: Sandbox) -> Consent:
    match _require_field(form, "grant_type"):
        case "authorization_code":
            names = ("code", "redirect_uri", "code_verifier")
            return sandbox.tokens.redeem_code(*(_require_field(form, name) for name in names))
        case "refresh_token":
            return sandbox.tokens.rotate(_require_field(form, "refresh_token"), scopes)
        case "client_credentials":
            if not set(scopes) <= set(sandbox.system.scopes):
                raise ScopeExceeded
            offered_scopes = scopes or tuple(sandbox.system.scopes)
            return Consent(secrets.token_hex(16), sandbox.system.service_account, offered_scopes)
        case other:
            raise OAuthError("unsupported_grant_type", f"Grant type {other} is not offered here")


def _authenticate_client(request: Request, form: dict[str, str], sandbox: Sandbox) -> None:
    kind, _, credentials = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        if "client_secret" in form:
            raise OAuthError("invalid_request", "Send the client secret in one place only")
        try:
            credentials_text = base64.b64decode(credentials, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            credentials_text = ""
        client_id, _, secret = (unquote_plus(part) for part in credentials_text.partition(":"))
    else:
        client_id, secret = form.get("client_id", ""), form.get("client_secret", "")
    is_known_client = hmac.compare_digest(client_id.encode(), sandbox.client.id.encode())
    if not is_known_client or not hmac.compare_digest(secret.encode(), sandbox.client.secret.encode()):
        raise OAuthError("invalid_client", "The client or its secret is wrong", 401)


async def _form(request: Request) -> dict[str, str]:
    items = (await request.form()).multi_items()
    form = {name: value for name, value in items if isinstance(value, str) and value}
    if len({name for name, _ in items}) != len(items):
        raise OAuthError("invalid_request", "A parameter is sent twice")
    return form


def _require_field(form: dict[str, str], name: str) -> str:
    if name not in form:
        raise OAuthError("invalid_request", f"The parameter {name} is missing")
    return form[name]


def _refusal(problem: OAuthError) -> JSONResponse:
    headers = dict(_NO_STORE)
    if problem.status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="token"'
    body = {"error": problem.error, "error_description": problem.description}
    return JSONResponse(body, problem.status, headers)
