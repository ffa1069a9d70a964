"""Networks, losses or mining modes that can be compared, checked before any training."""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.commands.compared_settings import OPTIONS, settings_of
from pipeline.commands.folds import FoldContext
from pipeline.commands.inputs import load_data, say_network_notes
from pipeline.context import RunContext
from pipeline.data.dataset import Dataset
from pipeline.error_messages import describe_failure
from pipeline.network_choice import choose_network
from pipeline.report.comparison import ComparedRun
from pipeline.weights import load_weights, with_pretrained_size
from stages.embedding.library_loss import new_library_loss
from stages.errors import DataError, SettingsError
from stages.network.initialization import new_network
from stages.settings import EmbedSettings, ReadSettings


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network, loss or mining mode that can be trained.

    Attributes:
        name: Its name.
        settings: Settings of stage one, without ``auto``.
        data: Images at the size of the network.
        reason: The network that ``auto`` stands for, and why; else empty.
    """

    name: str
    settings: EmbedSettings
    data: Dataset
    reason: str = ""

    def entry(self, **results: Any) -> ComparedRun:
        """Return its row of the comparison."""
        return ComparedRun(self.name, self.settings, self.data.read.size, **results)


def prepare_candidates(
    source: str | Dataset,
    read: ReadSettings,
    field: str,
    values: Sequence[str],
    shared: Mapping[str, Any],
    context: RunContext,
) -> tuple[list[Candidate], dict[str, ComparedRun]]:
    """Read the images and check all names before the long work begins.

    Args:
        source: Source of the images, or a data set that is already read.
        read: How to read and split the source.
        field: Setting that differs.
        values: Its values.
        shared: Other settings of stage one by name.
        context: Output and cache options, already started.

    Returns:
        The candidates that can be trained, and the failures by name.

    Raises:
        DataError: If the images cannot be used.
        SettingsError: If two of the candidates are the same.
    """
    candidates: list[Candidate] = []
    failures: dict[str, ComparedRun] = {}
    once = FoldContext(**vars(context))  # shows a note about the images once
    shared_reason = ""
    if field != "network":
        read, shared, shared_reason = _choose_shared_network(source, read, shared, context)
    # For `auto` among networks: these options are given for the other networks.
    context_of_auto = replace(context, given=context.given - {"weights", "trunk"})
    for value in values:
        settings: EmbedSettings | None = None
        try:
            settings = settings_of(field, value, shared)
            own_read, settings, reason = choose_network(source, read, settings, context_of_auto)
            reason = reason or shared_reason
            own_read = with_pretrained_size(own_read, settings)
            new_library_loss(settings, torch.arange(2))  # finds wrong names and parameters
        except DataError:  # of the images, so the same for all
            raise
        except Exception as error:
            failures[value] = failed_entry(value, settings, None, error, context)
            continue
        data = load_data(source, own_read, once)
        try:
            _check_candidate(data, settings, candidates)
        except Exception as error:
            failures[value] = failed_entry(value, settings, data.read.size, error, context)
            continue
        for other in candidates:
            if (other.settings, other.data.read) == (settings, data.read):
                problem = f"the same as {other.name} ({field} {getattr(settings, field)})"
                raise SettingsError(OPTIONS[field], value, f"{problem}; leave one of them out")
        candidates.append(Candidate(value, settings, data, reason))
        say_network_notes(settings, data, once)
    if len(candidates) >= 2:
        for failure in failures.values():
            say_failure(failure, context)
    return candidates, failures


def _choose_shared_network(
    source: str | Dataset, read: ReadSettings, shared: Mapping[str, Any], context: RunContext
) -> tuple[ReadSettings, dict[str, Any], str]:
    """Replace ``auto`` in the settings that all losses or mining modes share.

    Returns:
        How to read the images, the shared settings, and why the network was chosen.
    """
    names = ("network", "weights", "trunk")
    given = EmbedSettings(**{name: shared[name] for name in names if name in shared})
    read, chosen, reason = choose_network(source, read, given, context)
    return read, {**shared, **{name: getattr(chosen, name) for name in names}}, reason


def _check_candidate(
    data: Dataset, settings: EmbedSettings, candidates: Sequence[Candidate]
) -> None:
    """Check that a network can be built and has the same images as the others.

    Raises:
        PipelineError: If its weights are missing or do not fit, it does not run at this size, or
            it cannot read the same images. Neither copies nor readable files depend on the size,
            so the last one is not expected.
    """
    if candidates and data.fingerprint != candidates[0].data.fingerprint:
        raise DataError(
            f"{data.source}: not the same readable images as for {candidates[0].name}; remove the "
            "files that `pipeline data` reports as unreadable"
        )
    few = data.train.select(torch.arange(min(len(data.train), 8)))
    new_network(few, settings, load_weights(settings))


def failed_entry(
    name: str,
    settings: EmbedSettings | None,
    size: int | None,
    error: Exception,
    context: RunContext,
) -> ComparedRun:
    """Return the row of a network that has failed. The traceback of a bug is shown.

    Args:
        name: Name of the network, loss or mining mode.
        settings: Its settings, if they are valid.
        size: Side of the images, if it is known.
        error: Why it has failed.
        context: Output options.
    """
    message, is_bug = describe_failure(error)
    if is_bug:
        context.say("".join(traceback.format_exception(error)).rstrip())
    return ComparedRun(name, settings, size, error=message)


def say_failure(entry: ComparedRun, context: RunContext) -> None:
    """Warn that a network could not be evaluated."""
    context.say(f"warning: {entry.name} cannot be evaluated: {entry.error}")
