"""Stores the questions that runs ask and the answers to them, each in one transaction with its waiters."""

import uuid
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.audit.trail import AuditEvent, Trail
from engine.db.database import Database, now
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
from engine.questions.answers import fitting
from engine.questions.asking import Answered, Asked, Person, QuestionKind
from engine.questions.clients import fitting_of_client
from engine.settings import LONGEST_WAIT
from engine.waiting.waiters import ParkedAction, Waiter, Waiters

QuestionState = Literal["open", "answered", "declined", "expired", "cancelled"]

_QUESTIONS: Final = uuid.UUID("5b1f9a52-7e0c-4c35-9b0e-6a2f1d0c8e44")


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
class Place:
    """The step of a run that asks a question. `waiter_id` is set if it asked before and tries again."""

    identity: Identity
    run_id: str
    parked: ParkedAction
    waiter: str | None
    timed_out: bool


_place: ContextVar[Place] = ContextVar("byline_place")


def enter_place(place: Place) -> None:
    """Make this step the one that `get_asking_step()` returns in the current task."""
    _place.set(place)


def current_place() -> Place:
    """Return the step from which the running activity asks."""
    return _place.get()


class Questions:
    """Asks, lists and answers questions, and owns their table."""

    def __init__(
        self,
        database: Database,
        principals: Principals,
        roles: Roles,
        waiters: Waiters,
        trail: Trail,
        wait_limit: timedelta,
    ) -> None:
        self._database = database
        self._principals = principals
        self._roles = roles
        self._waiters = waiters
        self._trail = trail
        self._wait_limit = wait_limit

    async def ask(self, place: Place, asked: Asked) -> Answered:
        """Return the answer to a question, which is stored if it is new.

        Raises AnswerRequired if there is no answer yet, which parks the run, and a QuestionEnded if none will come.
        """
        if asked.kind != "form" and place.identity.trigger != "mcp":
            raise QuestionDeclined("No MCP client called this run, and nothing else can answer.")
        # The id is derived from the asking step, so that a retried or repeated attempt finds its question.
        question_id = str(uuid.uuid5(_QUESTIONS, f"{place.parked.workflow_run_id}:{place.parked.key}"))
        record = await self._trail.recorder()
        waiting: Waiter | None = None
        async with self._database.writing() as session:
            row = await session.get(QuestionRow, question_id, with_for_update=True)
            if row is None:
                row = self._row(
                    question_id, place, asked, await self._free(session, place.run_id, asked.name)
                )
                session.add(row)
                await session.flush()
                await record(session, _event("question.asked", row, identity=place.identity))
            if row.state == "open" and await self._ran_out(session, row, place):
                row.state = "expired"
                session.add(row)
                await record(session, _event("question.expired", row, identity=place.identity))
            if row.state == "open":
                waiter = await self._waiters.join(
                    session,
                    row.id,
                    place.identity,
                    place.parked,
                    run_id=place.run_id,
                    expires_at=row.expires_at,
                )
                waiting = waiter if waiter.outcome == "waiting" else None
        if waiting is not None:
            raise await self._required(row, waiting)
        if row.state == "answered" and row.answered_by is not None:
            return Answered(row.answer or {}, await self._person(row.answered_by))
        raise await self._ended(row, place.identity)

    async def get(self, question_id: str) -> Question | None:
        """Return the question with this id, or None."""
        async with self._database.reading() as session:
            found = await self._found(session, col(QuestionRow.id) == question_id)
        return found[0] if found else None

    async def open_for(self, principal: Principal) -> list[Question]:
        """Return the open questions that this principal can answer, oldest first.

        They are those of the principal's own runs and those for their roles. Questions that only a client can answer
        are left out.
        """
        mine = (col(QuestionRow.principal_id) == principal.id) & col(QuestionRow.role).is_(None)
        if principal.kind == "person":
            roles = await self._roles.of(principal.id)
            mine |= (col(QuestionRow.principal_id) != principal.id) & col(QuestionRow.role).in_(roles)
        async with self._database.reading() as session:
            by_form = (col(QuestionRow.state) == "open") & (col(QuestionRow.kind) == "form")
            found = await self._found(session, mine & by_form)
        return [question for question in found if question.is_open]

    async def awaited_by(self, run_id: str) -> list[Question]:
        """Return the open questions of a run and its descendants, oldest first."""
        theirs = (col(QuestionRow.run_id) == run_id) & (col(QuestionRow.state) == "open")
        async with self._database.reading() as session:
            found = await self._found(session, theirs)
        return [question for question in found if question.is_open]

    async def require_asked(self, question: Question, principal: Principal) -> None:
        """Raise NotAllowed unless the principal may answer the question, and record the attempt in the audit trail."""
        async with self._database.reading() as session:
            problem = await self._not_asked(session, question.principal_id, question.role, principal)
        if problem is not None:
            raise await self._refusal(question.id, question.run_id, question.role, principal, problem)

    async def answer(self, question_id: str, principal: Principal, content: Mapping[str, Any]) -> Question:
        """Store the answer and enqueue the waiters' wake-ups, in one transaction. The first of two answers counts.

        Raises QuestionUnknown, NotAllowed, QuestionClosed or AnswerInvalid.
        """
        return await self._close(question_id, principal, content)

    async def decline(self, question_id: str, principal: Principal) -> Question:
        """Decline a question; raises as `answer_question` does."""
        return await self._close(question_id, principal, None)

    async def _close(
        self, question_id: str, principal: Principal, content: Mapping[str, Any] | None
    ) -> Question:
        record = await self._trail.recorder()
        closed: Question | None = None
        async with self._database.writing() as session:
            row = await session.get(QuestionRow, question_id, with_for_update=True)
            if row is None:
                raise QuestionUnknown("You are asked no such question.")
            # Looked up in this transaction, so that a role that was removed a moment ago does not count.
            problem = await self._not_asked(session, row.principal_id, row.role, principal)
            if problem is None:
                (question,) = await self._found(session, col(QuestionRow.id) == question_id)
                if not question.is_open:
                    raise QuestionClosed(_why_closed(question))
                row.answer = None if content is None else _fitting(question, content)
                row.state = "declined" if content is None else "answered"
                row.answered_by, row.answered_at = principal.id, now()
                session.add(row)
                await self._waiters.answer(session, row.id, row.state)
                kind: _Kind = "question.declined" if content is None else "question.answered"
                await record(session, _event(kind, row, principal=principal))
                closed = _question(row, is_awaited=True)
        if problem is not None or closed is None:
            raise await self._refusal(question_id, row.run_id, row.role, principal, problem or "")
        self._waiters.owed.set()
        return closed

    async def _free(self, session: AsyncSession, run_id: str, name: str | None) -> str | None:
        """Return the name, or None if another open question of the run has it."""
        if name is None:
            return None
        named = (col(QuestionRow.run_id) == run_id) & (col(QuestionRow.name) == name)
        return None if any(each.is_open for each in await self._found(session, named)) else name

    async def _ran_out(self, session: AsyncSession, row: QuestionRow, place: Place) -> bool:
        # A first attempt parks however late it is, so that wait and question end together by the workflow's timer.
        if place.waiter is None:
            return False
        again = await self._waiters.looked_again(
            session, place.waiter, place.identity, timed_out=place.timed_out
        )
        return again is not None and again[1] and again[0].awaits == row.id

    async def _not_asked(
        self, session: AsyncSession, asks_for: str, role: str | None, principal: Principal
    ) -> str | None:
        if role is None:
            return None if principal.id == asks_for else "This question is put to somebody else."
        if principal.id == asks_for:
            return f"Your own run asks for this: somebody else with the role '{role}' has to decide."
        if await self._roles.has(session, principal.id, role):
            return None
        return f"Only people with the role '{role}' can decide this."

    async def _refusal(
        self, question_id: str, run_id: str, role: str | None, principal: Principal, problem: str
    ) -> NotAllowed:
        event = AuditEvent(
            kind="question.refused",
            principal=principal,
            run_id=run_id,
            object_id=question_id,
            role=role,
            error=NotAllowed.code,
            message=problem,
        )
        await self._trail.append(event)
        return NotAllowed(problem)

    async def _required(self, row: QuestionRow, waiting: Waiter) -> AnswerRequired:
        # Nobody is notified of a question that only a client can answer.
        asked: Sequence[str] = [row.principal_id] if row.kind == "form" else []
        if row.role is not None:
            asked = [each for each in await self._roles.holders(row.role) if each != row.principal_id]
        return AnswerRequired(
            waiter=waiting.id,
            question=row.id,
            role=row.role,
            asked=asked,
            expires_at=waiting.expires_at.timestamp(),
        )

    async def _ended(self, row: QuestionRow, identity: Identity) -> QuestionEnded:
        if row.kind != "form" and row.state in {"declined", "expired"}:
            return _client_ended(row)
        match row.state, row.role:
            case "declined", None:
                return QuestionDeclined(f"{identity.name} declined to answer.")
            case "declined", role:
                name = (await self._person(row.answered_by or "")).name
                return ApprovalDenied(f"{name}, who has the role '{role}', said no.")
            case "expired", None:
                return QuestionExpired(f"{identity.name} did not answer in time.")
            case "expired", role:
                return ApprovalExpired(f"Nobody with the role '{role}' answered in time.")
            case _:
                return QuestionCancelled("The step that asked was cancelled.")

    async def _person(self, principal_id: str) -> Person:
        found = await self._principals.get(principal_id)
        return Person(principal_id, principal_id if found is None else found.name)

    async def _found(self, session: AsyncSession, which: ColumnElement[bool]) -> list[Question]:
        awaited = (
            select(WaiterRow.id)
            .where(WaiterRow.awaits == QuestionRow.id, WaiterRow.outcome == "waiting")
            .exists()
        )
        query = (
            select(QuestionRow, awaited).where(which).order_by(col(QuestionRow.created_at), QuestionRow.id)
        )
        return [
            _question(row, is_awaited=is_awaited) for row, is_awaited in (await session.exec(query)).all()
        ]

    def _row(self, question_id: str, place: Place, asked: Asked, name: str | None) -> QuestionRow:
        limit = self._wait_limit if asked.timeout is None else timedelta(seconds=max(0.0, asked.timeout))
        return QuestionRow(
            id=question_id,
            principal_id=place.identity.principal_id,
            role=asked.role,
            run_id=place.run_id,
            # A tool may have built it from an upstream's data, and not every database can store every text.
            message=asked.message.replace("\0", "?").encode(errors="replace").decode(),
            answer_schema=asked.answer_schema,
            kind=asked.kind,
            parameters=asked.parameters,
            name=name,
            created_at=now(),
            expires_at=now() + min(limit, LONGEST_WAIT),
        )


def _fitting(question: Question, content: Mapping[str, Any]) -> dict[str, Any]:
    if question.kind == "form":
        return fitting(question.answer_schema, content)
    return fitting_of_client(question.kind, content)


def _client_ended(row: QuestionRow) -> QuestionEnded:
    if row.state == "declined":
        return QuestionDeclined("The client that called the run would not answer.")
    return QuestionExpired("The client that called the run did not answer in time.")


_Kind = Literal["question.asked", "question.answered", "question.declined", "question.expired"]


def _event(
    kind: _Kind, row: QuestionRow, *, identity: Identity | None = None, principal: Principal | None = None
) -> AuditEvent:
    return AuditEvent(
        kind=kind, identity=identity, principal=principal, run_id=row.run_id, object_id=row.id, role=row.role
    )


def _question(row: QuestionRow, *, is_awaited: bool) -> Question:
    state: Any = row.state
    kind: Any = row.kind
    if state == "open" and row.expires_at <= now():
        state = "expired"
    elif state == "open" and not is_awaited:
        state = "cancelled"
    return Question(
        id=row.id,
        kind=kind,
        principal_id=row.principal_id,
        role=row.role,
        run_id=row.run_id,
        message=row.message,
        answer_schema=row.answer_schema,
        parameters=row.parameters or {},
        name=row.name,
        state=state,
        answered_by=row.answered_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )


def _why_closed(question: Question) -> str:
    return {
        "answered": "This was answered already; the first answer counts.",
        "declined": "This was declined already.",
        "expired": "It is too late to answer: nobody waits for it any more.",
    }.get(question.state, "The run that asked does not wait for an answer any more.")
