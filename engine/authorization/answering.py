"""Takes what people answer by a sign-in or by a choice of account, and lets whoever waited for that go on."""

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
    """Stores what was granted or chosen, in one transaction with the end of every request that it answers.

    A choice holds until its owner changes it; runs that have used an account already keep that one.
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
        """Store the grant, close every request that it answers and owe each waiter its wake-up, in one transaction.

        False where it does not answer the request itself, which asks for another account. An account that answers
        which one to use is used from now on by `tool`, or by every tool. `by` is the administrator who answered for a
        service. Without a `request`, nobody was asked: False, and nothing stored, where the account was given up.
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
        """Use this account from now on, by the tool or by every tool without one of its own; raises AccountUnknown."""
        await self._check(connection, principal, account)
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            await self._principals.hold(session, principal.id)
            await self._accounts.choose(session, principal.id, connection.name, account, tool=tool)
            await self._answer_decided(session, connection, principal.id)
            await record(session, _chosen(principal, connection, account, tool))
        self._waiters.owed.set()

    async def forget(self, connection: Connection, principal: Principal, *, tool: str = "") -> None:
        """Forget what was chosen for the tool, or for every tool without one of its own."""
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
        """Answer a question which account to use, `by` an administrator for a service; raises AccountUnknown."""
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
        """Whether an account just signed in to has to be remembered, since nothing else says that it is the one."""
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
        """Remember, in the caller's transaction, which account answers a request; the event to record of that."""
        await self._accounts.choose(session, principal.id, connection.name, account, tool=tool)
        if request.asks == "choice" and not tool:
            await self._accounts.unchoose(session, principal.id, connection.name, tool=request.about)
        return _chosen(principal, connection, account, tool, by=by)

    async def _answer_with(self, session: AsyncSession, request: AuthorizationRequest, account: str) -> None:
        """Answer a request, if it is open, in the caller's transaction; the runs that wait for it keep the account."""
        runs = await self._waiters.runs_awaiting(session, request.id)
        if await self._requests.granted(session, request.id):
            await self._accounts.settle(session, request.principal_id, request.connection, runs, account)

    async def _answer_decided(self, session: AsyncSession, connection: Connection, principal_id: str) -> None:
        """Answer, in the caller's transaction, every question which account to use that is none any more."""
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
    """Whether an account with these scopes is all that a request asks for, whatever it was signed in to for."""
    return (
        request.asks != "choice" and request.account in {None, account} and set(request.scopes) <= set(scopes)
    )


def _chosen(
    principal: Principal, connection: Connection, account: str, tool: str, *, by: Principal | None = None
) -> AuditEvent:
    """The event that tells of a choice of account."""
    return AuditEvent(
        kind="account.chosen",
        principal=principal,
        by=by,
        connection=connection.name,
        account=account,
        for_tool=tool or None,
    )
