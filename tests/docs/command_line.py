"""The commands of `byline` as the program itself knows them; it runs none."""

from collections.abc import Iterator

import typer
from typer.core import TyperCommand, TyperGroup

from gateway.cli import commands


def _leaves(command: object, path: tuple[str, ...]) -> Iterator[tuple[str, TyperCommand | TyperGroup]]:
    assert isinstance(command, TyperCommand | TyperGroup)
    if not isinstance(command, TyperGroup) or command.invoke_without_command:
        arguments = [str(each.name).upper() for each in command.params if each.param_type_name == "argument"]
        yield " ".join([*path, *arguments]), command
    if isinstance(command, TyperGroup):
        for name, below in command.commands.items():
            yield from _leaves(below, (*path, name))


ROOT_COMMAND = typer.main.get_command(commands())
COMMANDS = dict(_leaves(ROOT_COMMAND, ("byline",)))


def parse(words: list[str]) -> None:
    """Parse the words after `byline` as a shell would pass them; raises where they do not fit."""
    command: object = ROOT_COMMAND
    while isinstance(command, TyperGroup) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    assert isinstance(command, TyperCommand | TyperGroup)
    assert not isinstance(command, TyperGroup) or command.invoke_without_command
    command.make_context("byline", words)
