"""REST routes for connections as the caller sees them: their own grants, and which account is used. Shows no token."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from engine.authorization.answer_recorder import AnswerRecorder
from engine.connections.catalogue import ConnectionCatalogue
from engine.connections.connection import Connection
from engine.errors import NotAllowed
from engine.grants.accounts import AccountChoices as AccountsChosen
from engine.grants.accounts import Accounts
from engine.grants.grants import Grant, Grants, GrantSituation
from engine.grants.removal import GrantRemoval
from engine.runs.caller import Caller
from engine.tools.registry import Registry
from engine.vault.vault import Vault
from gateway.api.authentication import ApiCaller, InPersonCaller
from gateway.api.cursors import DEFAULT_PAGE_ITEMS, ListCursors, Page, PageCursor, PageLimit
from gateway.api.problems import RequestRefused, describe_problems

_ConnectionName = Annotated[str, Path(max_length=200)]
_AccountQuery = Annotated[
    str | None,
    Query(max_length=1000, description="The account, if you have several on the connection."),
]
_ToolQuery = Annotated[
    str | None,
    Query(max_length=200, description="A tool. If omitted, every tool for which no other account is chosen."),
]


class GrantShown(BaseModel):
    """A grant of the caller on the connection."""

    account: str = Field(description="The upstream's own name for the account. Empty if it has none.")
    scopes: list[str]
    since: datetime
    lapsed: bool = Field(
        description="Whether the upstream no longer accepts the grant, so that the caller has to sign in again."
    )


class AccountChoiceShown(BaseModel):
    """An account that the caller chose."""

    tool: str | None = Field(
        description="The tool that uses it. Null for every tool for which no other account is chosen."
    )
    account: str


class NewAccountChoice(BaseModel):
    """The account to use from now on."""

    model_config = ConfigDict(extra="forbid")

    account: str = Field(max_length=1000, description="An account that you have connected.")
    tool: str | None = Field(
        default=None,
        max_length=200,
        description="The tool to choose for. If omitted, every tool for which no other account is chosen.",
    )


class ConnectionShown(BaseModel):
    """A way to sign in to one upstream system."""

    name: str
    title: str
    system: str
    mode: Literal["user", "shared"] = Field(
        description="`user`: each person's own account. `shared`: one account for everybody."
    )
    scopes: list[str] = Field(description="The scopes that a sign-in requests.")
    grant: GrantShown | None = Field(
        description="The caller's grant that tools use if no account is chosen for them. Null if there is none, if the "
        "caller has to choose one, or if the connection is shared."
    )
    accounts: list[GrantShown] = Field(
        description="All grants of the caller. For a token that is limited to some tools, those that these use."
    )
    chosen: list[AccountChoiceShown] = Field(
        description="The accounts that the caller chose. Runs that already use an account keep it."
    )


@dataclass(frozen=True, slots=True)
class TokenScope:
    """The connections that a caller's token covers: those that its `tools` use, or all where `tools` is None."""

    registry: Registry
    tool_names: frozenset[str] | None

    def covers_connection(self, connection_name: str) -> bool:
        """Return whether the token covers the connection."""
        return self.tool_names is None or bool(self.list_tools_using(connection_name))

    def list_tools_using(self, connection_name: str) -> list[str]:
        """Return those of the tools that the token is limited to that use the connection, sorted by name."""
        return sorted(
            tool_name
            for tool_name in self.tool_names or ()
            if self.registry.may_use_connection(tool_name, connection_name)
        )

    def require_connection(self, connection_name: str) -> None:
        """Raise NotAllowed where the token does not cover the connection."""
        if not self.covers_connection(connection_name):
            raise NotAllowed(
                f"This token is for tools that do not use '{connection_name}'. Make one for others, or sign in."
            )


@dataclass(frozen=True, slots=True)
class _OwnConnections:
    """The caller's grants and chosen accounts by connection, as far as their token covers these."""

    grants_by_connection: Mapping[str, list[Grant]]
    choices_by_connection: Mapping[str, Mapping[str, str]]
    token_scope: TokenScope

    def to_connection_shown(self, connection: Connection) -> ConnectionShown:
        own_grants, chosen_accounts = (
            self.grants_by_connection.get(connection.name, []),
            self.choices_by_connection.get(connection.name, {}),
        )
        used_grant = GrantSituation(
            tuple(own_grants), AccountsChosen(default_account=chosen_accounts.get(""))
        ).selected_grant
        if self.token_scope.tool_names is not None:
            tool_names = self.token_scope.list_tools_using(connection.name)
            used_accounts = {
                GrantSituation(
                    tuple(own_grants),
                    AccountsChosen(None, chosen_accounts.get(tool_name), chosen_accounts.get("")),
                ).selected_account
                for tool_name in tool_names
            }
            own_grants = [grant for grant in own_grants if grant.account in used_accounts]
            used_grant = used_grant if used_grant in own_grants else None
            chosen_accounts = {
                tool_name: account
                for tool_name, account in chosen_accounts.items()
                if account in used_accounts and tool_name in {"", *tool_names}
            }
        return ConnectionShown(
            name=connection.name,
            title=connection.title,
            system=connection.system,
            mode=connection.mode,
            scopes=list(connection.scopes),
            grant=None if used_grant is None else _to_grant_shown(used_grant),
            accounts=[_to_grant_shown(grant) for grant in own_grants],
            chosen=[
                AccountChoiceShown(tool=tool_name or None, account=account)
                for tool_name, account in sorted(chosen_accounts.items())
            ],
        )


def build_routes(
    *,
    catalogue: ConnectionCatalogue,
    grants: Grants,
    accounts: Accounts,
    answer_recorder: AnswerRecorder,
    grant_removal: GrantRemoval,
    registry: Registry,
    vault: Vault,
) -> APIRouter:
    """Build the router that lists and reads connections, chooses accounts, and gives up the caller's own grants."""
    router = APIRouter(tags=["connections"])
    connection_cursors = ListCursors(vault, "connections")

    async def load_own_connections(caller: ApiCaller) -> _OwnConnections:
        return await _load_own_connections(grants, accounts, TokenScope(registry, caller.tool_names), caller)

    own_connections_of_caller = Depends(load_own_connections)

    @router.get(
        "/connections",
        summary="List the connections, with your grants",
        responses=describe_problems(400, 422),
    )
    async def list_connections(
        own_connections: Annotated[_OwnConnections, own_connections_of_caller],
        after: PageCursor = None,
        limit: PageLimit = DEFAULT_PAGE_ITEMS,
    ) -> Page[ConnectionShown]:
        """A token that is limited to some tools sees only the connections and accounts that these use."""
        cursor_position = connection_cursors.open_cursor(after)
        after_name = "" if cursor_position is None else str(cursor_position[0])
        connections_by_name = await catalogue.list_connections()
        connection_names = sorted(
            connection_name
            for connection_name in connections_by_name
            if connection_name > after_name and own_connections.token_scope.covers_connection(connection_name)
        )[: limit + 1]
        page_items = [
            own_connections.to_connection_shown(connections_by_name[connection_name])
            for connection_name in connection_names
        ]
        return connection_cursors.build_page(
            page_items, [[connection_name] for connection_name in connection_names], limit
        )

    @router.get(
        "/connections/{name}",
        summary="Get a connection, with your grant",
        responses=describe_problems(403, 404, 422),
    )
    async def get_connection(
        own_connections: Annotated[_OwnConnections, own_connections_of_caller], name: _ConnectionName
    ) -> ConnectionShown:
        connection = await catalogue.get_connection(name)
        own_connections.token_scope.require_connection(name)
        return own_connections.to_connection_shown(connection)

    @router.put(
        "/connections/{name}/choice",
        summary="Choose which of your accounts is used",
        responses=describe_problems(403, 404, 422),
    )
    async def choose(
        caller: InPersonCaller, name: _ConnectionName, account_choice: NewAccountChoice
    ) -> ConnectionShown:
        """The choice applies to runs that begin to use the connection from now on, until you change it."""
        connection = await _require_user_connection(catalogue, name)
        tool_name = "" if account_choice.tool is None else registry.find_tool(account_choice.tool).name
        await answer_recorder.choose_account(
            connection, caller.principal, account_choice.account, tool_name=tool_name
        )
        return (await load_own_connections(caller)).to_connection_shown(connection)

    @router.delete(
        "/connections/{name}/choice",
        summary="Remove your choice of an account",
        status_code=HTTPStatus.NO_CONTENT,
        responses=describe_problems(403, 404, 422),
    )
    async def unchoose(caller: InPersonCaller, name: _ConnectionName, tool: _ToolQuery = None) -> None:
        """Without a choice, your only account is used. If you have several, you are asked."""
        connection = await _require_user_connection(catalogue, name)
        await answer_recorder.forget_choice(connection, caller.principal, tool_name=tool or "")

    @router.delete(
        "/connections/{name}/grant",
        summary="Delete your grant on a connection",
        status_code=HTTPStatus.NO_CONTENT,
        responses=describe_problems(403, 404, 409, 422, 502),
    )
    async def delete_grant(
        caller: InPersonCaller, name: _ConnectionName, account: _AccountQuery = None
    ) -> None:
        """The grant is also revoked upstream. The next action that needs one asks for a sign-in again."""
        connection = await catalogue.get_connection(name)
        if not await grant_removal.remove_own_grant(connection, caller.principal, account):
            account_phrase = "" if account is None else f" of account '{account}'"
            detail = f"You have no grant{account_phrase} on connection '{name}'."
            raise RequestRefused(HTTPStatus.NOT_FOUND, "grant_unknown", detail)

    return router


async def _load_own_connections(
    grants: Grants, accounts: Accounts, token_scope: TokenScope, caller: Caller
) -> _OwnConnections:
    grants_by_connection: dict[str, list[Grant]] = {}
    for grant in await grants.list_grants(caller.principal.id):
        grants_by_connection.setdefault(grant.connection_name, []).append(grant)
    choices_by_connection = await accounts.list_choices(caller.principal.id)
    return _OwnConnections(grants_by_connection, choices_by_connection, token_scope)


async def _require_user_connection(catalogue: ConnectionCatalogue, connection_name: str) -> Connection:
    connection = await catalogue.get_connection(connection_name)
    if connection.mode == "shared":
        raise NotAllowed(
            f"Connection '{connection_name}' is shared: it has one account, for everybody, and nobody chooses."
        )
    return connection


def _to_grant_shown(grant: Grant) -> GrantShown:
    return GrantShown(
        account=grant.account, scopes=list(grant.scopes), since=grant.created_at, lapsed=grant.has_lapsed
    )
