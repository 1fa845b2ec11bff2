"""The commands of `byline` as the program itself knows them; it runs none."""

from collections.abc import Iterator

import typer
from typer.core import TyperCommand, TyperGroup

from gateway.cli import build_commands


def _leaves(command: object, path: tuple[str, ...]) -> Iterator[tuple[str, TyperCommand | TyperGroup]]:
    command = _load_group(command)
    if not isinstance(command, TyperGroup) or command.invoke_without_command:
        arguments = [
            str(parameter.name).upper()
            for parameter in command.params
            if parameter.param_type_name == "argument"
        ]
        yield " ".join([*path, *arguments]), command
    if isinstance(command, TyperGroup):
        for name, below in command.commands.items():
            yield from _leaves(below, (*path, name))


def _load_group(command: object) -> TyperCommand | TyperGroup:
    """The command itself, where another one stands in for it until it is used."""
    assert isinstance(command, TyperCommand | TyperGroup)
    loaded_command = command.make_context(command.name, [], resilient_parsing=True).command
    assert isinstance(loaded_command, TyperCommand | TyperGroup)
    return loaded_command


ROOT_COMMAND = typer.main.get_command(build_commands())
COMMANDS = dict(_leaves(ROOT_COMMAND, ("byline",)))


def parse(words: list[str]) -> None:
    """Parse the words after `byline` as a shell would pass them; raises where they do not fit."""
    command = _load_group(ROOT_COMMAND)
    while isinstance(command, TyperGroup) and words and words[0] in command.commands:
        command, words = _load_group(command.commands[words[0]]), words[1:]
    assert not isinstance(command, TyperGroup) or command.invoke_without_command
    command.make_context("byline", words)
