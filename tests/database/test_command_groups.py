import pytest

from tests.support.commands import Commands


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("words", "expected_message"),
    [
        (("audit", "verify"), "The trail holds: 0 lines"),
        (("keys", "rotate"), "signs from now on"),
        (("vault", "reseal"), "0 secrets were still sealed with an older key"),
        (("people", "list"), "Nobody has signed in yet"),
        (("services", "list"), "There is no service."),
        (("clients", "list"), "No administrator registered a client"),
        (("grants", "list", "shared"), "shared has granted nothing"),
    ],
    ids=lambda parameter: parameter[0] if isinstance(parameter, tuple) else None,
)
async def test_every_group_of_commands_is_there_in_the_program(
    commands: Commands, words: tuple[str, ...], expected_message: str
) -> None:
    result = await Commands(commands.environment, commands.folder)(*words)

    assert result.code == 0, result.err
    assert expected_message in result.out + result.err
