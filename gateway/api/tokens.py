"""REST routes for API tokens: their owner lists, makes and revokes them. Only somebody who signed in makes one."""

from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from engine.callers.api_tokens import MAX_NAME_CHARS, ApiToken, ApiTokens, NewApiToken
from engine.errors import ApiTokenInvalid, NotAllowed
from engine.tools.registry import Registry
from engine.vault.vault import Vault
from gateway.api.authentication import ApiCaller, InPersonCaller
from gateway.api.cursors import DEFAULT_PAGE_ITEMS, ListCursors, Page, PageCursor, PageLimit
from gateway.api.problems import describe_problems
from gateway.api.request_bodies import RequestBody
from gateway.protected_resource import API_PATH

TokenId = Annotated[
    str,
    Path(
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="The token's id: the part after `byline_`.",
    ),
]
_ONE_DAY = timedelta(days=1)


class NewToken(RequestBody):
    """The token to create."""

    name: str = Field(
        min_length=1, max_length=MAX_NAME_CHARS, description="A name by which you recognize the token."
    )
    tools: list[Annotated[str, Field(max_length=200)]] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="The tools that it may call. Omit it for every tool that its owner may call.",
    )
    expires_in_days: int | None = Field(
        default=None, ge=1, le=36500, description="How many days it is valid. The default is 90."
    )

    @property
    def lifetime(self) -> timedelta | None:
        """The lifetime of the token, or None for the default."""
        return None if self.expires_in_days is None else self.expires_in_days * _ONE_DAY


class TokenShown(BaseModel):
    """A token without its secret."""

    id: str
    name: str
    state: Literal["active", "expired", "revoked"]
    tools: list[str] | None = Field(
        description="The tools that it may call. Null for every tool that its owner may call."
    )
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None = Field(description="The last use, to the minute.")
    revoked_at: datetime | None


class TokenMade(TokenShown):
    """A new token, with its secret."""

    token: str = Field(description="The text to send as the bearer token. It is shown only once.")


def build_routes(api_tokens: ApiTokens, registry: Registry, vault: Vault) -> APIRouter:
    """Build the router of `/tokens` and `/tokens/{token_id}`."""
    router = APIRouter(tags=["tokens"])
    token_cursors = ListCursors(vault, "tokens")

    @router.get("/tokens", summary="List your API tokens", responses=describe_problems(400, 422))
    async def list_tokens(
        caller: ApiCaller, after: PageCursor = None, limit: PageLimit = DEFAULT_PAGE_ITEMS
    ) -> Page[TokenShown]:
        return build_token_page(token_cursors, await api_tokens.list_tokens(caller.principal), limit, after)

    @router.post(
        "/tokens",
        summary="Create an API token that acts as you",
        status_code=HTTPStatus.CREATED,
        responses=describe_problems(403, 422),
    )
    async def create_token(caller: InPersonCaller, new_token: NewToken, response: Response) -> TokenMade:
        require_known_tools(registry, new_token)
        made_token = await api_tokens.create_token(
            caller.principal,
            new_token.name,
            tool_names=new_token.tools,
            lifetime=new_token.lifetime,
            actor=caller.actor,
        )
        response.headers["Location"] = f"{API_PATH}/tokens/{made_token.api_token.id}"
        return to_token_made(response, made_token)

    @router.get(
        "/tokens/{token_id}", summary="Get one of your API tokens", responses=describe_problems(404, 422)
    )
    async def get_token(caller: ApiCaller, token_id: TokenId) -> TokenShown:
        return to_token_shown(await api_tokens.get_token(token_id, caller.principal))

    @router.delete(
        "/tokens/{token_id}",
        summary="Revoke one of your API tokens",
        status_code=HTTPStatus.NO_CONTENT,
        responses=describe_problems(403, 404, 422),
    )
    async def revoke_token(caller: ApiCaller, token_id: TokenId) -> None:
        # A token that leaked may revoke itself, and no other.
        if not caller.is_in_person and caller.actor.id != token_id:
            raise NotAllowed("With an API token only that token itself is revoked. Sign in to revoke others.")
        await api_tokens.revoke_token(token_id, caller.principal, actor=caller.actor)

    return router


def build_token_page(
    token_cursors: ListCursors, api_tokens: list[ApiToken], page_limit: int, page_cursor: str | None
) -> Page[TokenShown]:
    """Return a page of an owner's tokens after a cursor, newest first. Raises RequestRefused for a wrong cursor."""
    cursor_position = token_cursors.open_cursor(page_cursor)
    token_ids = [api_token.id for api_token in api_tokens]
    start_index = (
        0
        if cursor_position is None or cursor_position[0] not in token_ids
        else token_ids.index(str(cursor_position[0])) + 1
    )
    page_tokens = api_tokens[start_index : start_index + page_limit + 1]
    return token_cursors.build_page(
        [to_token_shown(api_token) for api_token in page_tokens],
        [[api_token.id] for api_token in page_tokens],
        page_limit,
    )


def to_token_shown(api_token: ApiToken) -> TokenShown:
    """Convert a token to its representation in the API, without its secret."""
    return TokenShown.model_validate(_to_token_fields(api_token))


def to_token_made(response: Response, made_token: NewApiToken) -> TokenMade:
    """Convert a new token to its representation with the secret, and mark the response `no-store`."""
    response.headers["Cache-Control"] = "no-store"
    return TokenMade.model_validate(
        {**_to_token_fields(made_token.api_token), "token": made_token.token_text}
    )


def require_known_tools(registry: Registry, new_token: NewToken) -> None:
    """Raise ApiTokenInvalid where the token is requested for a tool that does not exist."""
    unknown_tools = sorted(set(new_token.tools or ()) - registry.tools.keys())
    if unknown_tools:
        raise ApiTokenInvalid(
            f"There is no tool {', '.join(unknown_tools)}. List the tools to see which there are."
        )


def _to_token_fields(api_token: ApiToken) -> dict[str, object]:
    return {
        "id": api_token.id,
        "name": api_token.name,
        "state": api_token.token_state,
        "tools": None if api_token.tool_names is None else sorted(api_token.tool_names),
        "created_at": api_token.created_at,
        "expires_at": api_token.expires_at,
        "last_used_at": api_token.last_used_at,
        "revoked_at": api_token.revoked_at,
    }
