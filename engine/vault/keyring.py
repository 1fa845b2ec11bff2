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
from engine.vault.sealed import KEY_BYTES, VERSION_MASTER_KEY, SealedValue, seal_value

_KEY_ID_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_RETIREMENT_DELAY_SECONDS = 60.0


class Keyring:
    """AES-256 master keys from a file of mode 0600 or from the environment: the key provider that needs no service.

    The format is `{"keys": [{"id": "…", "key": "<base64url>"}, …]}`, newest first.
    """

    name = "keyring"

    def __init__(self, settings: VaultSettings) -> None:
        self._settings = settings
        self._read_file_stamp: tuple[int, int] | None = None
        self._keys_by_id = self._load_keys()

    async def wrap_key(self, data_key: bytes, associated_data: str) -> bytes:
        """Encrypt with the first key."""
        key_id, master_key = self.current_key
        return seal_value(VERSION_MASTER_KEY, key_id, master_key, data_key, associated_data)

    async def unwrap_key(self, wrapped_key: bytes, associated_data: str) -> bytes:
        """Decrypt with the key that encrypted; raises VaultSealBroken."""
        sealed_value = SealedValue.parse_value(wrapped_key)
        return sealed_value.open_value(self.find_key(sealed_value.key_id), associated_data)

    @property
    def is_file_based(self) -> bool:
        """Whether the keys lie in a file, which `rotate` and `retire` may write."""
        return self._settings.keyring is None

    @property
    def current_key(self) -> tuple[str, bytes]:
        """The id and the bytes of the key that wraps. A file that another process rotated is read again first."""
        if self._read_file_stamp != self._read_stamp():
            self._keys_by_id = self._load_keys()
        return next(iter(self._keys_by_id.items()))

    def find_key(self, key_id: str) -> bytes | None:
        """Return the key with this id. A file is read again for an unknown id: another process may have rotated."""
        if key_id not in self._keys_by_id:
            self._keys_by_id = self._load_keys()
        return self._keys_by_id.get(key_id)

    def rotate_key(self) -> str:
        """Put a new key first in the file, so that it wraps from now on; return its id."""
        keyring_path, key_id = self._require_file("rotate"), _make_key_id()
        with _lock_keyring(keyring_path):
            _write_keyring(keyring_path, {key_id: secrets.token_bytes(KEY_BYTES), **self._load_keys()})
            self._keys_by_id = self._load_keys()
        return key_id

    def retire_keys(self) -> list[str]:
        """Drop every key but the current one from the file; only safe once all data keys are wrapped with it.

        Returns the ids of the dropped keys. Raises SettingsInvalid within a minute of a rotation, since a key wrapped
        just before it may not be stored yet.
        """
        keyring_path = self._require_file("retire")
        with _lock_keyring(keyring_path):
            keys_by_id = self._load_keys()
            current_key_id = next(iter(keys_by_id))
            if len(keys_by_id) > 1 and time.time() < keyring_path.stat().st_mtime + _RETIREMENT_DELAY_SECONDS:
                raise SettingsInvalid(
                    f"the keyring {keyring_path} was rotated less than a minute ago: retire "
                    "the older keys a little later"
                )
            _write_keyring(keyring_path, {current_key_id: keys_by_id[current_key_id]})
        self._keys_by_id = self._load_keys()
        return [key_id for key_id in keys_by_id if key_id != current_key_id]

    def _require_file(self, action_verb: str) -> Path:
        if self._settings.keyring is not None or self._settings.keyring_file is None:
            raise SettingsInvalid(
                f"cannot {action_verb} a keyring that comes from BYLINE_VAULT__KEYRING: change the variable itself"
            )
        return self._settings.keyring_file

    def _load_keys(self) -> dict[str, bytes]:
        if self._settings.keyring is not None:
            return _parse_keyring(self._settings.keyring.get_secret_value(), "BYLINE_VAULT__KEYRING")
        keyring_path = self._require_file("read")
        if not keyring_path.exists():
            keyring_path.parent.mkdir(parents=True, exist_ok=True)
            _create_keyring(keyring_path, {_make_key_id(): secrets.token_bytes(KEY_BYTES)})
        if keyring_path.stat().st_mode & 0o077:
            raise SettingsInvalid(f"the keyring {keyring_path} can be read by others: run chmod 600 on it")
        self._read_file_stamp = self._read_stamp()
        return _parse_keyring(keyring_path.read_text(), str(keyring_path))

    def _read_stamp(self) -> tuple[int, int] | None:
        """Return what differs in another version of the file, or None for a keyring from the environment."""
        if self._settings.keyring is not None:
            return None
        file_status = self._require_file("read").stat()
        return file_status.st_ino, file_status.st_mtime_ns


def _make_key_id() -> str:
    return secrets.token_hex(4)


def _parse_keyring(keyring_text: str, source_name: str) -> dict[str, bytes]:
    try:
        keys_by_id = {
            entry["id"]: urlsafe_b64decode(entry["key"]) for entry in json.loads(keyring_text)["keys"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsInvalid(
            f"{source_name} is not a keyring: it should read "
            f'{{"keys": [{{"id": "…", "key": "<base64url of 32 bytes>"}}]}}'
        ) from error
    if not keys_by_id or any(len(master_key) != KEY_BYTES for master_key in keys_by_id.values()):
        raise SettingsInvalid(f"{source_name} needs at least one key, each of {KEY_BYTES} bytes")
    if not all(isinstance(key_id, str) and _KEY_ID_PATTERN.fullmatch(key_id) for key_id in keys_by_id):
        raise SettingsInvalid(
            f"{source_name} names a key otherwise than by 1 to 64 letters, digits, dots, dashes and underscores"
        )
    return keys_by_id


def _serialize_keyring(keys_by_id: dict[str, bytes]) -> bytes:
    entries = [
        {"id": key_id, "key": urlsafe_b64encode(master_key).decode()}
        for key_id, master_key in keys_by_id.items()
    ]
    return json.dumps({"keys": entries}, indent=1).encode()


@contextmanager
def _lock_keyring(keyring_path: Path) -> Iterator[None]:
    """Lock out every other process that changes the keyring: of two that wrote at once, one's key would be lost."""
    folder_descriptor = os.open(keyring_path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder_descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder_descriptor)


def _create_keyring(keyring_path: Path, keys_by_id: dict[str, bytes]) -> None:
    # Two processes may start at once. The link lets only one of them create the file, and both read that one.
    draft_path = _write_draft(keyring_path, keys_by_id)
    try:
        os.link(draft_path, keyring_path)
    except FileExistsError:
        pass
    finally:
        draft_path.unlink()


def _write_keyring(keyring_path: Path, keys_by_id: dict[str, bytes]) -> None:
    _write_draft(keyring_path, keys_by_id).replace(keyring_path)


def _write_draft(keyring_path: Path, keys_by_id: dict[str, bytes]) -> Path:
    draft_path = keyring_path.with_name(f".{keyring_path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(draft_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as draft_file:
        draft_file.write(_serialize_keyring(keys_by_id))
        draft_file.flush()
        os.fsync(draft_file.fileno())
    return draft_path
