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

from engine.db.database import Database, utc_now
from engine.db.tables import AccountChoiceRow
from engine.identity.principals import Principals
from engine.settings import MAX_WAIT

# No Temporal server deletes a run within a day of its end, so a daily check finds each run before its deletion.
_RUN_CHECK_INTERVAL: Final = timedelta(days=1)
_UNSEEN_RUN_RETENTION: Final = MAX_WAIT + timedelta(days=30)


@dataclass(frozen=True, slots=True)
class AccountChoices:
    """The accounts chosen for one run of one tool: for the run itself, for the tool, and for every tool."""

    pinned_account: str | None = None
    tool_account: str | None = None
    default_account: str | None = None

    @property
    def is_pinned(self) -> bool:
        """Whether the run has already used an account, which it then uses until it ends."""
        return self.pinned_account is not None

    def select_account(self, unrevoked_accounts: Collection[str]) -> str | None:
        """Return the account to use, or None if the owner must choose one or there is none.

        The narrowest choice wins. Without any choice, a single account is used. `unrevoked_accounts` are all accounts
        whose grant was not revoked, including those whose grant has lapsed.
        """
        for account in (self.pinned_account, self.tool_account, self.default_account):
            if account is not None:
                return account
        return next(iter(unrevoked_accounts)) if len(unrevoked_accounts) == 1 else None


class Accounts:
    """Owns the table of account choices."""

    def __init__(self, database: Database, principals: Principals) -> None:
        self._database = database
        self._principals = principals

    async def find_choices(
        self,
        db_session: AsyncSession,
        principal_id: str,
        connection_name: str,
        *,
        tool_name: str,
        run_id: str,
    ) -> AccountChoices:
        """Return the choices that apply to a run of a tool, read in the caller's transaction."""
        choice_row = AccountChoiceRow
        statement = select(choice_row.tool, choice_row.run_id, choice_row.account).where(
            choice_row.principal_id == principal_id,
            choice_row.connection == connection_name,
            ((col(choice_row.run_id) == "") & col(choice_row.tool).in_({"", tool_name}))
            | ((col(choice_row.run_id) == run_id) & (col(choice_row.tool) == "")),
        )
        accounts_by_scope = {
            (choice_tool_name, choice_run_id): account
            for choice_tool_name, choice_run_id, account in (await db_session.exec(statement)).all()
        }
        return AccountChoices(
            pinned_account=accounts_by_scope.get(("", run_id)) if run_id else None,
            tool_account=accounts_by_scope.get((tool_name, "")) if tool_name else None,
            default_account=accounts_by_scope.get(("", "")),
        )

    async def list_choices(self, principal_id: str) -> Mapping[str, Mapping[str, str]]:
        """Return a person's choices as a mapping of connection to tool to account.

        The tool `""` stands for every tool without a choice of its own. Choices of single runs are left out.
        """
        statement = select(
            AccountChoiceRow.connection, AccountChoiceRow.tool, AccountChoiceRow.account
        ).where(AccountChoiceRow.principal_id == principal_id, AccountChoiceRow.run_id == "")
        choices_by_connection: dict[str, dict[str, str]] = {}
        async with self._database.open_read_session() as db_session:
            for connection_name, tool_name, account in (await db_session.exec(statement)).all():
                choices_by_connection.setdefault(connection_name, {})[tool_name] = account
        return choices_by_connection

    async def choose_account(
        self,
        db_session: AsyncSession,
        principal_id: str,
        connection_name: str,
        account: str,
        *,
        tool_name: str = "",
    ) -> None:
        """Use this account from now on. Writes in the caller's transaction, which must have locked the principal."""
        await self.clear_choice(db_session, principal_id, connection_name, tool_name=tool_name)
        db_session.add(_build_choice_row(principal_id, connection_name, account, tool_name=tool_name))

    async def clear_choice(
        self, db_session: AsyncSession, principal_id: str, connection_name: str, *, tool_name: str
    ) -> None:
        """Delete the choice for a tool, in the caller's transaction.

        The tool `""` stands for the choice that applies to every tool without one of its own.
        """
        await db_session.exec(
            delete(AccountChoiceRow).where(
                col(AccountChoiceRow.principal_id) == principal_id,
                col(AccountChoiceRow.connection) == connection_name,
                col(AccountChoiceRow.tool) == tool_name,
                col(AccountChoiceRow.run_id) == "",
            )
        )

    async def pin_account(self, principal_id: str, connection_name: str, run_id: str, account: str) -> str:
        """Pin a run to the account that it is about to use, and return the account to which it is pinned.

        A run that is already pinned stays with its account.
        """
        async with self._database.open_write_session() as db_session:
            await self._principals.lock_principal(db_session, principal_id)
            await self.pin_account_for_runs(db_session, principal_id, connection_name, [run_id], account)
            await db_session.flush()
            account_choices = await self.find_choices(
                db_session, principal_id, connection_name, tool_name="", run_id=run_id
            )
        return account_choices.pinned_account or account

    async def pin_account_for_runs(
        self,
        db_session: AsyncSession,
        principal_id: str,
        connection_name: str,
        run_ids: Collection[str],
        account: str,
    ) -> None:
        """Pin those of these runs that have no account yet to this one, in the caller's transaction."""
        statement = select(AccountChoiceRow.run_id).where(
            AccountChoiceRow.principal_id == principal_id,
            AccountChoiceRow.connection == connection_name,
            col(AccountChoiceRow.run_id).in_(run_ids),
        )
        pinned_run_ids = set((await db_session.exec(statement)).all())
        for run_id in sorted(set(run_ids) - pinned_run_ids):
            db_session.add(_build_choice_row(principal_id, connection_name, account, run_id=run_id))

    async def list_due_runs(self, max_runs: int) -> list[str]:
        """Return the ids of runs that are pinned to an account and due for their daily check, longest overdue first."""
        statement = (
            select(AccountChoiceRow.run_id)
            .where(col(AccountChoiceRow.due_at) <= utc_now())
            .group_by(AccountChoiceRow.run_id)
            .order_by(func.min(AccountChoiceRow.due_at))
            .limit(max_runs)
        )
        async with self._database.open_read_session() as db_session:
            return list((await db_session.exec(statement)).all())

    async def forget_deleted_runs(
        self, checked_run_ids: Collection[str], existing_run_ids: Collection[str], namespace: str
    ) -> int:
        """Delete the pinned accounts of runs that a Temporal namespace no longer has, and return how many were deleted.

        `checked_run_ids` are the runs that were looked up in the namespace, and `existing_run_ids` those that it has. A
        run counts as deleted only if it was found in the same namespace before, since a namespace that never had a run
        proves nothing about it. A run that was never found in any namespace is dropped once its choice is older than
        the longest wait plus 30 days.
        """
        run_id_column, namespace_column = col(AccountChoiceRow.run_id), col(AccountChoiceRow.namespace)
        never_seen_condition = namespace_column.is_(None) & (
            col(AccountChoiceRow.chosen_at) < utc_now() - _UNSEEN_RUN_RETENTION
        )
        deleted_condition = run_id_column.in_(set(checked_run_ids) - set(existing_run_ids)) & (
            (namespace_column == namespace) | never_seen_condition
        )
        postpone_statement = update(AccountChoiceRow).values(due_at=utc_now() + _RUN_CHECK_INTERVAL)
        async with self._database.open_write_session() as db_session:
            delete_result = await db_session.exec(delete(AccountChoiceRow).where(deleted_condition))
            await db_session.exec(postpone_statement.where(run_id_column.in_(checked_run_ids)))
            await db_session.exec(
                update(AccountChoiceRow)
                .where(run_id_column.in_(existing_run_ids))
                .values(namespace=namespace)
            )
        return int(delete_result.rowcount)


def _build_choice_row(
    principal_id: str, connection_name: str, account: str, *, tool_name: str = "", run_id: str = ""
) -> AccountChoiceRow:
    return AccountChoiceRow(
        principal_id=principal_id,
        connection=connection_name,
        tool=tool_name,
        run_id=run_id,
        account=account,
        chosen_at=utc_now(),
        due_at=utc_now() if run_id else None,
    )
