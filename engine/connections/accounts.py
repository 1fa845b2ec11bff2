"""Which of their accounts on a connection a principal's actions use: as they chose; it never falls back to another."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import delete, func, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.db.database import Database, now
from engine.db.tables import AccountChoiceRow
from engine.identity.principals import Principals
from engine.settings import LONGEST_WAIT

# No server forgets a run within a day of its end, so that each is seen there before it is gone.
_LOOKED_AT_AGAIN: Final = timedelta(days=1)
_LOST: Final = LONGEST_WAIT + timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was chosen, from the narrowest on: for the run, for the tool, for every tool."""

    for_run: str | None = None
    for_tool: str | None = None
    for_all: str | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the run has used an account already, and so keeps it for its whole life."""
        return self.for_run is not None

    def among(self, known: Collection[str]) -> str | None:
        """The account to use; None where only its owner can say which, or there is none.

        `known` are all that they did not give up, whether or not they can be used at the moment.
        """
        for account in (self.for_run, self.for_tool, self.for_all):
            if account is not None:
                return account
        return next(iter(known)) if len(known) == 1 else None


class Accounts:
    """Owner of the table of choices."""

    def __init__(self, database: Database, principals: Principals) -> None:
        self._database = database
        self._principals = principals

    async def chosen(
        self, session: AsyncSession, principal_id: str, connection: str, *, tool: str, run_id: str
    ) -> Chosen:
        """What holds for a run of a tool, seen from the caller's transaction."""
        row = AccountChoiceRow
        query = select(row.tool, row.run_id, row.account).where(
            row.principal_id == principal_id,
            row.connection == connection,
            ((col(row.run_id) == "") & col(row.tool).in_({"", tool}))
            | ((col(row.run_id) == run_id) & (col(row.tool) == "")),
        )
        found = {(of_tool, of_run): account for of_tool, of_run, account in (await session.exec(query)).all()}
        return Chosen(
            for_run=found.get(("", run_id)) if run_id else None,
            for_tool=found.get((tool, "")) if tool else None,
            for_all=found.get(("", "")),
        )

    async def of(self, principal_id: str) -> Mapping[str, Mapping[str, str]]:
        """What a person chose, by connection: the account for each tool, and for `""`, which is every other tool."""
        query = select(AccountChoiceRow.connection, AccountChoiceRow.tool, AccountChoiceRow.account).where(
            AccountChoiceRow.principal_id == principal_id, AccountChoiceRow.run_id == ""
        )
        found: dict[str, dict[str, str]] = {}
        async with self._database.reading() as session:
            for connection, tool, account in (await session.exec(query)).all():
                found.setdefault(connection, {})[tool] = account
        return found

    async def choose(
        self, session: AsyncSession, principal_id: str, connection: str, account: str, *, tool: str = ""
    ) -> None:
        """Use this account from now on, in the caller's transaction, which holds the principal."""
        await self.unchoose(session, principal_id, connection, tool=tool)
        session.add(_row(principal_id, connection, account, tool=tool))

    async def unchoose(self, session: AsyncSession, principal_id: str, connection: str, *, tool: str) -> None:
        """Forget, in the caller's transaction, what was chosen for a tool, or for every tool without one of its own."""
        await session.exec(
            delete(AccountChoiceRow).where(
                col(AccountChoiceRow.principal_id) == principal_id,
                col(AccountChoiceRow.connection) == connection,
                col(AccountChoiceRow.tool) == tool,
                col(AccountChoiceRow.run_id) == "",
            )
        )

    async def keep(self, principal_id: str, connection: str, run_id: str, account: str) -> str:
        """Let a run keep the account that it is about to use first; the one that it keeps, where it has one already."""
        async with self._database.writing() as session:
            await self._principals.hold(session, principal_id)
            await self.settle(session, principal_id, connection, [run_id], account)
            await session.flush()
            chosen = await self.chosen(session, principal_id, connection, tool="", run_id=run_id)
        return chosen.for_run or account

    async def settle(
        self,
        session: AsyncSession,
        principal_id: str,
        connection: str,
        run_ids: Collection[str],
        account: str,
    ) -> None:
        """Let those of these runs that have no account yet keep this one, in the caller's transaction."""
        query = select(AccountChoiceRow.run_id).where(
            AccountChoiceRow.principal_id == principal_id,
            AccountChoiceRow.connection == connection,
            col(AccountChoiceRow.run_id).in_(run_ids),
        )
        settled = set((await session.exec(query)).all())
        for run_id in sorted(set(run_ids) - settled):
            session.add(_row(principal_id, connection, account, run_id=run_id))

    async def due(self, limit: int) -> list[str]:
        """Runs that keep an account and that nobody looked for within a day, the longest overdue first."""
        query = (
            select(AccountChoiceRow.run_id)
            .where(col(AccountChoiceRow.due_at) <= now())
            .group_by(AccountChoiceRow.run_id)
            .order_by(func.min(AccountChoiceRow.due_at))
            .limit(limit)
        )
        async with self._database.reading() as session:
            return list((await session.exec(query)).all())

    async def forget(self, looked_for: Collection[str], kept: Collection[str], namespace: str) -> int:
        """Forget the accounts of runs that this Temporal namespace, where they were looked for, keeps no more.

        Only what it kept before counts as gone: a namespace that never knew a run says nothing of it. What was seen in
        none goes once it is older than the longest wait. Returns how many accounts went.
        """
        run, known_to = col(AccountChoiceRow.run_id), col(AccountChoiceRow.namespace)
        was_never_seen = known_to.is_(None) & (col(AccountChoiceRow.chosen_at) < now() - _LOST)
        gone = run.in_(set(looked_for) - set(kept)) & ((known_to == namespace) | was_never_seen)
        put_off = update(AccountChoiceRow).values(due_at=now() + _LOOKED_AT_AGAIN)
        async with self._database.writing() as session:
            forgotten = await session.exec(delete(AccountChoiceRow).where(gone))
            await session.exec(put_off.where(run.in_(looked_for)))
            await session.exec(update(AccountChoiceRow).where(run.in_(kept)).values(namespace=namespace))
        return int(forgotten.rowcount)


def _row(
    principal_id: str, connection: str, account: str, *, tool: str = "", run_id: str = ""
) -> AccountChoiceRow:
    return AccountChoiceRow(
        principal_id=principal_id,
        connection=connection,
        tool=tool,
        run_id=run_id,
        account=account,
        chosen_at=now(),
        due_at=now() if run_id else None,
    )
