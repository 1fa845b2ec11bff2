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

from engine.db.database import Database, utc_now
from engine.db.tables import DataKeyRow
from engine.errors import SettingsInvalid, TooSoon
from engine.vault.key_providers import KeyProvider
from engine.vault.sealed import KEY_BYTES
from engine.wire import DATA_KEY_SEAL

_REFRESH_INTERVAL_SECONDS: Final = 10.0
_RETRY_DELAY_SECONDS: Final = 5.0
_RETIREMENT_DELAY: Final = timedelta(minutes=1)

log = structlog.get_logger()


@dataclass(slots=True)
class _UnwrappedKey:
    """A data key in memory; from `renew_at` on (monotonic seconds) it is unwrapped again in the background."""

    key_bytes: bytes
    renew_at: float


class DataKeys:
    """Owner of the table of data keys. The newest key seals, and every key opens.

    Using a key that is in memory does not call the provider. After half of `lifetime_seconds` the next use has it
    unwrapped again in the background, and after all of `lifetime_seconds` it is deleted from memory. So a provider's
    refusal takes effect within that time, and a shorter outage of the provider does no harm. A new key of another
    process seals here within ten seconds, or as soon as this process meets a value that was sealed with it.
    """

    def __init__(
        self, database: Database, key_providers: Sequence[KeyProvider], lifetime_seconds: float
    ) -> None:
        # It has a connection of its own, since keys are also needed in the middle of other transactions.
        self._database = database
        self._providers_by_name = {key_provider.name: key_provider for key_provider in key_providers}
        self._wrapping_provider = key_providers[0]
        self._lifetime_seconds = lifetime_seconds
        self._current_number = 0
        self._numbers_read_at = float("-inf")
        self._unwrapped_keys: dict[int, _UnwrappedKey] = {}
        self._derivation_roots: dict[int, bytes] = {}
        self._unwrap_tasks: dict[int, asyncio.Task[bytes | None]] = {}

    async def open_keys(self) -> None:
        """Create the first key where there is none, and unwrap all; raises KeyServiceUnavailable."""
        if not await self._read_numbers():
            await self._create_key(1)
        for key_number in await self._read_numbers():
            await self._load_key(key_number)

    async def close_keys(self) -> None:
        """Cancel calls to providers that are under way, and delete every key from memory."""
        for unwrap_task in self._unwrap_tasks.values():
            unwrap_task.cancel()
        await asyncio.gather(*self._unwrap_tasks.values(), return_exceptions=True)
        self._unwrapped_keys.clear()
        await self._database.close_connections()

    async def get_current_key(self) -> tuple[str, bytes]:
        """Return the id and the bytes of the key that seals.

        Raises KeyServiceUnavailable, or SettingsInvalid where the key is gone from the database.
        """
        if time.monotonic() - self._numbers_read_at > _REFRESH_INTERVAL_SECONDS:
            await self._read_numbers()
        key_bytes = await self._load_key(self._current_number)
        if key_bytes is None:
            raise SettingsInvalid(
                f"Data key {self._current_number}, which seals, is gone from the database: restore it from a backup."
            )
        return str(self._current_number), key_bytes

    async def find_key(self, key_id: str) -> bytes | None:
        """Return the key with this id, or None; raises KeyServiceUnavailable."""
        return await self._load_key(int(key_id)) if key_id.isdecimal() and len(key_id) < 10 else None

    def derive_keys(self, purpose: str) -> list[bytes]:
        """Derive a key for one purpose from each data key, newest first (HKDF, RFC 5869)."""
        return [
            _derive_hkdf_key(derivation_root, purpose)
            for _, derivation_root in sorted(self._derivation_roots.items(), reverse=True)
        ]

    async def rotate_key(self) -> str:
        """Create a new key, which seals from now on; return its id."""
        key_numbers = await self._read_numbers()
        while not await self._create_key(key_numbers[-1] + 1):
            key_numbers = await self._read_numbers()
        await self._read_numbers()
        return str(self._current_number)

    async def rewrap_keys(self) -> AsyncIterator[str]:
        """Wrap every key with its provider's newest master key, one short transaction each; yield the ids.

        It also moves keys from another provider to the one that wraps now. After an interruption it may be repeated.
        """
        for key_number in await self._read_numbers():
            async with self._database.open_read_session() as db_session:
                key_row = await db_session.get(DataKeyRow, key_number)
            if key_row is None:
                continue
            wrapped_key = await self._wrapping_provider.wrap_key(
                await self._unwrap_row(key_row), _build_associated_data(key_number)
            )
            async with self._database.open_write_session() as db_session:
                key_row = await db_session.get(DataKeyRow, key_number, with_for_update=True)
                if key_row is not None:
                    key_row.wrapped, key_row.wrapped_by = wrapped_key, self._wrapping_provider.name
                    db_session.add(key_row)
            yield str(key_number)

    async def retire_keys(self) -> list[str]:
        """Delete every key but the newest and return their ids; only safe once all secrets are sealed with the newest.

        Raises TooSoon within a minute of a rotation, since a secret sealed just before it may not be stored yet.
        """
        async with self._database.open_write_session() as db_session:
            key_rows = (await db_session.exec(select(DataKeyRow).order_by(col(DataKeyRow.number)))).all()
            *older_rows, newest_row = key_rows
            if older_rows and utc_now() < newest_row.created_at + _RETIREMENT_DELAY:
                raise TooSoon(
                    "The data key was made less than a minute ago: retire the older keys a little later."
                )
            await db_session.exec(delete(DataKeyRow).where(col(DataKeyRow.number) < newest_row.number))
        for key_row in older_rows:
            self._unwrapped_keys.pop(key_row.number, None)
            self._derivation_roots.pop(key_row.number, None)
        return [str(key_row.number) for key_row in older_rows]

    async def _read_numbers(self) -> list[int]:
        async with self._database.open_read_session() as db_session:
            key_numbers = list(
                (await db_session.exec(select(DataKeyRow.number).order_by(col(DataKeyRow.number)))).all()
            )
        self._current_number = key_numbers[-1] if key_numbers else 0
        self._numbers_read_at = time.monotonic()
        return key_numbers

    async def _create_key(self, key_number: int) -> bool:
        """Create the key with this number; return False where another process created it first."""
        wrapped_key = await self._wrapping_provider.wrap_key(
            secrets.token_bytes(KEY_BYTES), _build_associated_data(key_number)
        )
        key_row = DataKeyRow(
            number=key_number,
            wrapped=wrapped_key,
            wrapped_by=self._wrapping_provider.name,
            created_at=utc_now(),
        )
        try:
            async with self._database.open_write_session() as db_session:
                db_session.add(key_row)
        except IntegrityError:
            return False
        return True

    async def _load_key(self, key_number: int) -> bytes | None:
        unwrapped_key = self._unwrapped_keys.get(key_number)
        if unwrapped_key is not None and time.monotonic() < unwrapped_key.renew_at:
            return unwrapped_key.key_bytes
        unwrap_task = self._unwrap_tasks.get(key_number)
        if unwrap_task is None:
            unwrap_task = self._unwrap_tasks[key_number] = asyncio.create_task(
                self._read_and_unwrap(key_number)
            )
            unwrap_task.add_done_callback(
                lambda finished_task: self._finish_unwrap_task(key_number, finished_task)
            )
        return await asyncio.shield(unwrap_task) if unwrapped_key is None else unwrapped_key.key_bytes

    async def _read_and_unwrap(self, key_number: int) -> bytes | None:
        async with self._database.open_read_session() as db_session:
            key_row = await db_session.get(DataKeyRow, key_number)
        if key_row is None:
            return None
        key_bytes = await self._unwrap_row(key_row)
        unwrapped_key = self._unwrapped_keys[key_number] = _UnwrappedKey(
            key_bytes, time.monotonic() + self._lifetime_seconds / 2
        )
        self._derivation_roots.setdefault(key_number, _derive_hkdf_key(key_bytes, "derived keys"))
        self._current_number = max(self._current_number, key_number)
        asyncio.get_running_loop().call_later(
            self._lifetime_seconds, self._forget_key, key_number, unwrapped_key
        )
        return key_bytes

    def _finish_unwrap_task(self, key_number: int, finished_task: asyncio.Task[bytes | None]) -> None:
        del self._unwrap_tasks[key_number]
        unwrapped_key = self._unwrapped_keys.get(key_number)
        if (
            not finished_task.cancelled()
            and (error := finished_task.exception()) is not None
            and unwrapped_key is not None
        ):
            unwrapped_key.renew_at = time.monotonic() + _RETRY_DELAY_SECONDS
            log.warning("data_key_not_renewed", data_key=key_number, error=type(error).__name__)

    def _forget_key(self, key_number: int, unwrapped_key: _UnwrappedKey) -> None:
        if self._unwrapped_keys.get(key_number) is unwrapped_key:
            del self._unwrapped_keys[key_number]

    async def _unwrap_row(self, key_row: DataKeyRow) -> bytes:
        key_provider = self._providers_by_name.get(key_row.wrapped_by)
        if key_provider is None:
            raise SettingsInvalid(
                f"Data key {key_row.number} is wrapped by {key_row.wrapped_by}, which is not "
                "set: leave its settings beside "
                "those of the new provider until `byline vault rewrap` is done."
            )
        return await key_provider.unwrap_key(key_row.wrapped, _build_associated_data(key_row.number))


def _build_associated_data(key_number: int) -> str:
    return DATA_KEY_SEAL.format(key_number=key_number)


def _derive_hkdf_key(root_key: bytes, purpose: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose.encode()).derive(root_key)
