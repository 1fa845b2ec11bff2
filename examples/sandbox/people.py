"""The accounts of a system, their passwords and their permissions, which are rows in the database."""

import sqlite3
from dataclasses import dataclass

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from examples.sandbox.storage import Database

_hasher = PasswordHasher()


@dataclass(frozen=True)
class NewPerson:
    """An account to seed. An account without a password is a service account, to which nobody signs in."""

    sub: str
    username: str
    name: str
    password: str | None
    may: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class SandboxPerson:
    """A person with an account in this system."""

    sub: str
    username: str
    name: str


class SandboxPeople:
    """The accounts of one system."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, new: NewPerson) -> None:
        """Add an account with its permissions: for each action, the objects that it covers as GLOB patterns."""
        self._database.run(
            "INSERT INTO people VALUES (?, ?, ?, ?)",
            new.sub,
            new.username,
            new.name,
            _hasher.hash(new.password) if new.password else None,
        )
        for action, objects in new.may.items():
            for pattern in objects:
                self._database.run("INSERT INTO permissions VALUES (?, ?, ?)", new.sub, action, pattern)

    def get(self, sub: str) -> SandboxPerson | None:
        """Find an account by its identifier."""
        row = self._database.one("SELECT * FROM people WHERE sub = ?", sub)
        return _person(row) if row else None

    def sign_in(self, username: str, password: str) -> SandboxPerson | None:
        """Return the person with this username and password, or None."""
        row = self._database.one(
            "SELECT * FROM people WHERE username = ? AND password_hash IS NOT NULL", username
        )
        if row is None:
            return None
        try:
            _hasher.verify(row["password_hash"], password)
        except VerifyMismatchError:
            return None
        return _person(row)

    def may(self, person: SandboxPerson, action: str, target: str) -> bool:
        """Return whether a permission of this person covers the object."""
        sql = "SELECT 1 FROM permissions WHERE sub = ? AND action = ? AND ? GLOB object"
        return self._database.one(sql, person.sub, action, target) is not None


def _person(row: sqlite3.Row) -> SandboxPerson:
    return SandboxPerson(sub=row["sub"], username=row["username"], name=row["name"])
