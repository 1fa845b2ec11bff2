"""REST routes for sign-ins that the caller is asked for or asks for ahead. Each has a link, where it is answered."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from engine.authorization.request_texts import describe_request
from engine.authorization.requests import AuthorizationRequest, AuthorizationRequests, RequestState
from engine.connections.catalogue import ConnectionCatalogue
from engine.tools.registry import Registry
from engine.waiting.page_paths import PageLinks
from gateway.api.authentication import ApiCaller, InPersonCaller
from gateway.api.connections import TokenScope
from gateway.api.problems import RequestRefused, describe_problems
from gateway.protected_resource import API_PATH

_ConnectionName = Annotated[str, Path(max_length=200)]
_SignInId = Annotated[str, Path(pattern=r"^[0-9a-f-]{36}$")]


class SignIn(BaseModel):
    """A sign-in on one connection that the caller is asked for, on a page that opens only for them."""

    id: str
    connection: str
    title: str
    account: str | None = Field(description="The account to sign in to. Null for any account.")
    scopes: list[str]
    state: RequestState
    expires_at: datetime
    url: str


class SignInList(BaseModel):
    """Every sign-in that the caller can still complete, oldest first."""

    items: list[SignIn]


def build_routes(
    catalogue: ConnectionCatalogue,
    authorization_requests: AuthorizationRequests,
    page_links: PageLinks,
    registry: Registry,
) -> APIRouter:
    """Build the router of `/sign-ins` and `/connections/{name}/sign-ins`."""
    router = APIRouter(tags=["connections"])

    @router.post(
        "/connections/{name}/sign-ins",
        summary="Get a link to connect an account, the first or another",
        status_code=HTTPStatus.CREATED,
        responses=describe_problems(403, 404, 422),
    )
    async def begin_sign_in(caller: InPersonCaller, name: _ConnectionName, response: Response) -> SignIn:
        """While the link is open, the same link is returned again."""
        connection = await catalogue.get_connection(name)
        authorization_request = await authorization_requests.open_request_ahead(
            caller.principal, connection, connection.scopes
        )
        response.headers["Location"] = f"{API_PATH}/sign-ins/{authorization_request.id}"
        return _to_sign_in(page_links, authorization_request, connection.title)

    @router.get("/sign-ins", summary="List the sign-ins that runs or you yourself requested")
    async def list_sign_ins(caller: ApiCaller) -> SignInList:
        connections_by_name, token_scope = (
            await catalogue.list_connections(),
            TokenScope(registry, caller.tool_names),
        )
        return SignInList(
            items=[
                _to_sign_in(
                    page_links,
                    authorization_request,
                    connections_by_name[authorization_request.connection_name].title,
                )
                for authorization_request in await authorization_requests.list_open_requests(
                    caller.principal.id, should_include_unawaited=True
                )
                if authorization_request.connection_name in connections_by_name
                and token_scope.covers_connection(authorization_request.connection_name)
            ]
        )

    @router.get(
        "/sign-ins/{sign_in_id}",
        summary="Get a sign-in and its state",
        responses=describe_problems(403, 404, 422),
    )
    async def get_sign_in(caller: ApiCaller, sign_in_id: _SignInId) -> SignIn:
        authorization_request = await authorization_requests.find_request(sign_in_id)
        if authorization_request is None or authorization_request.principal_id != caller.principal.id:
            detail = "You are asked for no such sign-in."
            raise RequestRefused(HTTPStatus.NOT_FOUND, "sign_in_unknown", detail)
        TokenScope(registry, caller.tool_names).require_connection(authorization_request.connection_name)
        return _to_sign_in(
            page_links,
            authorization_request,
            (await catalogue.get_connection(authorization_request.connection_name)).title,
        )

    return router


def _to_sign_in(
    page_links: PageLinks, authorization_request: AuthorizationRequest, connection_title: str
) -> SignIn:
    has_expired = authorization_request.state == "open" and not authorization_request.is_open
    return SignIn(
        id=authorization_request.id,
        connection=authorization_request.connection_name,
        title=describe_request(authorization_request, connection_title),
        account=authorization_request.account,
        scopes=list(authorization_request.scopes),
        state="expired" if has_expired else authorization_request.state,
        expires_at=authorization_request.expires_at,
        url=page_links.build_connect_link(authorization_request.id),
    )
