"""Records the grants and account choices that people give, and wakes the runs that waited for them."""

from collections.abc import Collection

from sqlmodel.ext.asyncio.session import AsyncSession

from engine.audit.trail import AuditEvent, AuditTrail
from engine.authorization.requests import AuthorizationRequest, AuthorizationRequests
from engine.connections.connection import Connection
from engine.errors import AccountUnknown
from engine.grants.accounts import Accounts
from engine.grants.grants import Grants
from engine.identity.model import Principal
from engine.identity.principals import Principals
from engine.oauth.tokens import UpstreamTokens
from engine.waiting.waiters import Waiters


class AnswerRecorder:
    """Stores a grant or a choice of account, and closes every request that it answers in the same transaction.

    A choice holds until its owner changes it. A run that has already used an account keeps that account.
    """

    def __init__(
        self,
        principals: Principals,
        accounts: Accounts,
        grants: Grants,
        authorization_requests: AuthorizationRequests,
        waiters: Waiters,
        trail: AuditTrail,
    ) -> None:
        self._principals = principals
        self._accounts = accounts
        self._grants = grants
        self._authorization_requests = authorization_requests
        self._waiters = waiters
        self._trail = trail

    async def record_grant(
        self,
        authorization_request: AuthorizationRequest | None,
        connection: Connection,
        principal: Principal,
        oauth_tokens: UpstreamTokens,
        account: str,
        *,
        tool_name: str = "",
        administrator: Principal | None = None,
        run_id: str | None = None,
    ) -> bool:
        """Store the grant, close every request that it answers and enqueue the wake-ups, in one transaction.

        Returns False if the request asks for another account than this grant's. If the
        request asks which account to use, this account is used from now on by `tool_name`, or by every tool if that
        is empty. `administrator` is who answered for a service. Without an `authorization_request` nobody was asked,
        and if the owner revoked the account before, nothing is stored and False is returned.
        """
        async with self._trail.open_transaction() as transaction:
            await self._principals.lock_principal(transaction.db_session, principal.id)
            if authorization_request is None and await self._grants.is_revoked_by_owner(
                transaction.db_session, connection, principal.id, account
            ):
                return False
            grant_id = await self._grants.store_grant(
                transaction.db_session, connection, principal.id, oauth_tokens, account
            )
            granted_event = AuditEvent(
                kind="authorization.granted",
                principal=principal,
                by=administrator,
                connection=connection.name,
                mode=connection.mode,
                system=connection.system,
                scopes=oauth_tokens.scopes,
                account=account,
                grant_id=grant_id,
                run_id=run_id,
                request_id=None if authorization_request is None else authorization_request.id,
            )
            audit_events = [granted_event]
            if authorization_request is not None and await self._should_record_choice(
                transaction.db_session, authorization_request, connection, account
            ):
                audit_events.append(
                    await self._record_choice(
                        transaction.db_session,
                        authorization_request,
                        connection,
                        principal,
                        account,
                        tool_name,
                        administrator,
                    )
                )
            is_answered = authorization_request is None or authorization_request.account in {None, account}
            for open_request in await self._authorization_requests.list_open_on_connection(
                transaction.db_session, principal.id, connection.name
            ):
                if (
                    authorization_request is not None
                    and open_request.id == authorization_request.id
                    and is_answered
                ):
                    await self._answer_request(transaction.db_session, open_request, account)
                elif _is_satisfied_by(open_request, account, oauth_tokens.scopes):
                    await self._authorization_requests.grant_request(transaction.db_session, open_request.id)
            await self._grant_settled_choices(transaction.db_session, connection, principal.id)
            transaction.record(*audit_events)
        self._waiters.wake_ups_due.set()
        return is_answered

    async def choose_account(
        self, connection: Connection, principal: Principal, account: str, *, tool_name: str = ""
    ) -> None:
        """Use this account from now on for the tool, or for every tool that has no choice of its own.

        Raises AccountUnknown if the principal has no active grant for the account.
        """
        await self._require_active_account(connection, principal, account)
        async with self._trail.open_transaction() as transaction:
            await self._principals.lock_principal(transaction.db_session, principal.id)
            await self._accounts.choose_account(
                transaction.db_session, principal.id, connection.name, account, tool_name=tool_name
            )
            await self._grant_settled_choices(transaction.db_session, connection, principal.id)
            transaction.record(_build_choice_event(principal, connection, account, tool_name))
        self._waiters.wake_ups_due.set()

    async def forget_choice(
        self, connection: Connection, principal: Principal, *, tool_name: str = ""
    ) -> None:
        """Delete the choice of account for the tool, or the one for every tool that has no choice of its own."""
        forgotten_event = AuditEvent(
            kind="account.unchosen",
            principal=principal,
            connection=connection.name,
            for_tool=tool_name or None,
        )
        async with self._trail.open_transaction() as transaction:
            await self._principals.lock_principal(transaction.db_session, principal.id)
            await self._accounts.clear_choice(
                transaction.db_session, principal.id, connection.name, tool_name=tool_name
            )
            await self._grant_settled_choices(transaction.db_session, connection, principal.id)
            transaction.record(forgotten_event)
        self._waiters.wake_ups_due.set()

    async def answer_choice(
        self,
        authorization_request: AuthorizationRequest,
        connection: Connection,
        principal: Principal,
        account: str,
        *,
        tool_name: str = "",
        administrator: Principal | None = None,
    ) -> None:
        """Answer a request that asks which account to use.

        `administrator` is who answers for a service. Raises AccountUnknown if the principal has no active grant for
        the account.
        """
        await self._require_active_account(connection, principal, account)
        async with self._trail.open_transaction() as transaction:
            await self._principals.lock_principal(transaction.db_session, principal.id)
            choice_event = await self._record_choice(
                transaction.db_session,
                authorization_request,
                connection,
                principal,
                account,
                tool_name,
                administrator,
            )
            await self._answer_request(transaction.db_session, authorization_request, account)
            await self._grant_settled_choices(transaction.db_session, connection, principal.id)
            transaction.record(choice_event)
        self._waiters.wake_ups_due.set()

    async def _should_record_choice(
        self,
        db_session: AsyncSession,
        authorization_request: AuthorizationRequest,
        connection: Connection,
        account: str,
    ) -> bool:
        """Whether the new account becomes the one in use only if it is recorded as a choice."""
        tool_name = authorization_request.about if authorization_request.request_kind == "choice" else ""
        grant_situation = await self._grants.find_situation(
            db_session, connection, authorization_request.principal_id, tool_name=tool_name
        )
        is_only_account = all(
            active_grant.account == account for active_grant in grant_situation.active_grants
        )
        is_choice_requested = authorization_request.request_kind == "choice" or (
            authorization_request.request_kind == "any_account" and is_only_account
        )
        return is_choice_requested and grant_situation.selected_account != account

    async def _record_choice(
        self,
        db_session: AsyncSession,
        authorization_request: AuthorizationRequest,
        connection: Connection,
        principal: Principal,
        account: str,
        tool_name: str,
        administrator: Principal | None,
    ) -> AuditEvent:
        """Record the chosen account in the caller's transaction, and return the audit event to write for it."""
        await self._accounts.choose_account(
            db_session, principal.id, connection.name, account, tool_name=tool_name
        )
        if authorization_request.request_kind == "choice" and not tool_name:
            await self._accounts.clear_choice(
                db_session, principal.id, connection.name, tool_name=authorization_request.about
            )
        return _build_choice_event(principal, connection, account, tool_name, administrator=administrator)

    async def _answer_request(
        self, db_session: AsyncSession, authorization_request: AuthorizationRequest, account: str
    ) -> None:
        """Grant a request in the caller's transaction if it is open, and pin the account for its waiting runs."""
        run_ids = await self._waiters.list_waiting_runs(db_session, authorization_request.id)
        if await self._authorization_requests.grant_request(db_session, authorization_request.id):
            await self._accounts.pin_account_for_runs(
                db_session,
                authorization_request.principal_id,
                authorization_request.connection_name,
                run_ids,
                account,
            )

    async def _grant_settled_choices(
        self, db_session: AsyncSession, connection: Connection, principal_id: str
    ) -> None:
        """Grant, in the caller's transaction, every choice request whose account to use is now determined."""
        for open_request in await self._authorization_requests.list_open_on_connection(
            db_session, principal_id, connection.name
        ):
            if open_request.request_kind == "choice":
                grant_situation = await self._grants.find_situation(
                    db_session, connection, principal_id, tool_name=open_request.about
                )
                if grant_situation.selected_grant is not None:
                    await self._authorization_requests.grant_request(db_session, open_request.id)

    async def _require_active_account(
        self, connection: Connection, principal: Principal, account: str
    ) -> None:
        active_grants = await self._grants.list_active_grants(principal.id, connection.name)
        if account not in {active_grant.account for active_grant in active_grants}:
            raise AccountUnknown(
                f"You have not connected the account '{account}' of {connection.title}, or its sign-in has lapsed."
            )


def _is_satisfied_by(
    authorization_request: AuthorizationRequest, account: str, scopes: Collection[str]
) -> bool:
    """Whether a grant for this account with these scopes satisfies the request, whichever request it was made for."""
    return (
        authorization_request.request_kind != "choice"
        and authorization_request.account in {None, account}
        and set(authorization_request.scopes) <= set(scopes)
    )


def _build_choice_event(
    principal: Principal,
    connection: Connection,
    account: str,
    tool_name: str,
    *,
    administrator: Principal | None = None,
) -> AuditEvent:
    """Return the audit event for a choice of account."""
    return AuditEvent(
        kind="account.chosen",
        principal=principal,
        by=administrator,
        connection=connection.name,
        account=account,
        for_tool=tool_name or None,
    )
