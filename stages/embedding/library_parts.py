"""Objects of pytorch-metric-learning, built from a class name and a table of parameters.

The library is imported on first use, because that takes a second.
"""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NamedTuple

from torch import nn

from stages.errors import SettingsError
from stages.settings import PML

# Parameters that are objects of the library themselves, and the module with their classes.
PARTS = {
    "distance": "distances",
    "embedding_regularizer": "regularizers",
    "loss": "losses",  # in CrossBatchMemory
    "miner": "miners",
    "reducer": "reducers",
    "weight_regularizer": "regularizers",
}
# Parameters that a table cannot give: functions, statistics that nothing reads, and a parameter
# that the subclasses of GenericPairLoss set themselves.
NOT_GIVEN = ("aggregation_func", "collect_stats", "iter_fn", "mat_based_loss", "weight_init_func")
ABSTRACT = ("Base", "GenericPairLoss")  # beginnings of the names of classes to derive from
TWO_VIEWS = "compares two views of each image, and a batch has one"
UNUSABLE = {
    "EmbeddingsAlreadyPackagedAsTriplets": "needs batches that are sorted by triplet",
    "ManifoldLoss": "is computed without classes",
    "MultipleLosses": "combines several losses",
    "MultipleReducers": "combines several reducers",
    "SelfSupervisedLoss": TWO_VIEWS,
    "VICRegLoss": TWO_VIEWS,
}


class Place(NamedTuple):
    """Place of an object in the settings, for error messages.

    Attributes:
        field: Settings field with the name of the outermost object: ``loss`` or ``mining``.
        options: Settings field with its parameters.
        inner: True for a parameter that is an object itself.
    """

    field: str
    options: str
    inner: bool = False


LOSS = Place("loss", "loss_options")
MINER = Place("mining", "mining_options")


def build(
    module: str, name: str, options: Mapping[str, Any], sizes: Mapping[str, int], place: Place
) -> nn.Module:
    """Build an object of pytorch-metric-learning.

    Args:
        module: Module of the library: ``losses``, ``miners``, ``distances``, ``reducers`` or
            ``regularizers``.
        name: Class name.
        options: Parameters of the constructor. A parameter that is an object of the library is a
            class name, or a table with ``name`` and the object's own parameters.
        sizes: Values of the parameters that depend on the data, such as ``num_classes``. They are
            filled in where the constructor requires them.
        place: Place of the object in the settings.

    Returns:
        The object.

    Raises:
        SettingsError: If the library is not installed, or the name or a parameter is wrong.
    """
    kind = _find_class(module, name, place)
    accepted = constructor_parameters(kind)
    required = {key for key, default in accepted.items() if default is inspect.Parameter.empty}
    filled = {key: sizes[key] for key in required & set(sizes)}
    allowed = ", ".join(key for key in accepted if key not in filled) or "none"
    for key in options:
        if key in filled:
            problem = f"{key} of {name} is taken from the data and the dimension; leave it out"
            raise SettingsError(place.options, None, problem)
        if key not in accepted:
            problem = f"{name} has no parameter {key[:60]}; its parameters are: {allowed}"
            raise SettingsError(place.options, None, problem)
    missing = sorted(required - set(filled) - set(options))
    if missing:
        problem = f"{name} needs {', '.join(missing)}; its parameters are: {allowed}"
        raise SettingsError(place.options, None, problem)
    values = dict(options)
    for key in PARTS.keys() & values.keys():
        values[key] = _build_part(key, values[key], sizes, place)
    try:
        with quiet():
            built: nn.Module = kind(**filled, **values)
    except Exception as error:  # the library raises assertions and plain exceptions too
        problem = f"{name} rejects them ({describe(error)}); its parameters are: {allowed}"
        raise SettingsError(place.options, None, problem) from error
    return built


@contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings of the library, which name lines of its code and no setting."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_metric_learning")
        yield


def describe(error: Exception) -> str:
    """Return the type and the message of an error of the library, in one line."""
    message = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _build_part(key: str, value: Any, sizes: Mapping[str, int], place: Place) -> nn.Module | None:
    """Build a parameter that is an object of the library itself."""
    if value is None:
        return None
    options = {"name": value} if isinstance(value, str) else value
    if not isinstance(options, dict) or not isinstance(options.get("name"), str):
        form = 'a class name, or a table with "name" and parameters'
        raise SettingsError(place.options, None, f"{key} is {str(value)[:60]}; use {form}")
    name = options["name"].removeprefix(PML)
    rest = {option: value for option, value in options.items() if option != "name"}
    return build(PARTS[key], name, rest, sizes, place._replace(inner=True))


def _find_class(module: str, name: str, place: Place) -> type[nn.Module]:
    """Return a class of the library, or raise an error that suggests similar names."""
    field = place.options if place.inner else place.field
    value = None if place.inner else f"{PML}{name}"
    try:
        import pytorch_metric_learning as library
        from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
    except ImportError as error:
        problem = (
            "needs the package pytorch-metric-learning; run pip install pytorch-metric-learning"
        )
        raise SettingsError(field, value, problem) from error
    modules = (distances, losses, miners, reducers, regularizers)
    (source,) = (item for item in modules if item.__name__.endswith(module))
    classes = {
        key: kind
        for key, kind in vars(source).items()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and not key.startswith(ABSTRACT)
    }
    if name in UNUSABLE and name in classes:
        problem = f"cannot be used: {name} {UNUSABLE[name]}; use another of the {module}"
        raise SettingsError(field, value, problem)
    if name not in classes:
        usable = [key for key in classes if key not in UNUSABLE]
        prefix = "" if place.inner else PML
        similar = get_close_matches(name, usable, 5, 0.3) or usable
        listed = ", ".join(prefix + key for key in similar)
        problem = (
            f"pytorch-metric-learning {library.__version__} has no {name[:60]} among its {module}; "
            f"use one such as {listed}"
        )
        raise SettingsError(field, value, problem)
    return classes[name]


def constructor_parameters(kind: type) -> dict[str, Any]:
    """Return the parameters that a class of the library accepts, and their defaults.

    A constructor with ``**kwargs`` passes them on to that of its base classes, so their parameters
    are accepted too. The class's own come first.

    Args:
        kind: Class of the library.

    Returns:
        Default by name; ``inspect.Parameter.empty`` for a parameter without a default.
    """
    accepted: dict[str, Any] = {}
    for base in kind.__mro__:
        if base is nn.Module:
            break
        if "__init__" not in vars(base):
            continue
        passes_on = False
        for name, parameter in inspect.signature(base).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                passes_on = True
            elif parameter.kind is not parameter.VAR_POSITIONAL and name not in NOT_GIVEN:
                accepted.setdefault(name, parameter.default)
        if not passes_on:
            break
    return accepted
