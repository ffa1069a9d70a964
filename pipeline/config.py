"""Option values from a TOML file, one table per command."""

import os
import tomllib
from pathlib import Path
from typing import Any

import click

from stages.errors import SettingsError

Tables = dict[str, dict[str, Any]]


def read_config(path: Path, group: click.Group) -> Tables:
    """Read option values from a TOML file.

    Args:
        path: TOML file with one table per command, such as ``[embed]``. A key is an option
            without its dashes: ``classes-per-batch`` or ``classes_per_batch``.
        group: The commands and their options.

    Returns:
        For each command in the file, values by parameter name, as click's ``default_map`` takes
        them.

    Raises:
        SettingsError: If the file cannot be read, or has an unknown table or option.
    """
    try:
        if not os.path.isfile(path):  # a pipe would wait for a writer, /dev/zero never ends
            raise OSError("no such file")
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # decoding errors are ValueErrors
        raise SettingsError(
            "config", path, f"cannot be read ({error}); use a TOML file with one table per command"
        ) from error
    values: Tables = {}
    for name, table in tables.items():
        if name not in group.commands or not isinstance(table, dict):
            problem = f"no command {name}; use the tables {', '.join(group.commands)}"
            raise SettingsError("config", path, problem)
        values[name] = _table_values(path, group.commands[name], table)
    return values


def _table_values(path: Path, command: click.Command, table: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, click.Option] = {}
    for option in command.params:
        if isinstance(option, click.Option):
            options |= {flag.lstrip("-"): option for flag in option.opts}
    values: dict[str, Any] = {}
    for key, value in table.items():
        chosen = options.get(key.replace("_", "-"))
        place = f"[{command.name}] {key}"
        if chosen is None or chosen.name is None:
            problem = f"{place}: no option of `pipeline {command.name}`; use {', '.join(options)}"
            raise SettingsError("config", path, problem)
        if chosen.name in values:
            raise SettingsError("config", path, f"{place}: given twice; use - or _ in the name")
        is_right, expected = _check_type(chosen, value)
        if not is_right:
            problem = f"{place} = {value}: wrong type; use {expected}"
            raise SettingsError("config", path, problem)
        if chosen.multiple and isinstance(value, str):
            value = [value]
        elif _takes_list(chosen) and isinstance(value, list):
            value = ",".join(map(str, value))
        values[chosen.name] = value
    return values


def _takes_list(option: click.Option) -> bool:
    """Return True for an option with commas between its values, such as ``--networks``."""
    return (option.metavar or "").endswith(",...")


def _check_type(option: click.Option, value: object) -> tuple[bool, str]:
    """Return True if a value has the type of an option, and the name of the type."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if option.is_flag or option.type is click.BOOL:
        return isinstance(value, bool), "true or false"
    if option.type is click.INT:
        return is_number and isinstance(value, int), "a whole number"
    if option.type is click.FLOAT or option.name == "unseen_classes":
        return is_number, "a number"
    if option.name in ("loss_options", "mining_options"):
        return isinstance(value, dict), f"a table [{option.name.replace('_', '-')}]"
    if option.name == "margin":
        return is_number or isinstance(value, str), "a number or soft"
    if (option.multiple or _takes_list(option)) and isinstance(value, list):
        kinds = (int,) if option.name == "seeds" else (str,)
        return all(type(item) in kinds for item in value), "a list of names in quotes"
    return isinstance(value, str), "a text in quotes"


def add_run_defaults(tables: Tables, run: click.Command) -> Tables:
    """Apply the table ``[embed]`` to `pipeline run` too, where both have the option.

    Args:
        tables: As from :func:`read_config`.
        run: The command `pipeline run`.

    Returns:
        The tables, with ``run`` completed. A value in ``[run]`` wins over one in ``[embed]``.
    """
    shared = {option.name for option in run.params} - {"out"}
    embed = {name: value for name, value in tables.get("embed", {}).items() if name in shared}
    return {**tables, "run": embed | tables.get("run", {})}


def add_compare_defaults(tables: Tables, compare: click.Command) -> Tables:
    """Apply the tables ``[run]`` and ``[embed]`` to `pipeline compare`, where it has the option.

    Args:
        tables: As from :func:`add_run_defaults`.
        compare: The command `pipeline compare`. Its ``--networks`` and ``--losses`` take the values
            of ``--network`` and ``--loss``.

    Returns:
        The tables, with ``compare`` completed. A value in ``[compare]`` wins.
    """
    values = dict(tables.get("run", {}))
    for singular, plural in (("network", "networks"), ("loss", "losses")):
        if singular in values:
            values[plural] = values[singular]
    names = {option.name for option in compare.params} - {"out", "figures"}  # of another report
    shared = {name: value for name, value in values.items() if name in names}
    return {**tables, "compare": shared | tables.get("compare", {})}


def configured_values(tables: Tables, command: click.Command, context: click.Context) -> Any:
    """Return a command's values from the file, converted as its options would convert them.

    Args:
        tables: As from :func:`read_config`.
        command: The command whose table is read.
        context: Context for click's error messages.

    Returns:
        Values by parameter name.

    Raises:
        click.BadParameter: If a value has the wrong type.
    """
    table = tables.get(str(command.name), {})
    values = {}
    for option in command.params:
        if option.name in table:
            values[option.name] = option.type_cast_value(context, table[option.name])
    return values
