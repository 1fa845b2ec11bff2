"""The people of the built-in sign-in and their Argon2 password hashes. It knows nothing of upstream systems."""

import asyncio
import uuid

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy.exc import IntegrityError

from engine.db.database import Database
from engine.db.tables import PersonRow
from gateway.sign_in.demo_people import DEMO_PEOPLE

_HASHER = PasswordHasher()
_HASHES_AT_ONCE = 2


class People:
    """Owner of the table of people.

    Each check of a password costs a full Argon2 computation, and a process does two at a time. Failures are not
    counted, so nobody can lock another person out. For stronger rules, use an external issuer.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turn = asyncio.Semaphore(_HASHES_AT_ONCE)
        self._nobodys_hash: str | None = None

    async def add(self, username: str, name: str, password: str) -> bool:
        """Add a person; False where the username is taken."""
        async with self._database.reading() as session:
            if await session.get(PersonRow, username) is not None:
                return False
        password_hash = await self._hash(password)
        row = PersonRow(username=username, subject=str(uuid.uuid4()), name=name, password_hash=password_hash)
        try:
            async with self._database.writing() as session:
                session.add(row)
        except IntegrityError:
            return False
        return True

    async def add_demo(self) -> None:
        """Add the demo people who are missing."""
        for person in DEMO_PEOPLE:
            await self.add(person.username, person.name, person.password)

    async def authenticate(self, username: str, password: str) -> tuple[str, str] | None:
        """Return subject and name of the person with this password, or None.

        An unknown username takes as long as a wrong password.
        """
        async with self._database.reading() as session:
            row = await session.get(PersonRow, username)
        if row is None and self._nobodys_hash is None:
            self._nobodys_hash = await self._hash(str(uuid.uuid4()))
        matches = await self._matches(row.password_hash if row else str(self._nobodys_hash), password)
        return (row.subject, row.name) if row is not None and matches else None

    async def _hash(self, password: str) -> str:
        async with self._turn:
            return await asyncio.to_thread(_HASHER.hash, password)

    async def _matches(self, password_hash: str, password: str) -> bool:
        async with self._turn:
            try:
                return await asyncio.to_thread(_HASHER.verify, password_hash, password)
            except (VerificationError, InvalidHashError):
                return False
