"""REST routes for services: administrators, and nobody else, make them known and make their API tokens."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response
from pydantic import BaseModel, Field

from engine.audit.attribution import Administrator
from engine.callers.api_tokens import ApiTokens
from engine.callers.service_principals import SERVICE_NAME_PATTERN, ServicePrincipals
from engine.identity.model import Principal
from engine.identity.roles import ADMINISTRATOR_ROLE, Roles
from engine.tools.registry import Registry
from engine.vault.vault import Vault
from gateway.api.authentication import InPersonCaller
from gateway.api.cursors import DEFAULT_PAGE_ITEMS, ListCursors, Page, PageCursor, PageLimit
from gateway.api.problems import describe_problems
from gateway.api.request_bodies import RequestBody
from gateway.api.tokens import (
    NewToken,
    TokenId,
    TokenMade,
    TokenShown,
    build_token_page,
    require_known_tools,
    to_token_made,
    to_token_shown,
)
from gateway.protected_resource import API_PATH

_ServiceName = Annotated[
    str, Path(max_length=200, pattern=r"^[\x21-\x7e]+$", description="The service's name or id.")
]


class NewService(RequestBody):
    """The service to add."""

    name: str = Field(
        pattern=SERVICE_NAME_PATTERN,
        description="The service's name in addresses, commands and the audit trail.",
    )


class ServiceShown(BaseModel):
    """A service: a machine that calls tools in its own name."""

    id: str
    name: str
    active: bool


ServiceAddition = Callable[[Administrator, str], Awaitable[Principal]]
"""Adds a service in the name of the administrator."""


def build_routes(
    service_principals: ServicePrincipals,
    add_service: ServiceAddition,
    api_tokens: ApiTokens,
    roles: Roles,
    registry: Registry,
    vault: Vault,
) -> APIRouter:
    """Build the router of `/services`, `/services/{service}` and their tokens."""

    async def require_administrator(caller: InPersonCaller) -> Principal:
        await roles.require_role(caller.principal, ADMINISTRATOR_ROLE)
        return caller.principal

    administrator_required = Depends(require_administrator)
    router = APIRouter(tags=["services"])
    service_cursors, token_cursors = ListCursors(vault, "services"), ListCursors(vault, "service tokens")

    @router.get(
        "/services",
        summary="List the services",
        responses=describe_problems(400, 403, 422),
        dependencies=[administrator_required],
    )
    async def list_services(
        after: PageCursor = None, limit: PageLimit = DEFAULT_PAGE_ITEMS
    ) -> Page[ServiceShown]:
        cursor_position = service_cursors.open_cursor(after)
        after_name = "" if cursor_position is None else str(cursor_position[0])
        page_services = [
            service for service in await service_principals.list_services() if service.name > after_name
        ][: limit + 1]
        return service_cursors.build_page(
            [_to_service_shown(service) for service in page_services],
            [[service.name] for service in page_services],
            limit,
        )

    @router.post(
        "/services",
        summary="Add a service",
        status_code=HTTPStatus.CREATED,
        responses=describe_problems(403, 409, 422),
    )
    async def create_service(
        new_service: NewService,
        response: Response,
        administrator: Annotated[Principal, administrator_required],
    ) -> ServiceShown:
        service = await add_service(administrator, new_service.name)
        response.headers["Location"] = f"{API_PATH}/services/{service.name}"
        return _to_service_shown(service)

    @router.get(
        "/services/{service}",
        summary="Get one service",
        responses=describe_problems(403, 404, 422),
        dependencies=[administrator_required],
    )
    async def get_service(service: _ServiceName) -> ServiceShown:
        return _to_service_shown(await service_principals.get_service(service))

    @router.get(
        "/services/{service}/tokens",
        summary="List the API tokens of a service",
        responses=describe_problems(400, 403, 404, 422),
        dependencies=[administrator_required],
    )
    async def list_service_tokens(
        service: _ServiceName, after: PageCursor = None, limit: PageLimit = DEFAULT_PAGE_ITEMS
    ) -> Page[TokenShown]:
        service_tokens = await api_tokens.list_tokens(await service_principals.get_service(service))
        return build_token_page(token_cursors, service_tokens, limit, after)

    @router.post(
        "/services/{service}/tokens",
        summary="Create an API token that acts as a service",
        status_code=HTTPStatus.CREATED,
        responses=describe_problems(403, 404, 422),
    )
    async def create_service_token(
        service: _ServiceName,
        new_token: NewToken,
        response: Response,
        administrator: Annotated[Principal, administrator_required],
    ) -> TokenMade:
        owner = await service_principals.get_service(service)
        require_known_tools(registry, new_token)
        made_token = await api_tokens.create_token(
            owner,
            new_token.name,
            tool_names=new_token.tools,
            lifetime=new_token.lifetime,
            administrator=administrator,
        )
        response.headers["Location"] = f"{API_PATH}/services/{owner.name}/tokens/{made_token.api_token.id}"
        return to_token_made(response, made_token)

    @router.get(
        "/services/{service}/tokens/{token_id}",
        summary="Get one API token of a service",
        responses=describe_problems(403, 404, 422),
        dependencies=[administrator_required],
    )
    async def get_service_token(service: _ServiceName, token_id: TokenId) -> TokenShown:
        return to_token_shown(
            await api_tokens.get_token(token_id, await service_principals.get_service(service))
        )

    @router.delete(
        "/services/{service}/tokens/{token_id}",
        summary="Revoke an API token of a service",
        status_code=HTTPStatus.NO_CONTENT,
        responses=describe_problems(403, 404, 422),
    )
    async def revoke_service_token(
        service: _ServiceName, token_id: TokenId, administrator: Annotated[Principal, administrator_required]
    ) -> None:
        await api_tokens.revoke_token(
            token_id, await service_principals.get_service(service), administrator=administrator
        )

    return router


def _to_service_shown(service: Principal) -> ServiceShown:
    return ServiceShown(id=service.id, name=service.name, active=service.is_active)
