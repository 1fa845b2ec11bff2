"""A system's SQLite file, and the documents in it.

There is one connection, and no await between reading and writing, so requests cannot interleave.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Document = dict[str, Any]
Value = str | int | float | None

TABLES = """
CREATE TABLE IF NOT EXISTS people (
    sub TEXT PRIMARY KEY, username TEXT UNIQUE NOT NULL, name TEXT NOT NULL, password_hash TEXT);
CREATE TABLE IF NOT EXISTS permissions (
    sub TEXT NOT NULL REFERENCES people, action TEXT NOT NULL, object TEXT NOT NULL,
    PRIMARY KEY (sub, action, object));
CREATE TABLE IF NOT EXISTS sessions (
    hash TEXT PRIMARY KEY, sub TEXT REFERENCES people, expires_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS codes (
    hash TEXT PRIMARY KEY, family TEXT NOT NULL, sub TEXT NOT NULL REFERENCES people, scope TEXT NOT NULL,
    redirect_uri TEXT NOT NULL, challenge TEXT NOT NULL, expires_at REAL NOT NULL,
    spent INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS tokens (
    hash TEXT PRIMARY KEY, kind TEXT NOT NULL, family TEXT NOT NULL, sub TEXT NOT NULL REFERENCES people,
    scope TEXT NOT NULL, expires_at REAL, spent INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS tokens_of_a_family ON tokens (family);
CREATE TABLE IF NOT EXISTS requests (
    id INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, method TEXT NOT NULL, path TEXT NOT NULL,
    query TEXT NOT NULL, idempotency_key TEXT, account TEXT, grant_type TEXT, status INTEGER);
CREATE TABLE IF NOT EXISTS documents (
    kind TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, id));
"""


class Database:
    """Plain SQL on one connection, and JSON documents by kind and id."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        self._connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;")
        self._connection.executescript("PRAGMA foreign_keys=ON; PRAGMA busy_timeout=5000;" + TABLES)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything in the block, or nothing if it raises."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def run(self, sql: str, *values: Value) -> int:
        """Change rows and return how many were changed."""
        return self._connection.execute(sql, values).rowcount

    def insert(self, sql: str, *values: Value) -> int:
        """Insert one row and return its number."""
        return self._connection.execute(sql, values).lastrowid or 0

    def one(self, sql: str, *values: Value) -> sqlite3.Row | None:
        """Return the first row, or None."""
        row: sqlite3.Row | None = self._connection.execute(sql, values).fetchone()
        return row

    def all(self, sql: str, *values: Value) -> list[sqlite3.Row]:
        """Return every row."""
        return self._connection.execute(sql, values).fetchall()

    def document(self, kind: str, key: str) -> Document | None:
        """Return one document, or None."""
        row = self.one("SELECT body FROM documents WHERE kind = ? AND id = ?", kind, key)
        return self._read(row) if row else None

    def documents(self, kind: str) -> list[Document]:
        """Return every document of a kind, oldest first."""
        rows = self.all("SELECT body FROM documents WHERE kind = ? ORDER BY rowid", kind)
        return [self._read(row) for row in rows]

    def keep(self, kind: str, key: str, document: Document) -> None:
        """Store a document. If it replaces an earlier one, it takes its place in the order."""
        self.run(
            "INSERT INTO documents VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET body = excluded.body",
            kind,
            key,
            json.dumps(document),
        )

    @staticmethod
    def _read(row: sqlite3.Row) -> Document:
        document: Document = json.loads(row["body"])
        return document
