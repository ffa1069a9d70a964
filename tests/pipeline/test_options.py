"""Command-line options."""

from dataclasses import fields
from pathlib import Path

import click
import pytest

from pipeline.cli import commands
from pipeline.context import RunContext
from pipeline.options import AUTOMATIC, HELP, pick, settings_options, spell
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

SETTINGS = (ReadSettings, EmbedSettings, ClassifySettings)


def option_names(name: str) -> set[str]:
    return {str(option.name) for option in commands.commands[name].params}


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_field_is_an_option_with_its_default(settings):
    @settings_options(settings)
    def command(**options):
        return options

    options = command.__click_params__
    assert {option.name for option in options} == {field.name for field in fields(settings)}
    for option in options:
        assert option.default == getattr(settings, option.name)


def test_help_texts_and_fields_match():
    names = {field.name for settings in SETTINGS for field in fields(settings)}
    assert set(HELP) == names
    automatic = {
        field.name for settings in SETTINGS for field in fields(settings) if field.default is None
    }
    assert set(AUTOMATIC) == automatic


def test_every_option_has_a_help_text():
    for command in commands.commands.values():
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help and option.help.endswith("."), (command.name, option.name)
                assert option.help[0].isupper() or option.help[0] in "`K", option.help


def test_commands_list_only_options_that_they_use():
    for name in ("classify", "report", "predict", "data"):
        assert "precision" not in option_names(name)
    assert {"precision", "epochs", "lr"} <= option_names("embed") & option_names("run")
    assert "max_iter" in option_names("classify")
    assert not {"epochs", "lr"} & option_names("classify")


def test_pick_ignores_other_options_and_keeps_defaults():
    options = {"dropout": 0.2, "quiet": True, "source": "digits"}
    assert pick(ClassifySettings, options) == ClassifySettings(dropout=0.2)
    assert pick(RunContext, options) == RunContext(quiet=True)


def test_hints_spell_only_what_differs_from_the_default():
    hints = (("--data", "my photos", None), ("--root", None, None), ("--out", Path("a"), Path("a")))
    assert spell(*hints) == " --data 'my photos'"


def test_a_count_of_classes_differs_from_a_share():
    option = next(p for p in commands.commands["data"].params if p.name == "unseen_classes")
    context = click.Context(commands.commands["data"])
    for value, expected in (("3", 3), ("0.3", 0.3), ("3.0", 3.0), (4, 4), (0.5, 0.5), (None, None)):
        converted = option.type_cast_value(context, value)
        assert converted == expected and type(converted) is type(expected)
    for value in ("", "some", "0,3", "30%"):
        with pytest.raises(click.BadParameter, match="share"):
            option.type_cast_value(context, value)
