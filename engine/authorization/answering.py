"""Records the grants and account choices that people give, and wakes the runs that waited for them."""

from collections.abc import Collection

from sqlmodel.ext.asyncio.session import AsyncSession

from engine.audit.trail import AuditEvent, Trail
from engine.authorization.requests import AuthorizationRequest, AuthorizationRequests
from engine.connections.accounts import Accounts
from engine.connections.connection import Connection
from engine.connections.grants import Grants
from engine.connections.tokens import Tokens
from engine.db.database import Database
from engine.errors import AccountUnknown
from engine.identity.model import Principal
from engine.identity.principals import Principals
from engine.waiting.waiters import Waiters


class Answering:
    """Stores a grant or a choice of account, and closes every request that it answers in the same transaction.

    A choice holds until its owner changes it. A run that has already used an account keeps that account.
    """

    def __init__(
        self,
        database: Database,
        principals: Principals,
        accounts: Accounts,
        grants: Grants,
        requests: AuthorizationRequests,
        waiters: Waiters,
        trail: Trail,
    ) -> None:
        self._database = database
        self._principals = principals
        self._accounts = accounts
        self._grants = grants
        self._requests = requests
        self._waiters = waiters
        self._trail = trail

    async def grant(
        self,
        request: AuthorizationRequest | None,
        connection: Connection,
        principal: Principal,
        tokens: Tokens,
        account: str,
        *,
        tool: str = "",
        by: Principal | None = None,
        run_id: str | None = None,
    ) -> bool:
        """Store the grant, close every request that it answers and enqueue the wake-ups, in one transaction.

        Returns False if the grant does not answer the request itself, because that asks for another account. If the
        request asks which account to use, this account is used from now on by `tool_name`, or by every tool if that
        is empty. `administrator` is who answered for a service. Without an `authorization_request` nobody was asked,
        and if the owner revoked the account before, nothing is stored and False is returned.
        """
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            await self._principals.hold(session, principal.id)
            if request is None and await self._grants.is_given_up(session, connection, principal.id, account):
                return False
            grant_id = await self._grants.store(session, connection, principal.id, tokens, account)
            granted = AuditEvent(
                kind="authorization.granted",
                principal=principal,
                by=by,
                connection=connection.name,
                mode=connection.mode,
                system=connection.system,
                scopes=tokens.scopes,
                account=account,
                grant_id=grant_id,
                run_id=run_id,
                request_id=None if request is None else request.id,
            )
            events = [granted]
            if request is not None and await self._has_to_choose(session, request, connection, account):
                events.append(await self._choose(session, request, connection, principal, account, tool, by))
            is_answered = request is None or request.account in {None, account}
            for each in await self._requests.open_in(session, principal.id, connection.name):
                if request is not None and each.id == request.id and is_answered:
                    await self._answer_with(session, each, account)
                elif _suffices(each, account, tokens.scopes):
                    await self._requests.granted(session, each.id)
            await self._answer_decided(session, connection, principal.id)
            await record(session, *events)
        self._waiters.owed.set()
        return is_answered

    async def use(
        self, connection: Connection, principal: Principal, account: str, *, tool: str = ""
    ) -> None:
        """Use this account from now on for the tool, or for every tool that has no choice of its own.

        Raises AccountUnknown if the principal has no active grant for the account.
        """
        await self._check(connection, principal, account)
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            await self._principals.hold(session, principal.id)
            await self._accounts.choose(session, principal.id, connection.name, account, tool=tool)
            await self._answer_decided(session, connection, principal.id)
            await record(session, _chosen(principal, connection, account, tool))
        self._waiters.owed.set()

    async def forget(self, connection: Connection, principal: Principal, *, tool: str = "") -> None:
        """Delete the choice of account for the tool, or the one for every tool that has no choice of its own."""
        record = await self._trail.recorder()
        forgotten = AuditEvent(
            kind="account.unchosen", principal=principal, connection=connection.name, for_tool=tool or None
        )
        async with self._database.writing() as session:
            await self._principals.hold(session, principal.id)
            await self._accounts.unchoose(session, principal.id, connection.name, tool=tool)
            await self._answer_decided(session, connection, principal.id)
            await record(session, forgotten)
        self._waiters.owed.set()

    async def answer(
        self,
        request: AuthorizationRequest,
        connection: Connection,
        principal: Principal,
        account: str,
        *,
        tool: str = "",
        by: Principal | None = None,
    ) -> None:
        """Answer a request that asks which account to use.

        `administrator` is who answers for a service. Raises AccountUnknown if the principal has no active grant for
        the account.
        """
        await self._check(connection, principal, account)
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            await self._principals.hold(session, principal.id)
            said = await self._choose(session, request, connection, principal, account, tool, by)
            await self._answer_with(session, request, account)
            await self._answer_decided(session, connection, principal.id)
            await record(session, said)
        self._waiters.owed.set()

    async def _has_to_choose(
        self, session: AsyncSession, request: AuthorizationRequest, connection: Connection, account: str
    ) -> bool:
        """Whether the account that was just signed in to must be recorded as a choice to become the one in use."""
        tool = request.about if request.asks == "choice" else ""
        standing = await self._grants.standing(session, connection, request.principal_id, tool=tool)
        is_alone = all(each.account == account for each in standing.usable)
        asked = request.asks == "choice" or (request.asks == "any_account" and is_alone)
        return asked and standing.account != account

    async def _choose(
        self,
        session: AsyncSession,
        request: AuthorizationRequest,
        connection: Connection,
        principal: Principal,
        account: str,
        tool: str,
        by: Principal | None,
    ) -> AuditEvent:
        """Record the chosen account in the caller's transaction, and return the audit event to write for it."""
        await self._accounts.choose(session, principal.id, connection.name, account, tool=tool)
        if request.asks == "choice" and not tool:
            await self._accounts.unchoose(session, principal.id, connection.name, tool=request.about)
        return _chosen(principal, connection, account, tool, by=by)

    async def _answer_with(self, session: AsyncSession, request: AuthorizationRequest, account: str) -> None:
        """Grant a request in the caller's transaction if it is open, and pin the account for its waiting runs."""
        runs = await self._waiters.runs_awaiting(session, request.id)
        if await self._requests.granted(session, request.id):
            await self._accounts.settle(session, request.principal_id, request.connection, runs, account)

    async def _answer_decided(self, session: AsyncSession, connection: Connection, principal_id: str) -> None:
        """Grant, in the caller's transaction, every choice request whose account to use is now determined."""
        for each in await self._requests.open_in(session, principal_id, connection.name):
            if each.asks == "choice":
                standing = await self._grants.standing(session, connection, principal_id, tool=each.about)
                if standing.grant is not None:
                    await self._requests.granted(session, each.id)

    async def _check(self, connection: Connection, principal: Principal, account: str) -> None:
        usable = await self._grants.usable(principal.id, connection.name)
        if account not in {grant.account for grant in usable}:
            raise AccountUnknown(
                f"You have not connected the account '{account}' of {connection.title}, or its sign-in has lapsed."
            )


def _suffices(request: AuthorizationRequest, account: str, scopes: Collection[str]) -> bool:
    """Whether a grant for this account with these scopes satisfies the request, whichever request it was made for."""
    return (
        request.asks != "choice" and request.account in {None, account} and set(request.scopes) <= set(scopes)
    )


def _chosen(
    principal: Principal, connection: Connection, account: str, tool: str, *, by: Principal | None = None
) -> AuditEvent:
    """Return the audit event for a choice of account."""
    return AuditEvent(
        kind="account.chosen",
        principal=principal,
        by=by,
        connection=connection.name,
        account=account,
        for_tool=tool or None,
    )
