import asyncio
import time
from datetime import timedelta

import pytest
from sqlmodel import select, update

from engine.db.database import utc_now
from engine.db.lease import FreshRow, Lease, StaleRow
from engine.db.tables import IdpSessionRow
from engine.errors import UpstreamUnavailable
from engine.identity.model import Principal
from engine.services import Services
from engine.sign_in.idp_sessions import IdpSession, select_version


class Renewing:
    """One process that renews a sign-in, as slowly and as well as its provider answers."""

    def __init__(self, services: Services, principal: Principal, failure: Exception | None = None) -> None:
        self.lease = services.idp_sessions.lease
        self.sessions = services.idp_sessions
        self.principal = principal
        self.failure = failure
        self.answered = asyncio.Event()
        self.asked = asyncio.Event()
        self.requests = 0

    async def read_row(self) -> FreshRow[str] | StaleRow[str, str]:
        session = await self.sessions.find_session(self.principal.id)
        assert session is not None
        if session.expires_at > time.time():
            return FreshRow(session.id_token)
        return StaleRow(select_version(self.principal.id, session.version), self.request, self.store)

    async def request(self) -> str:
        self.requests += 1
        self.asked.set()
        await self.answered.wait()
        if self.failure is not None:
            raise self.failure
        return "newer"

    async def store(self, id_token: str) -> str:
        await self.sessions.store_session(self.principal.id, id_token, "refresh-token", time.time() + 600)
        return id_token


async def stale(services: Services, principal: Principal) -> IdpSession:
    await services.idp_sessions.store_session(principal.id, "older", "refresh-token", time.time() - 1)
    session = await services.idp_sessions.find_session(principal.id)
    assert session is not None
    return session


async def leases(services: Services) -> list[object]:
    async with services.database.open_read_session() as session:
        return list((await session.exec(select(IdpSessionRow.refreshing_until))).all())


async def test_a_row_is_leased_to_one_process_at_a_time_and_only_in_the_version_that_was_read(
    services: Services, other: Services, alice: Principal
) -> None:
    version = select_version(alice.id, (await stale(services, alice)).version)

    turns = [await each.idp_sessions.lease.acquire_lease(*version) for each in (services, other)]
    await services.idp_sessions.lease.release_lease(*version)
    again = await other.idp_sessions.lease.acquire_lease(*version)
    await other.idp_sessions.store_session(alice.id, "newer", "refresh-token", time.time() + 600)
    late = await services.idp_sessions.lease.acquire_lease(*version)

    assert (turns, again, late) == ([True, False], True, False)


async def test_of_many_who_find_a_row_stale_one_renews_it_and_all_get_the_result(
    services: Services, other: Services, alice: Principal
) -> None:
    await stale(services, alice)
    here, there = Renewing(services, alice), Renewing(other, alice)
    here.answered.set()
    there.answered.set()

    results = await asyncio.gather(
        *(each.lease.renew_once(each.read_row) for each in (here, there) for _ in range(5))
    )

    assert set(results) == {"newer"}
    assert here.requests + there.requests == 1


async def test_what_was_renewed_is_stored_when_nobody_waits_for_it_any_more(
    services: Services, alice: Principal
) -> None:
    await stale(services, alice)
    renewing = Renewing(services, alice)
    caller = asyncio.create_task(renewing.lease.renew_once(renewing.read_row))
    await renewing.asked.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    renewing.answered.set()

    assert await renewing.lease.renew_once(renewing.read_row) == "newer"
    assert renewing.requests == 1


async def test_a_renewal_that_fails_leaves_the_row_to_the_next(services: Services, alice: Principal) -> None:
    await stale(services, alice)
    failing, working = Renewing(services, alice, UpstreamUnavailable("down")), Renewing(services, alice)
    failing.answered.set()
    working.answered.set()

    with pytest.raises(UpstreamUnavailable):
        await failing.lease.renew_once(failing.read_row)
    assert await leases(services) == [None]
    assert await working.lease.renew_once(working.read_row) == "newer"


async def test_the_lease_of_a_process_that_died_expires(
    services: Services, alice: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = select_version(alice.id, (await stale(services, alice)).version)
    lease = Lease(services.database, IdpSessionRow.refreshing_until)
    assert await lease.acquire_lease(*version)
    renewing = Renewing(services, alice)
    renewing.answered.set()
    monkeypatch.setattr("engine.db.lease.LEASE_DURATION", timedelta(seconds=0.2))
    with pytest.raises(TimeoutError):
        await renewing.lease.renew_once(renewing.read_row)
    async with services.database.open_write_session() as session:
        await session.exec(update(IdpSessionRow).values(refreshing_until=utc_now() - timedelta(seconds=1)))

    assert await renewing.lease.renew_once(renewing.read_row) == "newer"
