"""REST route that describes the caller: the principal, the actor that acts for them, and their roles."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from engine.identity.model import ActorKind, PrincipalKind
from engine.services import Services
from gateway.api.callers import Calling


class PrincipalShown(BaseModel):
    """On whose behalf the caller acts."""

    id: str
    kind: PrincipalKind
    name: str
    issuer: str
    subject: str


class ActorShown(BaseModel):
    """What acts for the principal."""

    kind: ActorKind
    id: str
    name: str


class Me(BaseModel):
    """The caller."""

    principal: PrincipalShown
    actor: ActorShown
    roles: list[str]
    tools: list[str] | None = Field(description="The tools that the token is good for; null where for all.")


def routes(services: Services) -> APIRouter:
    """Build the router of `/me`."""
    router = APIRouter(tags=["me"])

    @router.get("/me", summary="Get who you are here")
    async def get_me(caller: Calling) -> Me:
        who, actor = caller.principal, caller.actor
        return Me(
            principal=PrincipalShown(
                id=who.id, kind=who.kind, name=who.name, issuer=who.issuer, subject=who.subject
            ),
            actor=ActorShown(kind=actor.kind, id=actor.id, name=actor.name),
            roles=sorted(await services.roles.of(who.id)),
            tools=None if caller.tools is None else sorted(caller.tools),
        )

    return router
