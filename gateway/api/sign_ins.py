"""REST routes for sign-ins that the caller is asked for or asks for ahead. Each has a link, where it is answered."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from engine.authorization.requests import AuthorizationRequest, State
from engine.registry import Registry
from engine.services import Services
from gateway.api.callers import Calling, CallingInPerson
from gateway.api.connections import Reach
from gateway.api.problems import Refused, problems
from gateway.links import connect_link, what_is_asked
from gateway.protected_resource import API_PATH

_NAME = Annotated[str, Path(max_length=200)]
_ID = Annotated[str, Path(pattern=r"^[0-9a-f-]{36}$")]


class SignIn(BaseModel):
    """A sign-in at one connection that the caller is asked for, on a page that opens for them."""

    id: str
    connection: str
    title: str
    account: str | None = Field(description="The account that is asked for; null where any will do.")
    scopes: list[str]
    state: State
    expires_at: datetime
    url: str


class SignInList(BaseModel):
    """Every sign-in that the caller can still answer, oldest first."""

    items: list[SignIn]


def routes(services: Services, registry: Registry) -> APIRouter:
    """Build the router of `/sign-ins` and `/connections/{name}/sign-ins`."""
    router = APIRouter(tags=["connections"])

    @router.post(
        "/connections/{name}/sign-ins",
        summary="Ask for a link to connect an account, the first or another",
        status_code=HTTPStatus.CREATED,
        responses=problems(403, 404, 422),
    )
    async def begin_sign_in(caller: CallingInPerson, name: _NAME, response: Response) -> SignIn:
        """While the link is open, the same one is given again."""
        connection = await services.catalogue.get(name)
        asked = await services.authorization.ask_ahead(caller.principal, connection, connection.scopes)
        response.headers["Location"] = f"{API_PATH}/sign-ins/{asked.id}"
        return _shown(services, asked, connection.title)

    @router.get("/sign-ins", summary="List the sign-ins that you are asked for or have asked for yourself")
    async def list_sign_ins(caller: Calling) -> SignInList:
        known, reach = await services.catalogue.all(), Reach(registry, caller.tools)
        return SignInList(
            items=[
                _shown(services, each, known[each.connection].title)
                for each in await services.authorization.open_for(caller.principal.id, ahead=True)
                if each.connection in known and reach.has(each.connection)
            ]
        )

    @router.get(
        "/sign-ins/{sign_in_id}",
        summary="Get a sign-in, and whether it is answered",
        responses=problems(403, 404, 422),
    )
    async def get_sign_in(caller: Calling, sign_in_id: _ID) -> SignIn:
        asked = await services.authorization.get(sign_in_id)
        if asked is None or asked.principal_id != caller.principal.id:
            detail = "You are asked for no such sign-in."
            raise Refused(HTTPStatus.NOT_FOUND, "sign_in_unknown", detail)
        Reach(registry, caller.tools).require(asked.connection)
        return _shown(services, asked, (await services.catalogue.get(asked.connection)).title)

    return router


def _shown(services: Services, asked: AuthorizationRequest, title: str) -> SignIn:
    is_over = asked.state == "open" and not asked.is_open
    return SignIn(
        id=asked.id,
        connection=asked.connection,
        title=what_is_asked(asked, title),
        account=asked.account,
        scopes=list(asked.scopes),
        state="expired" if is_over else asked.state,
        expires_at=asked.expires_at,
        url=connect_link(services, asked),
    )
