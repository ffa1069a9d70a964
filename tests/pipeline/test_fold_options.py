"""Options of repeated runs."""

import click
import pytest

from pipeline.fold_options import parse_seeds


def test_seeds_are_distinct_whole_numbers():
    option = click.Option(["--seeds"])
    context = click.Context(click.Command("run"))
    assert parse_seeds(context, option, None) == ()
    assert parse_seeds(context, option, "0,1, 2") == (0, 1, 2)
    for value in ("0,x", "1,1", "1.5"):
        with pytest.raises(click.BadParameter, match=value):
            parse_seeds(context, option, value)
