"""Takes what people say of which account to use, and lets those who waited for that go on; it connects no account."""

from engine.audit.trail import AuditEvent, Trail
from engine.authorization.answering import Answering, chosen
from engine.authorization.requests import AuthorizationRequest
from engine.connections.accounts import Accounts
from engine.connections.connection import Connection
from engine.connections.grants import Grants
from engine.db.database import Database
from engine.errors import AccountUnknown
from engine.identity.model import Principal
from engine.identity.principals import Principals
from engine.waiting.waiters import Waiters


class AccountChoices:
    """A choice holds until its owner changes it; runs that have used an account already keep that one."""

    def __init__(
        self,
        database: Database,
        principals: Principals,
        accounts: Accounts,
        grants: Grants,
        answering: Answering,
        waiters: Waiters,
        trail: Trail,
    ) -> None:
        self._database = database
        self._principals = principals
        self._accounts = accounts
        self._grants = grants
        self._answering = answering
        self._waiters = waiters
        self._trail = trail

    async def use(
        self, connection: Connection, principal: Principal, account: str, *, tool: str = ""
    ) -> None:
        """Use this account from now on, by the tool or by every tool without one of its own; raises AccountUnknown."""
        await self._check(connection, principal, account)
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            await self._principals.hold(session, principal.id)
            await self._accounts.choose(session, principal.id, connection.name, account, tool=tool)
            await self._answering.answer_decided(session, connection, principal.id)
            await record(session, chosen(principal, connection, account, tool))
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
            await self._answering.answer_decided(session, connection, principal.id)
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
            said = await self._answering.choose(session, request, connection, principal, account, tool, by)
            await self._answering.answer_with(session, request, account)
            await self._answering.answer_decided(session, connection, principal.id)
            await record(session, said)
        self._waiters.owed.set()

    async def _check(self, connection: Connection, principal: Principal, account: str) -> None:
        usable = await self._grants.usable(principal.id, connection.name)
        if account not in {grant.account for grant in usable}:
            msg = f"You have not connected the account '{account}' of {connection.title}, or its sign-in has lapsed."
            raise AccountUnknown(msg)
