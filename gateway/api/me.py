"""REST route that describes the caller: the principal, the actor that acts for them, and their roles."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from engine.identity.model import ActorKind, PrincipalKind
from engine.identity.roles import Roles
from gateway.api.authentication import ApiCaller


class PrincipalShown(BaseModel):
    """The principal on whose behalf the caller acts."""

    id: str
    kind: PrincipalKind
    name: str
    issuer: str
    subject: str


class ActorShown(BaseModel):
    """The actor that acts for the principal."""

    kind: ActorKind
    id: str
    name: str


class Me(BaseModel):
    """The caller of this request."""

    principal: PrincipalShown
    actor: ActorShown
    roles: list[str]
    tools: list[str] | None = Field(description="The tools that the token may call. Null for all.")


def build_routes(roles: Roles) -> APIRouter:
    """Build the router of `/me`."""
    router = APIRouter(tags=["me"])

    @router.get("/me", summary="Get your principal, your actor and your roles")
    async def get_me(caller: ApiCaller) -> Me:
        principal, actor = caller.principal, caller.actor
        return Me(
            principal=PrincipalShown(
                id=principal.id,
                kind=principal.kind,
                name=principal.name,
                issuer=principal.issuer,
                subject=principal.subject,
            ),
            actor=ActorShown(kind=actor.kind, id=actor.id, name=actor.name),
            roles=sorted(await roles.list_roles(principal.id)),
            tools=None if caller.tool_names is None else sorted(caller.tool_names),
        )

    return router
