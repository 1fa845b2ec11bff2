"""Stores the questions that runs ask and the answers to them, each in one transaction with its waiters."""

import uuid
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.audit.trail import AuditEvent, AuditTrail
from engine.db.database import Database, utc_now
from engine.db.tables import QuestionRow, WaiterRow
from engine.errors import (
    AnswerRequired,
    ApprovalDenied,
    ApprovalExpired,
    NotAllowed,
    QuestionCancelled,
    QuestionClosed,
    QuestionDeclined,
    QuestionEnded,
    QuestionExpired,
    QuestionUnknown,
)
from engine.identity.model import Identity, Principal
from engine.identity.principals import Principals
from engine.identity.roles import Roles
from engine.questions.answer_validation import validate_answer
from engine.questions.ask_clients import validate_client_answer
from engine.questions.ask_people import Person, QuestionAnswer, QuestionInput, QuestionKind
from engine.settings import MAX_WAIT
from engine.waiting.waiters import ParkedAction, Waiter, Waiters
from engine.wire import QUESTION_NAMESPACE

QuestionState = Literal["open", "answered", "declined", "expired", "cancelled"]


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a run to its own principal, to anybody else who has `role`, or to the MCP client that called it."""

    id: str
    kind: QuestionKind
    principal_id: str
    role: str | None
    run_id: str
    message: str
    answer_schema: Mapping[str, Any]
    parameters: Mapping[str, Any]
    """The request to a client as MCP puts it on the wire. It is empty for a form."""
    name: str | None
    state: QuestionState
    answered_by: str | None
    created_at: datetime
    expires_at: datetime

    @property
    def is_open(self) -> bool:
        """Whether it can still be answered."""
        return self.state == "open"

    @property
    def key(self) -> str:
        """The key under which a client gets the question: its name, or its id if it has no name of its own."""
        return self.name or self.id


@dataclass(frozen=True, slots=True)
class AskingStep:
    """The step of a run that asks a question. `waiter_id` is set if it asked before and tries again."""

    identity: Identity
    run_id: str
    parked_action: ParkedAction
    waiter_id: str | None
    has_timed_out: bool


_asking_step: ContextVar[AskingStep] = ContextVar("byline_place")


def enter_asking_step(asking_step: AskingStep) -> None:
    """Make this step the one that `get_asking_step()` returns in the current task."""
    _asking_step.set(asking_step)


def get_asking_step() -> AskingStep:
    """Return the step from which the running activity asks."""
    return _asking_step.get()


class Questions:
    """Asks, lists and answers questions, and owns their table."""

    def __init__(
        self,
        database: Database,
        principals: Principals,
        roles: Roles,
        waiters: Waiters,
        trail: AuditTrail,
        wait_limit: timedelta,
    ) -> None:
        self._database = database
        self._principals = principals
        self._roles = roles
        self._waiters = waiters
        self._trail = trail
        self._wait_limit = wait_limit

    async def ask_question(self, asking_step: AskingStep, question_input: QuestionInput) -> QuestionAnswer:
        """Return the answer to a question, which is stored if it is new.

        Raises AnswerRequired if there is no answer yet, which parks the run, and a QuestionEnded if none will come.
        """
        if question_input.kind != "form" and asking_step.identity.trigger != "mcp":
            raise QuestionDeclined("No MCP client called this run, and nothing else can answer.")
        # The id is derived from the asking step, so that a retried or repeated attempt finds its question.
        question_id = str(
            uuid.uuid5(
                QUESTION_NAMESPACE,
                f"{asking_step.parked_action.workflow_run_id}:{asking_step.parked_action.action_key}",
            )
        )
        record_events = await self._trail.make_recorder()
        pending_waiter: Waiter | None = None
        async with self._database.open_write_session() as db_session:
            question_row = await db_session.get(QuestionRow, question_id, with_for_update=True)
            if question_row is None:
                question_row = self._build_question_row(
                    question_id,
                    asking_step,
                    question_input,
                    await self._keep_free_name(db_session, asking_step.run_id, question_input.name),
                )
                db_session.add(question_row)
                await db_session.flush()
                await record_events(
                    db_session,
                    _build_question_event("question.asked", question_row, identity=asking_step.identity),
                )
            if question_row.state == "open" and await self._has_expired(
                db_session, question_row, asking_step
            ):
                question_row.state = "expired"
                db_session.add(question_row)
                await record_events(
                    db_session,
                    _build_question_event("question.expired", question_row, identity=asking_step.identity),
                )
            if question_row.state == "open":
                waiter = await self._waiters.join_wait(
                    db_session,
                    question_row.id,
                    asking_step.identity,
                    asking_step.parked_action,
                    run_id=asking_step.run_id,
                    expires_at=question_row.expires_at,
                )
                pending_waiter = waiter if waiter.outcome == "waiting" else None
        if pending_waiter is not None:
            raise await self._build_answer_required(question_row, pending_waiter)
        if question_row.state == "answered" and question_row.answered_by is not None:
            return QuestionAnswer(
                question_row.answer or {}, await self._find_person(question_row.answered_by)
            )
        raise await self._build_question_ended(question_row, asking_step.identity)

    async def find_question(self, question_id: str) -> Question | None:
        """Return the question with this id, or None."""
        async with self._database.open_read_session() as db_session:
            questions = await self._select_questions(db_session, col(QuestionRow.id) == question_id)
        return questions[0] if questions else None

    async def list_open_questions(self, principal: Principal) -> list[Question]:
        """Return the open questions that this principal can answer, oldest first.

        They are those of the principal's own runs and those for their roles. Questions that only a client can answer
        are left out.
        """
        is_for_principal = (col(QuestionRow.principal_id) == principal.id) & col(QuestionRow.role).is_(None)
        if principal.kind == "person":
            role_names = await self._roles.list_roles(principal.id)
            is_for_principal |= (col(QuestionRow.principal_id) != principal.id) & col(QuestionRow.role).in_(
                role_names
            )
        async with self._database.open_read_session() as db_session:
            is_open_form = (col(QuestionRow.state) == "open") & (col(QuestionRow.kind) == "form")
            questions = await self._select_questions(db_session, is_for_principal & is_open_form)
        return [question for question in questions if question.is_open]

    async def list_awaited_questions(self, run_id: str) -> list[Question]:
        """Return the open questions of a run and its descendants, oldest first."""
        is_open_in_run = (col(QuestionRow.run_id) == run_id) & (col(QuestionRow.state) == "open")
        async with self._database.open_read_session() as db_session:
            questions = await self._select_questions(db_session, is_open_in_run)
        return [question for question in questions if question.is_open]

    async def require_may_answer(self, question: Question, principal: Principal) -> None:
        """Raise NotAllowed unless the principal may answer the question, and record the attempt in the audit trail."""
        async with self._database.open_read_session() as db_session:
            refusal_reason = await self._find_refusal_reason(
                db_session, question.principal_id, question.role, principal
            )
        if refusal_reason is not None:
            raise await self._record_refusal(
                question.id, question.run_id, question.role, principal, refusal_reason
            )

    async def answer_question(
        self, question_id: str, principal: Principal, answer_content: Mapping[str, Any]
    ) -> Question:
        """Store the answer and enqueue the waiters' wake-ups, in one transaction. The first of two answers counts.

        Raises QuestionUnknown, NotAllowed, QuestionClosed or AnswerInvalid.
        """
        return await self._close_question(question_id, principal, answer_content)

    async def decline_question(self, question_id: str, principal: Principal) -> Question:
        """Decline a question; raises as `answer_question` does."""
        return await self._close_question(question_id, principal, None)

    async def _close_question(
        self, question_id: str, principal: Principal, answer_content: Mapping[str, Any] | None
    ) -> Question:
        record_events = await self._trail.make_recorder()
        closed_question: Question | None = None
        async with self._database.open_write_session() as db_session:
            question_row = await db_session.get(QuestionRow, question_id, with_for_update=True)
            if question_row is None:
                raise QuestionUnknown("You are asked no such question.")
            # Looked up in this transaction, so that a role that was removed a moment ago does not count.
            refusal_reason = await self._find_refusal_reason(
                db_session, question_row.principal_id, question_row.role, principal
            )
            if refusal_reason is None:
                (question,) = await self._select_questions(db_session, col(QuestionRow.id) == question_id)
                if not question.is_open:
                    raise QuestionClosed(_explain_closed(question))
                question_row.answer = (
                    None if answer_content is None else _validate_content(question, answer_content)
                )
                question_row.state = "declined" if answer_content is None else "answered"
                question_row.answered_by, question_row.answered_at = principal.id, utc_now()
                db_session.add(question_row)
                await self._waiters.enqueue_wake_ups(db_session, question_row.id, question_row.state)
                event_kind: _QuestionEventKind = (
                    "question.declined" if answer_content is None else "question.answered"
                )
                await record_events(
                    db_session, _build_question_event(event_kind, question_row, principal=principal)
                )
                closed_question = _build_question(question_row, is_awaited=True)
        if refusal_reason is not None or closed_question is None:
            raise await self._record_refusal(
                question_id, question_row.run_id, question_row.role, principal, refusal_reason or ""
            )
        self._waiters.wake_ups_due.set()
        return closed_question

    async def _keep_free_name(
        self, db_session: AsyncSession, run_id: str, question_name: str | None
    ) -> str | None:
        """Return the name, or None if another open question of the run has it."""
        if question_name is None:
            return None
        has_name = (col(QuestionRow.run_id) == run_id) & (col(QuestionRow.name) == question_name)
        return (
            None
            if any(question.is_open for question in await self._select_questions(db_session, has_name))
            else question_name
        )

    async def _has_expired(
        self, db_session: AsyncSession, question_row: QuestionRow, asking_step: AskingStep
    ) -> bool:
        # A first attempt parks however late it is, so that wait and question end together by the workflow's timer.
        if asking_step.waiter_id is None:
            return False
        resumed_wait = await self._waiters.resume_waiter(
            db_session, asking_step.waiter_id, asking_step.identity, has_timed_out=asking_step.has_timed_out
        )
        return resumed_wait is not None and resumed_wait[1] and resumed_wait[0].awaited_id == question_row.id

    async def _find_refusal_reason(
        self, db_session: AsyncSession, asking_principal_id: str, role_name: str | None, principal: Principal
    ) -> str | None:
        if role_name is None:
            return None if principal.id == asking_principal_id else "This question is put to somebody else."
        if principal.id == asking_principal_id:
            return f"Your own run asks for this: somebody else with the role '{role_name}' has to decide."
        if await self._roles.has_role(db_session, principal.id, role_name):
            return None
        return f"Only people with the role '{role_name}' can decide this."

    async def _record_refusal(
        self, question_id: str, run_id: str, role_name: str | None, principal: Principal, refusal_reason: str
    ) -> NotAllowed:
        refusal_event = AuditEvent(
            kind="question.refused",
            principal=principal,
            run_id=run_id,
            object_id=question_id,
            role=role_name,
            error=NotAllowed.code,
            message=refusal_reason,
        )
        await self._trail.append_event(refusal_event)
        return NotAllowed(refusal_reason)

    async def _build_answer_required(
        self, question_row: QuestionRow, pending_waiter: Waiter
    ) -> AnswerRequired:
        # Nobody is notified of a question that only a client can answer.
        asked_principal_ids: Sequence[str] = (
            [question_row.principal_id] if question_row.kind == "form" else []
        )
        if question_row.role is not None:
            asked_principal_ids = [
                holder_id
                for holder_id in await self._roles.list_holders(question_row.role)
                if holder_id != question_row.principal_id
            ]
        return AnswerRequired(
            waiter_id=pending_waiter.id,
            question_id=question_row.id,
            role_name=question_row.role,
            asked_principal_ids=asked_principal_ids,
            expires_at=pending_waiter.expires_at.timestamp(),
        )

    async def _build_question_ended(self, question_row: QuestionRow, identity: Identity) -> QuestionEnded:
        if question_row.kind != "form" and question_row.state in {"declined", "expired"}:
            return _build_client_ended(question_row)
        match question_row.state, question_row.role:
            case "declined", None:
                return QuestionDeclined(f"{identity.name} declined to answer.")
            case "declined", role_name:
                decider_name = (await self._find_person(question_row.answered_by or "")).name
                return ApprovalDenied(f"{decider_name}, who has the role '{role_name}', said no.")
            case "expired", None:
                return QuestionExpired(f"{identity.name} did not answer in time.")
            case "expired", role_name:
                return ApprovalExpired(f"Nobody with the role '{role_name}' answered in time.")
            case _:
                return QuestionCancelled("The step that asked was cancelled.")

    async def _find_person(self, principal_id: str) -> Person:
        principal = await self._principals.find_principal(principal_id)
        return Person(principal_id, principal_id if principal is None else principal.name)

    async def _select_questions(
        self, db_session: AsyncSession, condition: ColumnElement[bool]
    ) -> list[Question]:
        has_waiters = (
            select(WaiterRow.id)
            .where(WaiterRow.awaits == QuestionRow.id, WaiterRow.outcome == "waiting")
            .exists()
        )
        statement = (
            select(QuestionRow, has_waiters)
            .where(condition)
            .order_by(col(QuestionRow.created_at), QuestionRow.id)
        )
        return [
            _build_question(question_row, is_awaited=is_awaited)
            for question_row, is_awaited in (await db_session.exec(statement)).all()
        ]

    def _build_question_row(
        self,
        question_id: str,
        asking_step: AskingStep,
        question_input: QuestionInput,
        question_name: str | None,
    ) -> QuestionRow:
        wait_limit = (
            self._wait_limit
            if question_input.timeout is None
            else timedelta(seconds=max(0.0, question_input.timeout))
        )
        return QuestionRow(
            id=question_id,
            principal_id=asking_step.identity.principal_id,
            role=question_input.role,
            run_id=asking_step.run_id,
            # A tool may have built it from an upstream's data, and not every database can store every text.
            message=question_input.message.replace("\0", "?").encode(errors="replace").decode(),
            answer_schema=question_input.answer_schema,
            kind=question_input.kind,
            parameters=question_input.parameters,
            name=question_name,
            created_at=utc_now(),
            expires_at=utc_now() + min(wait_limit, MAX_WAIT),
        )


def _validate_content(question: Question, answer_content: Mapping[str, Any]) -> dict[str, Any]:
    if question.kind == "form":
        return validate_answer(question.answer_schema, answer_content)
    return validate_client_answer(question.kind, answer_content)


def _build_client_ended(question_row: QuestionRow) -> QuestionEnded:
    if question_row.state == "declined":
        return QuestionDeclined("The client that called the run would not answer.")
    return QuestionExpired("The client that called the run did not answer in time.")


_QuestionEventKind = Literal["question.asked", "question.answered", "question.declined", "question.expired"]


def _build_question_event(
    event_kind: _QuestionEventKind,
    question_row: QuestionRow,
    *,
    identity: Identity | None = None,
    principal: Principal | None = None,
) -> AuditEvent:
    return AuditEvent(
        kind=event_kind,
        identity=identity,
        principal=principal,
        run_id=question_row.run_id,
        object_id=question_row.id,
        role=question_row.role,
    )


def _build_question(question_row: QuestionRow, *, is_awaited: bool) -> Question:
    question_state: Any = question_row.state
    question_kind: Any = question_row.kind
    if question_state == "open" and question_row.expires_at <= utc_now():
        question_state = "expired"
    elif question_state == "open" and not is_awaited:
        question_state = "cancelled"
    return Question(
        id=question_row.id,
        kind=question_kind,
        principal_id=question_row.principal_id,
        role=question_row.role,
        run_id=question_row.run_id,
        message=question_row.message,
        answer_schema=question_row.answer_schema,
        parameters=question_row.parameters or {},
        name=question_row.name,
        state=question_state,
        answered_by=question_row.answered_by,
        created_at=question_row.created_at,
        expires_at=question_row.expires_at,
    )


def _explain_closed(question: Question) -> str:
    return {
        "answered": "This was answered already; the first answer counts.",
        "declined": "This was declined already.",
        "expired": "It is too late to answer: nobody waits for it any more.",
    }.get(question.state, "The run that asked does not wait for an answer any more.")
