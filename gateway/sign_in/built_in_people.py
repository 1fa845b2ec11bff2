"""The people of the built-in sign-in and their Argon2 password hashes. It knows nothing of upstream systems."""

import asyncio
import uuid

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy.exc import IntegrityError

from engine.db.database import Database
from engine.db.tables import PersonRow
from gateway.sign_in.demo_people import DEMO_PEOPLE

_PASSWORD_HASHER = PasswordHasher()
_MAX_CONCURRENT_HASHES = 2


class BuiltInPeople:
    """Owner of the table of people.

    Each check of a password costs a full Argon2 computation, and a process does two at a time. Failures are not
    counted, so nobody can lock another person out. For stronger rules, use an external issuer.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._hash_slots = asyncio.Semaphore(_MAX_CONCURRENT_HASHES)
        self._decoy_hash: str | None = None

    async def add_person(self, username: str, person_name: str, password: str) -> bool:
        """Add a person; False where the username is taken."""
        async with self._database.open_read_session() as db_session:
            if await db_session.get(PersonRow, username) is not None:
                return False
        password_hash = await self._hash_password(password)
        person_row = PersonRow(
            username=username, subject=str(uuid.uuid4()), name=person_name, password_hash=password_hash
        )
        try:
            async with self._database.open_write_session() as db_session:
                db_session.add(person_row)
        except IntegrityError:
            return False
        return True

    async def add_demo_people(self) -> None:
        """Add the demo people who are missing."""
        for demo_person in DEMO_PEOPLE:
            await self.add_person(demo_person.username, demo_person.name, demo_person.password)

    async def authenticate_person(self, username: str, password: str) -> tuple[str, str] | None:
        """Return subject and name of the person with this password, or None.

        An unknown username takes as long as a wrong password.
        """
        async with self._database.open_read_session() as db_session:
            person_row = await db_session.get(PersonRow, username)
        if person_row is None and self._decoy_hash is None:
            self._decoy_hash = await self._hash_password(str(uuid.uuid4()))
        is_password_right = await self._is_password_right(
            person_row.password_hash if person_row else str(self._decoy_hash), password
        )
        return (person_row.subject, person_row.name) if person_row is not None and is_password_right else None

    async def _hash_password(self, password: str) -> str:
        async with self._hash_slots:
            return await asyncio.to_thread(_PASSWORD_HASHER.hash, password)

    async def _is_password_right(self, password_hash: str, password: str) -> bool:
        async with self._hash_slots:
            try:
                return await asyncio.to_thread(_PASSWORD_HASHER.verify, password_hash, password)
            except (VerificationError, InvalidHashError):
                return False
