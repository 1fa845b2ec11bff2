"""REST routes for API tokens: their owner lists, makes and revokes them. Only somebody who signed in makes one."""

from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from engine.callers.api_tokens import LONGEST_NAME, ApiToken, NewApiToken
from engine.errors import ApiTokenInvalid, NotAllowed
from engine.registry import Registry
from engine.services import Services
from gateway.api.bodies import Body
from gateway.api.callers import Calling, CallingInPerson
from gateway.api.cursors import USUAL_LIMIT, After, Cursors, Limit, Page
from gateway.api.problems import problems
from gateway.protected_resource import API_PATH

TokenId = Annotated[
    str,
    Path(
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="The token's id: the part after `byline_`.",
    ),
]
_DAYS = timedelta(days=1)


class NewToken(Body):
    """The token to make."""

    name: str = Field(min_length=1, max_length=LONGEST_NAME, description="What you know it again by.")
    tools: list[Annotated[str, Field(max_length=200)]] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="The tools it is good for; leave it out for every tool that its owner may call.",
    )
    expires_in_days: int | None = Field(
        default=None, ge=1, le=36500, description="How long it lives; 90 days where nothing is said."
    )

    @property
    def life(self) -> timedelta | None:
        """The lifetime of the token, or None for the default."""
        return None if self.expires_in_days is None else self.expires_in_days * _DAYS


class TokenShown(BaseModel):
    """A token without its secret."""

    id: str
    name: str
    state: Literal["active", "expired", "revoked"]
    tools: list[str] | None = Field(
        description="The tools it is good for; null for all that its owner may call."
    )
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None = Field(description="To the minute.")
    revoked_at: datetime | None


class TokenMade(TokenShown):
    """A token just made."""

    token: str = Field(description="What to send as the bearer token. It is shown this once.")


def routes(services: Services, registry: Registry) -> APIRouter:
    """Build the router of `/tokens` and `/tokens/{token_id}`."""
    router = APIRouter(tags=["tokens"])
    cursors = Cursors(services.vault, "tokens")

    @router.get("/tokens", summary="List your API tokens", responses=problems(400, 422))
    async def list_tokens(
        caller: Calling, after: After = None, limit: Limit = USUAL_LIMIT
    ) -> Page[TokenShown]:
        return token_page(cursors, await services.api_tokens.of(caller.principal), limit, after)

    @router.post(
        "/tokens",
        summary="Make an API token that acts as you",
        status_code=HTTPStatus.CREATED,
        responses=problems(403, 422),
    )
    async def create_token(caller: CallingInPerson, new: NewToken, response: Response) -> TokenMade:
        known_tools(registry, new)
        made = await services.api_tokens.create(
            caller.principal, new.name, tools=new.tools, life=new.life, actor=caller.actor
        )
        response.headers["Location"] = f"{API_PATH}/tokens/{made.token.id}"
        return made_shown(response, made)

    @router.get("/tokens/{token_id}", summary="Get one of your API tokens", responses=problems(404, 422))
    async def get_token(caller: Calling, token_id: TokenId) -> TokenShown:
        return shown(await services.api_tokens.get(token_id, caller.principal))

    @router.delete(
        "/tokens/{token_id}",
        summary="Revoke one of your API tokens",
        status_code=HTTPStatus.NO_CONTENT,
        responses=problems(403, 404, 422),
    )
    async def revoke_token(caller: Calling, token_id: TokenId) -> None:
        # A token that leaked may revoke itself, and no other.
        if not caller.in_person and caller.actor.id != token_id:
            raise NotAllowed("With an API token only that token itself is revoked. Sign in to revoke others.")
        await services.api_tokens.revoke(token_id, caller.principal, actor=caller.actor)

    return router


def token_page(cursors: Cursors, tokens: list[ApiToken], limit: int, after: str | None) -> Page[TokenShown]:
    """Return a page of an owner's tokens after a cursor, newest first. Raises RequestRefused for a wrong cursor."""
    position = cursors.open(after)
    ids = [token.id for token in tokens]
    start = 0 if position is None or position[0] not in ids else ids.index(str(position[0])) + 1
    some = tokens[start : start + limit + 1]
    return cursors.page([shown(token) for token in some], [[token.id] for token in some], limit)


def shown(token: ApiToken) -> TokenShown:
    """Convert a token to its representation in the API, without its secret."""
    return TokenShown.model_validate(_told(token))


def made_shown(response: Response, made: NewApiToken) -> TokenMade:
    """Convert a new token to its representation with the secret, and mark the response `no-store`."""
    response.headers["Cache-Control"] = "no-store"
    return TokenMade.model_validate({**_told(made.token), "token": made.secret})


def known_tools(registry: Registry, new: NewToken) -> None:
    """Raise ApiTokenInvalid where the token is requested for a tool that does not exist."""
    unknown = sorted(set(new.tools or ()) - registry.tools.keys())
    if unknown:
        raise ApiTokenInvalid(
            f"There is no tool {', '.join(unknown)}. List the tools to see which there are."
        )


def _told(token: ApiToken) -> dict[str, object]:
    return {
        "id": token.id,
        "name": token.name,
        "state": token.state,
        "tools": None if token.tools is None else sorted(token.tools),
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "last_used_at": token.last_used_at,
        "revoked_at": token.revoked_at,
    }
