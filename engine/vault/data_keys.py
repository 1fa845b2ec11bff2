"""The data keys that seal secrets: stored wrapped in the database, and unwrapped in memory for a limited time only."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select

from engine.db.database import Database, now
from engine.db.tables import DataKeyRow
from engine.errors import SettingsInvalid, TooSoon
from engine.vault.key_providers import KeyProvider
from engine.vault.sealed import KEY_BYTES

_NOTICED_WITHIN_SECONDS: Final = 10.0
_ASK_AGAIN_SECONDS: Final = 5.0
_SETTLED: Final = timedelta(minutes=1)

log = structlog.get_logger()


@dataclass(slots=True)
class _Unwrapped:
    """A data key in memory; from `renew_at` on (monotonic seconds) it is unwrapped again in the background."""

    key: bytes
    renew_from: float


class DataKeys:
    """Owner of the table of data keys. The newest key seals, and every key opens.

    Using a key that is in memory does not call the provider. After half of `lifetime_seconds` the next use has it
    unwrapped again in the background, and after all of `lifetime_seconds` it is deleted from memory. So a provider's
    refusal takes effect within that time, and a shorter outage of the provider does no harm. A new key of another
    process seals here within ten seconds, or as soon as this process meets a value that was sealed with it.
    """

    def __init__(self, database: Database, providers: Sequence[KeyProvider], life: float) -> None:
        # It has a connection of its own, since keys are also needed in the middle of other transactions.
        self._database = database
        self._providers = {provider.name: provider for provider in providers}
        self._wrapping = providers[0]
        self._life = life
        self._current = 0
        self._read_at = float("-inf")
        self._unwrapped: dict[int, _Unwrapped] = {}
        self._roots: dict[int, bytes] = {}
        self._asking: dict[int, asyncio.Task[bytes | None]] = {}

    async def open(self) -> None:
        """Create the first key where there is none, and unwrap all; raises KeyServiceUnavailable."""
        if not await self._numbers():
            await self._make(1)
        for number in await self._numbers():
            await self._key(number)

    async def close(self) -> None:
        """Cancel calls to providers that are under way, and delete every key from memory."""
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        self._unwrapped.clear()
        await self._database.close()

    async def current(self) -> tuple[str, bytes]:
        """Return the id and the bytes of the key that seals.

        Raises KeyServiceUnavailable, or SettingsInvalid where the key is gone from the database.
        """
        if time.monotonic() - self._read_at > _NOTICED_WITHIN_SECONDS:
            await self._numbers()
        key = await self._key(self._current)
        if key is None:
            raise SettingsInvalid(
                f"Data key {self._current}, which seals, is gone from the database: restore it from a backup."
            )
        return str(self._current), key

    async def key(self, key_id: str) -> bytes | None:
        """Return the key with this id, or None; raises KeyServiceUnavailable."""
        return await self._key(int(key_id)) if key_id.isdecimal() and len(key_id) < 10 else None

    def derived(self, purpose: str) -> list[bytes]:
        """Derive a key for one purpose from each data key, newest first (HKDF, RFC 5869)."""
        return [_hkdf(root, purpose) for _, root in sorted(self._roots.items(), reverse=True)]

    async def rotate(self) -> str:
        """Create a new key, which seals from now on; return its id."""
        numbers = await self._numbers()
        while not await self._make(numbers[-1] + 1):
            numbers = await self._numbers()
        await self._numbers()
        return str(self._current)

    async def rewrap(self) -> AsyncIterator[str]:
        """Wrap every key with its provider's newest master key, one short transaction each; yield the ids.

        It also moves keys from another provider to the one that wraps now. After an interruption it may be repeated.
        """
        for number in await self._numbers():
            async with self._database.reading() as session:
                row = await session.get(DataKeyRow, number)
            if row is None:
                continue
            wrapped = await self._wrapping.wrap(await self._unwrap(row), _bound_to(number))
            async with self._database.writing() as session:
                row = await session.get(DataKeyRow, number, with_for_update=True)
                if row is not None:
                    row.wrapped, row.wrapped_by = wrapped, self._wrapping.name
                    session.add(row)
            yield str(number)

    async def retire(self) -> list[str]:
        """Delete every key but the newest and return their ids; only safe once all secrets are sealed with the newest.

        Raises TooSoon within a minute of a rotation, since a secret sealed just before it may not be stored yet.
        """
        async with self._database.writing() as session:
            rows = (await session.exec(select(DataKeyRow).order_by(col(DataKeyRow.number)))).all()
            *older, newest = rows
            if older and now() < newest.created_at + _SETTLED:
                raise TooSoon(
                    "The data key was made less than a minute ago: retire the older keys a little later."
                )
            await session.exec(delete(DataKeyRow).where(col(DataKeyRow.number) < newest.number))
        for row in older:
            self._unwrapped.pop(row.number, None)
            self._roots.pop(row.number, None)
        return [str(row.number) for row in older]

    async def _numbers(self) -> list[int]:
        async with self._database.reading() as session:
            numbers = list(
                (await session.exec(select(DataKeyRow.number).order_by(col(DataKeyRow.number)))).all()
            )
        self._current = numbers[-1] if numbers else 0
        self._read_at = time.monotonic()
        return numbers

    async def _make(self, number: int) -> bool:
        """Create the key with this number; return False where another process created it first."""
        wrapped = await self._wrapping.wrap(secrets.token_bytes(KEY_BYTES), _bound_to(number))
        row = DataKeyRow(number=number, wrapped=wrapped, wrapped_by=self._wrapping.name, created_at=now())
        try:
            async with self._database.writing() as session:
                session.add(row)
        except IntegrityError:
            return False
        return True

    async def _key(self, number: int) -> bytes | None:
        known = self._unwrapped.get(number)
        if known is not None and time.monotonic() < known.renew_from:
            return known.key
        asking = self._asking.get(number)
        if asking is None:
            asking = self._asking[number] = asyncio.create_task(self._ask(number))
            asking.add_done_callback(lambda done: self._asked(number, done))
        return await asyncio.shield(asking) if known is None else known.key

    async def _ask(self, number: int) -> bytes | None:
        async with self._database.reading() as session:
            row = await session.get(DataKeyRow, number)
        if row is None:
            return None
        key = await self._unwrap(row)
        unwrapped = self._unwrapped[number] = _Unwrapped(key, time.monotonic() + self._life / 2)
        self._roots.setdefault(number, _hkdf(key, "derived keys"))
        self._current = max(self._current, number)
        asyncio.get_running_loop().call_later(self._life, self._forget, number, unwrapped)
        return key

    def _asked(self, number: int, done: asyncio.Task[bytes | None]) -> None:
        del self._asking[number]
        known = self._unwrapped.get(number)
        if not done.cancelled() and (error := done.exception()) is not None and known is not None:
            known.renew_from = time.monotonic() + _ASK_AGAIN_SECONDS
            log.warning("data_key_not_renewed", data_key=number, error=type(error).__name__)

    def _forget(self, number: int, unwrapped: _Unwrapped) -> None:
        if self._unwrapped.get(number) is unwrapped:
            del self._unwrapped[number]

    async def _unwrap(self, row: DataKeyRow) -> bytes:
        provider = self._providers.get(row.wrapped_by)
        if provider is None:
            raise SettingsInvalid(
                f"Data key {row.number} is wrapped by {row.wrapped_by}, which is not set: leave its settings beside "
                "those of the new provider until `byline vault rewrap` is done."
            )
        return await provider.unwrap(row.wrapped, _bound_to(row.number))


def _bound_to(number: int) -> str:
    return f"data_key:{number}"


def _hkdf(key: bytes, purpose: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose.encode()).derive(key)
