import json
import subprocess
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from pydantic import SecretStr

from engine.errors import SettingsInvalid
from engine.settings import VaultSettings
from engine.vault.keyring import Keyring

KEY = urlsafe_b64encode(bytes(32)).decode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "secrets" / "keyring.json"


def load_ring(path: Path) -> Keyring:
    return Keyring(VaultSettings(keyring_file=path))


def load_keyring(text: str) -> Keyring:
    """A keyring from the environment."""
    return Keyring(VaultSettings(keyring_file=None, keyring=SecretStr(text)))


def ids(path: Path) -> list[str]:
    return [entry["id"] for entry in json.loads(path.read_text())["keys"]]


def run_together(program: str, path: Path, processes: int = 4) -> Sequence[str]:
    """Run a program in several processes at once, each of which waits for the others to be ready."""
    prologue = (
        "import sys\n"
        "from pathlib import Path\n"
        "from engine.settings import VaultSettings\n"
        "from engine.vault.keyring import Keyring\n"
        "print(flush=True)\n"
        "sys.stdin.readline()\n"
        "ring = Keyring(VaultSettings(keyring_file=Path(sys.argv[1])))\n"
    )
    running_processes = [
        subprocess.Popen(
            [sys.executable, "-c", prologue + program, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    for process in running_processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in running_processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate(timeout=60)[0].strip() for process in running_processes]


def test_a_keyring_is_made_on_the_first_start_for_its_owner_alone(path: Path) -> None:
    new_keyring = load_ring(path)

    assert path.stat().st_mode & 0o777 == 0o600
    assert len(new_keyring.current_key[1]) == 32
    assert load_ring(path).current_key == new_keyring.current_key
    assert [file.name for file in path.parent.iterdir()] == ["keyring.json"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o666, 0o601])
def test_a_keyring_that_others_can_reach_is_refused(path: Path, mode: int) -> None:
    load_ring(path)
    path.chmod(mode)

    with pytest.raises(SettingsInvalid, match="can be read by others: run chmod 600"):
        load_ring(path)


def test_processes_that_start_at_once_use_one_keyring(path: Path) -> None:
    keys = run_together("print(*ring.current_key)", path)

    assert len(set(keys)) == 1
    assert keys[0].split()[0] == ids(path)[0]


def test_processes_that_rotate_at_once_lose_none_of_their_keys(path: Path) -> None:
    first = load_ring(path).current_key[0]
    printed_ids = run_together("print(*(ring.rotate_key() for _ in range(5)))", path)

    assert set(ids(path)) == {first, *" ".join(printed_ids).split()}
    assert len(ids(path)) == 21


def test_a_rotation_puts_a_new_key_in_front_and_keeps_the_older_ones(path: Path) -> None:
    mine = load_ring(path)
    first = mine.current_key
    second = mine.rotate_key()

    assert mine.current_key[0] == second != first[0]
    assert mine.find_key(first[0]) == first[1]
    assert ids(path) == [second, first[0]]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_rotation_by_another_process_is_seen_at_once(path: Path) -> None:
    mine, theirs = load_ring(path), load_ring(path)
    previous_key = mine.current_key
    new_key = theirs.rotate_key()

    assert mine.current_key == theirs.current_key
    assert mine.current_key[0] == new_key
    assert mine.find_key(previous_key[0]) == previous_key[1]


def test_a_key_that_another_process_made_is_found_by_its_id(path: Path) -> None:
    mine, theirs = load_ring(path), load_ring(path)
    new_key = theirs.rotate_key()

    assert mine.find_key(new_key) == theirs.current_key[1]
    assert mine.find_key("unknown") is None


def test_a_keyring_comes_from_the_environment_as_well() -> None:
    keys = [{"id": "two", "key": KEY}, {"id": "one", "key": KEY}]
    mine = load_keyring(json.dumps({"keys": keys}))

    assert mine.current_key == ("two", bytes(32))
    assert mine.find_key("one") == bytes(32)


@pytest.mark.parametrize(
    ("change", "method"), [("rotate", Keyring.rotate_key), ("retire", Keyring.retire_keys)]
)
def test_a_keyring_from_the_environment_is_changed_there(
    change: str, method: Callable[[Keyring], object]
) -> None:
    mine = load_keyring(json.dumps({"keys": [{"id": "one", "key": KEY}]}))

    with pytest.raises(
        SettingsInvalid, match=f"cannot {change} a keyring that comes from BYLINE_VAULT__KEYRING"
    ):
        method(mine)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "{}",
        '{"keys": 5}',
        '{"keys": []}',
        '{"keys": [{"id": "one"}]}',
        '{"keys": [{"id": "one", "key": "c2hvcnQ="}]}',
        '{"keys": [{"id": "one", "key": 5}]}',
        json.dumps({"keys": [{"id": "", "key": KEY}]}),
        json.dumps({"keys": [{"id": 5, "key": KEY}]}),
        json.dumps({"keys": [{"id": "x" * 300, "key": KEY}]}),
        json.dumps({"keys": [{"id": "schlüssel", "key": KEY}]}),
    ],
)
def test_what_is_no_keyring_is_refused_and_not_repeated(text: str, path: Path) -> None:
    path.parent.mkdir()
    path.touch(mode=0o600)
    path.write_text(text)
    with pytest.raises(SettingsInvalid, match=r"^BYLINE_VAULT__KEYRING ") as error_info:
        load_keyring(text)
    with pytest.raises(SettingsInvalid, match=str(path)):
        load_ring(path)

    assert KEY not in str(error_info.value)
