"""Stores the device codes that nobody has confirmed yet, and when their provider may be polled next (RFC 8628)."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from sqlalchemy import delete, update
from sqlmodel import col

from engine.db.database import Database, utc_now
from engine.db.tables import DeviceSignInRow
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault
from engine.wire import DEVICE_SEAL

_SLOW_DOWN_STEP = timedelta(seconds=5)
_MAX_POLL_INTERVAL = timedelta(minutes=1)
_CODE_RETENTION = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """A device code and its user code.

    It is valid until `expires_at`, in seconds since the epoch. `interval` is in seconds. `repr` shows only what the
    person sees.
    """

    user_code: str
    address: str
    address_with_code: str | None
    device_code: str
    interval: int
    expires_at: float
    scopes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"DeviceCode(user_code={self.user_code!r}, address={self.address!r})"

    def to_json(self) -> str:
        """Return all fields as JSON text, to be sealed."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, json_text: str) -> Self:
        """Read the fields that `to_json` wrote."""
        fields = json.loads(json_text)
        return cls(**{**fields, "scopes": tuple(fields["scopes"])})


@dataclass(frozen=True, slots=True)
class PendingDeviceCode:
    """A device code that is pending for an authorization request, and the seconds between two polls of its provider.

    `tool_name` is the tool that shall use the account, and is empty if every tool shall.
    """

    request_id: str
    device_code: DeviceCode
    tool_name: str
    interval_seconds: int
    is_expired: bool
    sealed_code: bytes

    def __repr__(self) -> str:
        return f"PendingDeviceCode(request_id={self.request_id!r})"


class PendingDeviceCodes:
    """Owns the table of device codes, which holds at most one per authorization request."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def store_code(self, request_id: str, device_code: DeviceCode, tool_name: str) -> None:
        """Store the device code of a request and replace an earlier one."""
        code_row = DeviceSignInRow(
            request_id=request_id,
            tool=tool_name,
            sealed_code=await self._vault.seal_secret(
                device_code.to_json().encode(), _build_associated_data(request_id)
            ),
            interval_seconds=device_code.interval,
            poll_after=utc_now() + timedelta(seconds=device_code.interval),
            expires_at=datetime.fromtimestamp(device_code.expires_at, UTC),
        )
        async with self._database.open_write_session() as db_session:
            await db_session.merge(code_row)

    async def find_code(self, request_id: str) -> PendingDeviceCode | None:
        """Return the device code of a request, or None if there is none."""
        async with self._database.open_read_session() as db_session:
            code_row = await db_session.get(DeviceSignInRow, request_id)
        if code_row is None:
            return None
        opened_code = await self._vault.open_secret(code_row.sealed_code, _build_associated_data(request_id))
        return PendingDeviceCode(
            request_id,
            DeviceCode.from_json(opened_code.decode()),
            code_row.tool,
            code_row.interval_seconds,
            code_row.expires_at <= utc_now(),
            code_row.sealed_code,
        )

    async def try_claim_poll(self, pending_code: PendingDeviceCode) -> bool:
        """Claim the next poll if it is due, and return False if it is not or another process claimed it."""
        statement = (
            update(DeviceSignInRow)
            .where(
                col(DeviceSignInRow.request_id) == pending_code.request_id,
                col(DeviceSignInRow.sealed_code) == pending_code.sealed_code,
                col(DeviceSignInRow.poll_after) <= utc_now(),
            )
            .values(poll_after=utc_now() + timedelta(seconds=pending_code.interval_seconds))
        )
        async with self._database.open_write_session() as db_session:
            return (await db_session.exec(statement)).rowcount == 1

    async def slow_down_polling(self, request_id: str) -> int:
        """Make the interval between two polls five seconds longer, up to a minute, and return it in seconds."""
        async with self._database.open_write_session() as db_session:
            code_row = await db_session.get(DeviceSignInRow, request_id, with_for_update=True)
            if code_row is None:
                return int(_SLOW_DOWN_STEP.total_seconds())
            slower_interval = min(
                timedelta(seconds=code_row.interval_seconds) + _SLOW_DOWN_STEP, _MAX_POLL_INTERVAL
            )
            code_row.interval_seconds = int(slower_interval.total_seconds())
            code_row.poll_after = utc_now() + slower_interval
            db_session.add(code_row)
        return code_row.interval_seconds

    async def delete_code(self, request_id: str) -> None:
        """Delete the device code of a request."""
        async with self._database.open_write_session() as db_session:
            await db_session.exec(
                delete(DeviceSignInRow).where(col(DeviceSignInRow.request_id) == request_id)
            )

    async def delete_expired_codes(self) -> int:
        """Delete the codes that expired more than a day ago, and return how many."""
        statement = delete(DeviceSignInRow).where(
            col(DeviceSignInRow.expires_at) < utc_now() - _CODE_RETENTION
        )
        async with self._database.open_write_session() as db_session:
            return int((await db_session.exec(statement)).rowcount)

    @property
    def sealed_column(self) -> SealedColumn:
        """The column of this table that the vault seals."""
        return SealedColumn(
            "device codes",
            DeviceSignInRow,
            "sealed_code",
            lambda code_row: _build_associated_data(code_row.request_id),
            lambda: col(DeviceSignInRow.expires_at) > utc_now(),
        )


def _build_associated_data(request_id: str) -> str:
    return DEVICE_SEAL.format(request_id=request_id)
