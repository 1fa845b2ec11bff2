"""REST routes for services: administrators, and nobody else, make them known and make their API tokens."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response
from pydantic import BaseModel, Field

from engine.callers.service_principals import NAME
from engine.identity.model import Principal
from engine.identity.roles import ADMINISTRATOR
from engine.registry import Registry
from engine.services import Services
from gateway.api.bodies import Body
from gateway.api.callers import CallingInPerson
from gateway.api.cursors import USUAL_LIMIT, After, Cursors, Limit, Page
from gateway.api.problems import problems
from gateway.api.tokens import (
    NewToken,
    TokenId,
    TokenMade,
    TokenShown,
    known_tools,
    made_shown,
    shown,
    token_page,
)
from gateway.protected_resource import API_PATH

_NAME = Annotated[
    str, Path(max_length=200, pattern=r"^[\x21-\x7e]+$", description="The service's name or id.")
]


class NewService(Body):
    """The service to make known."""

    name: str = Field(pattern=NAME, description="What it is called in addresses, commands and the trail.")


class ServiceShown(BaseModel):
    """A machine that calls in its own name."""

    id: str
    name: str
    active: bool


def routes(services: Services, registry: Registry) -> APIRouter:
    """Build the router of `/services`, `/services/{service}` and their tokens."""

    async def administrator(caller: CallingInPerson) -> Principal:
        await services.roles.require(caller.principal, ADMINISTRATOR)
        return caller.principal

    by = Depends(administrator)
    router = APIRouter(tags=["services"])
    lists, token_lists = Cursors(services.vault, "services"), Cursors(services.vault, "service tokens")
    known = services.service_principals

    @router.get(
        "/services", summary="List the services", responses=problems(400, 403, 422), dependencies=[by]
    )
    async def list_services(after: After = None, limit: Limit = USUAL_LIMIT) -> Page[ServiceShown]:
        position = lists.open(after)
        start = "" if position is None else str(position[0])
        found = [service for service in await known.all() if service.name > start][: limit + 1]
        return lists.page([_shown(each) for each in found], [[each.name] for each in found], limit)

    @router.post(
        "/services",
        summary="Make a service known",
        status_code=HTTPStatus.CREATED,
        responses=problems(403, 409, 422),
    )
    async def create_service(
        new: NewService, response: Response, who: Annotated[Principal, by]
    ) -> ServiceShown:
        service = await known.add(new.name, by=who)
        response.headers["Location"] = f"{API_PATH}/services/{service.name}"
        return _shown(service)

    @router.get(
        "/services/{service}", summary="Get one service", responses=problems(403, 404, 422), dependencies=[by]
    )
    async def get_service(service: _NAME) -> ServiceShown:
        return _shown(await known.get(service))

    @router.get(
        "/services/{service}/tokens",
        summary="List the API tokens of a service",
        responses=problems(400, 403, 404, 422),
        dependencies=[by],
    )
    async def list_service_tokens(
        service: _NAME, after: After = None, limit: Limit = USUAL_LIMIT
    ) -> Page[TokenShown]:
        tokens = await services.api_tokens.of(await known.get(service))
        return token_page(token_lists, tokens, limit, after)

    @router.post(
        "/services/{service}/tokens",
        summary="Make an API token that acts as a service",
        status_code=HTTPStatus.CREATED,
        responses=problems(403, 404, 422),
    )
    async def create_service_token(
        service: _NAME, new: NewToken, response: Response, who: Annotated[Principal, by]
    ) -> TokenMade:
        owner = await known.get(service)
        known_tools(registry, new)
        made = await services.api_tokens.create(owner, new.name, tools=new.tools, life=new.life, by=who)
        response.headers["Location"] = f"{API_PATH}/services/{owner.name}/tokens/{made.token.id}"
        return made_shown(response, made)

    @router.get(
        "/services/{service}/tokens/{token_id}",
        summary="Get one API token of a service",
        responses=problems(403, 404, 422),
        dependencies=[by],
    )
    async def get_service_token(service: _NAME, token_id: TokenId) -> TokenShown:
        return shown(await services.api_tokens.get(token_id, await known.get(service)))

    @router.delete(
        "/services/{service}/tokens/{token_id}",
        summary="Revoke an API token of a service",
        status_code=HTTPStatus.NO_CONTENT,
        responses=problems(403, 404, 422),
    )
    async def revoke_service_token(service: _NAME, token_id: TokenId, who: Annotated[Principal, by]) -> None:
        await services.api_tokens.revoke(token_id, await known.get(service), by=who)

    return router


def _shown(service: Principal) -> ServiceShown:
    return ServiceShown(id=service.id, name=service.name, active=service.active)
