import sys
from importlib.metadata import version

import pytest

from gateway.cli import main


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str, **environment: str) -> object:
    """Run `byline` and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["byline", *arguments])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit_info:
        main()
    return exit_info.value.code


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("BYLINE_GATEWAY__PORT", "eighty", "BYLINE_GATEWAY__PORT: Input should be a valid integer"),
        ("BYLINE_VAULT__KEYRINGS", "k", "BYLINE_VAULT__KEYRINGS: there is no such setting"),
        (
            "BYLINE_MODULES",
            "workflows",
            "BYLINE_MODULES: write JSON, since this setting is a list or a group",
        ),
        (
            "BYLINE_OUTGOING__PRIVATE_HOSTS",
            "10.1.2.3",
            "BYLINE_OUTGOING__PRIVATE_HOSTS: write JSON, since this setting is a list or a group",
        ),
    ],
)
def test_a_wrong_setting_is_reported_by_its_variable(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    message: str,
) -> None:
    assert run_main(monkeypatch, "worker", **{variable: value}) == 2
    assert capsys.readouterr().err.startswith(message)


def test_an_expected_failure_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "ready", "ftp://somewhere") == 1
    assert capsys.readouterr().err.splitlines() == [
        "ftp://somewhere cannot be asked: write http://host:port/path or temporal://host:port/namespace/queue"
    ]


def test_the_release_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "version") == 0
    assert capsys.readouterr().out.strip() == version("byline")
