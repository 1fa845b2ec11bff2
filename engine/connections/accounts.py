"""Stores which upstream account a principal's actions use on each connection.

The principal chooses the account. Byline never falls back to another account.
"""

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

# No Temporal server deletes a run within a day of its end, so a daily check finds each run before its deletion.
_LOOKED_AT_AGAIN: Final = timedelta(days=1)
_LOST: Final = LONGEST_WAIT + timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The accounts chosen for one run of one tool: for the run itself, for the tool, and for every tool."""

    for_run: str | None = None
    for_tool: str | None = None
    for_all: str | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the run has already used an account, which it then uses until it ends."""
        return self.for_run is not None

    def among(self, known: Collection[str]) -> str | None:
        """Return the account to use, or None if the owner must choose one or there is none.

        The narrowest choice wins. Without any choice, a single account is used. `unrevoked_accounts` are all accounts
        whose grant was not revoked, including those whose grant has lapsed.
        """
        for account in (self.for_run, self.for_tool, self.for_all):
            if account is not None:
                return account
        return next(iter(known)) if len(known) == 1 else None


class Accounts:
    """Owns the table of account choices."""

    def __init__(self, database: Database, principals: Principals) -> None:
        self._database = database
        self._principals = principals

    async def chosen(
        self, session: AsyncSession, principal_id: str, connection: str, *, tool: str, run_id: str
    ) -> Chosen:
        """Return the choices that apply to a run of a tool, read in the caller's transaction."""
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
        """Return a person's choices as a mapping of connection to tool to account.

        The tool `""` stands for every tool without a choice of its own. Choices of single runs are left out.
        """
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
        """Use this account from now on. Writes in the caller's transaction, which must have locked the principal."""
        await self.unchoose(session, principal_id, connection, tool=tool)
        session.add(_row(principal_id, connection, account, tool=tool))

    async def unchoose(self, session: AsyncSession, principal_id: str, connection: str, *, tool: str) -> None:
        """Delete the choice for a tool, in the caller's transaction.

        The tool `""` stands for the choice that applies to every tool without one of its own.
        """
        await session.exec(
            delete(AccountChoiceRow).where(
                col(AccountChoiceRow.principal_id) == principal_id,
                col(AccountChoiceRow.connection) == connection,
                col(AccountChoiceRow.tool) == tool,
                col(AccountChoiceRow.run_id) == "",
            )
        )

    async def keep(self, principal_id: str, connection: str, run_id: str, account: str) -> str:
        """Pin a run to the account that it is about to use, and return the account to which it is pinned.

        A run that is already pinned stays with its account.
        """
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
        """Pin those of these runs that have no account yet to this one, in the caller's transaction."""
        query = select(AccountChoiceRow.run_id).where(
            AccountChoiceRow.principal_id == principal_id,
            AccountChoiceRow.connection == connection,
            col(AccountChoiceRow.run_id).in_(run_ids),
        )
        settled = set((await session.exec(query)).all())
        for run_id in sorted(set(run_ids) - settled):
            session.add(_row(principal_id, connection, account, run_id=run_id))

    async def due(self, limit: int) -> list[str]:
        """Return the ids of runs that are pinned to an account and due for their daily check, longest overdue first."""
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
        """Delete the pinned accounts of runs that a Temporal namespace no longer has, and return how many were deleted.

        `checked_run_ids` are the runs that were looked up in the namespace, and `existing_run_ids` those that it has. A
        run counts as deleted only if it was found in the same namespace before, since a namespace that never had a run
        proves nothing about it. A run that was never found in any namespace is dropped once its choice is older than
        the longest wait plus 30 days.
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
