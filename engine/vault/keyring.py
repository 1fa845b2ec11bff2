"""A local keyring of master keys: the first wraps, and all unwrap. It never overwrites one that it did not read."""

import fcntl
import json
import os
import re
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import SettingsInvalid
from engine.settings import VaultSettings
from engine.vault.sealed import BY_MASTER_KEY, KEY_BYTES, Sealed, seal

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SETTLED_SECONDS = 60.0


class Keyring:
    """AES-256 master keys from a file of mode 0600 or from the environment: the key provider that needs no service.

    The format is `{"keys": [{"id": "…", "key": "<base64url>"}, …]}`, newest first.
    """

    name = "keyring"

    def __init__(self, settings: VaultSettings) -> None:
        self._settings = settings
        self._read_as: tuple[int, int] | None = None
        self._keys = self._load()

    async def wrap(self, data_key: bytes, bound_to: str) -> bytes:
        """Encrypt with the first key."""
        key_id, key = self.current
        return seal(BY_MASTER_KEY, key_id, key, data_key, bound_to)

    async def unwrap(self, wrapped: bytes, bound_to: str) -> bytes:
        """Decrypt with the key that encrypted; raises VaultSealBroken."""
        value = Sealed.read(wrapped)
        return value.open(self.key(value.key_id), bound_to)

    @property
    def is_file(self) -> bool:
        """Whether the keys lie in a file, which `rotate` and `retire` may write."""
        return self._settings.keyring is None

    @property
    def current(self) -> tuple[str, bytes]:
        """The id and the bytes of the key that wraps. A file that another process rotated is read again first."""
        if self._read_as != self._stamp():
            self._keys = self._load()
        return next(iter(self._keys.items()))

    def key(self, key_id: str) -> bytes | None:
        """Return the key with this id. A file is read again for an unknown id: another process may have rotated."""
        if key_id not in self._keys:
            self._keys = self._load()
        return self._keys.get(key_id)

    def rotate(self) -> str:
        """Put a new key first in the file, so that it wraps from now on; return its id."""
        path, key_id = self._file("rotate"), _new_id()
        with _alone(path):
            _write(path, {key_id: secrets.token_bytes(KEY_BYTES), **self._load()})
            self._keys = self._load()
        return key_id

    def retire(self) -> list[str]:
        """Drop every key but the current one from the file; only safe once all data keys are wrapped with it.

        Returns the ids of the dropped keys. Raises SettingsInvalid within a minute of a rotation, since a key wrapped
        just before it may not be stored yet.
        """
        path = self._file("retire")
        with _alone(path):
            keys = self._load()
            current = next(iter(keys))
            if len(keys) > 1 and time.time() < path.stat().st_mtime + _SETTLED_SECONDS:
                raise SettingsInvalid(
                    f"the keyring {path} was rotated less than a minute ago: retire the older keys a little later"
                )
            _write(path, {current: keys[current]})
        self._keys = self._load()
        return [key_id for key_id in keys if key_id != current]

    def _file(self, verb: str) -> Path:
        if self._settings.keyring is not None or self._settings.keyring_file is None:
            raise SettingsInvalid(
                f"cannot {verb} a keyring that comes from BYLINE_VAULT__KEYRING: change the variable itself"
            )
        return self._settings.keyring_file

    def _load(self) -> dict[str, bytes]:
        if self._settings.keyring is not None:
            return _parse(self._settings.keyring.get_secret_value(), "BYLINE_VAULT__KEYRING")
        path = self._file("read")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _create(path, {_new_id(): secrets.token_bytes(KEY_BYTES)})
        if path.stat().st_mode & 0o077:
            raise SettingsInvalid(f"the keyring {path} can be read by others: run chmod 600 on it")
        self._read_as = self._stamp()
        return _parse(path.read_text(), str(path))

    def _stamp(self) -> tuple[int, int] | None:
        """Return what differs in another version of the file, or None for a keyring from the environment."""
        if self._settings.keyring is not None:
            return None
        found = self._file("read").stat()
        return found.st_ino, found.st_mtime_ns


def _new_id() -> str:
    return secrets.token_hex(4)


def _parse(text: str, source: str) -> dict[str, bytes]:
    try:
        keys = {entry["id"]: urlsafe_b64decode(entry["key"]) for entry in json.loads(text)["keys"]}
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsInvalid(
            f'{source} is not a keyring: it should read {{"keys": [{{"id": "…", "key": "<base64url of 32 bytes>"}}]}}'
        ) from error
    if not keys or any(len(key) != KEY_BYTES for key in keys.values()):
        raise SettingsInvalid(f"{source} needs at least one key, each of {KEY_BYTES} bytes")
    if not all(isinstance(key_id, str) and _ID.fullmatch(key_id) for key_id in keys):
        raise SettingsInvalid(
            f"{source} names a key otherwise than by 1 to 64 letters, digits, dots, dashes and underscores"
        )
    return keys


def _text(keys: dict[str, bytes]) -> bytes:
    entries = [{"id": key_id, "key": urlsafe_b64encode(key).decode()} for key_id, key in keys.items()]
    return json.dumps({"keys": entries}, indent=1).encode()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lock out every other process that changes the keyring: of two that wrote at once, one's key would be lost."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _create(path: Path, keys: dict[str, bytes]) -> None:
    # Two processes may start at once. The link lets only one of them create the file, and both read that one.
    draft = _draft(path, keys)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _write(path: Path, keys: dict[str, bytes]) -> None:
    _draft(path, keys).replace(path)


def _draft(path: Path, keys: dict[str, bytes]) -> Path:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(_text(keys))
        file.flush()
        os.fsync(file.fileno())
    return draft
