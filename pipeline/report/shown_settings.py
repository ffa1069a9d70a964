"""The last section of the page: data, settings and versions, without repetitions."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.enrolments import describe_enrolments
from pipeline.numbers import count_of
from pipeline.report.evaluated_run import EvaluatedRun

MEANING_OF_NONE = {
    "margin": "soft",
    "patience": "none",
    "loss_options": "the library's",
    "mining_options": "the library's",
}


class SettingRow(NamedTuple):
    """A title and the values below it.

    Attributes:
        title: Title, such as ``embedding``.
        values: Texts, which are shown with commas between them.
    """

    title: str
    values: tuple[str, ...]


def applicable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of stage one without those that have no effect with its loss.

    Args:
        settings: Fields of :class:`stages.settings.EmbedSettings` by name. Old checkpoints lack
            some of them.
    """
    is_triplet = settings.get("loss", "triplet") == "triplet"
    has_miner = settings["mining"].startswith("pml:")
    unused = set()
    if is_triplet:
        unused |= {"loss_options", "mining_options"}
    else:
        unused |= {"margin", "distance"}
        if not has_miner:
            unused |= {"mining", "mining_options"}
    return {name: value for name, value in settings.items() if name not in unused}


def setting_rows(run: EvaluatedRun) -> list[SettingRow]:
    """Return the rows of one run.

    Args:
        run: Evaluated run.
    """
    embedding, classifier = run.embedding, run.classifier
    rows = [("source", str(embedding["source"])), *_image_rows(run)]
    rows += [("enrolled", text) for text in describe_enrolments(classifier)]
    rows += [("note", note) for note in run.data.notes]
    if "network_choice" in embedding:
        rows.append(("network chosen by auto", embedding["network_choice"]))
    single = [SettingRow(title, (text,)) for title, text in rows]
    single += [
        _listed("image reading", embedding["read"]),
        _listed("embedding", applicable_settings(embedding["settings"])),
        _listed("classifier", classifier["settings"]),
    ]
    rows = _chosen_rows(run)
    rows.append(("precision", f"{embedding['precision']} in training, float32 in evaluation"))
    if not run.folds:
        rows.append(("split fingerprint", embedding["fingerprint"]))
        rows.append(("embedding digest", classifier["embedding_digest"]))
    single += [SettingRow(title, (text,)) for title, text in rows]
    return [*single, _listed("versions", embedding["versions"])]


def separate_shared_rows(
    rows_of_runs: Sequence[Sequence[SettingRow]],
) -> tuple[list[SettingRow], list[list[SettingRow]]]:
    """Separate the values that all runs share, so that they are shown once.

    Args:
        rows_of_runs: Rows of each run.

    Returns:
        Rows of the values that all runs have, and each run's rows of the others.
    """
    pairs = [{(row.title, value) for row in rows for value in row.values} for rows in rows_of_runs]
    shared = set.intersection(*pairs)
    own = [_select(rows, lambda pair: pair not in shared) for rows in rows_of_runs]
    return _select(rows_of_runs[0], lambda pair: pair in shared), own


def _select(
    rows: Sequence[SettingRow], is_wanted: Callable[[tuple[str, str]], bool]
) -> list[SettingRow]:
    selected = []
    for title, values in rows:
        kept = tuple(value for value in values if is_wanted((title, value)))
        if kept:
            selected.append(SettingRow(title, kept))
    return selected


def _image_rows(run: EvaluatedRun) -> list[tuple[str, str]]:
    counts = run.embedding["counts"]
    images = (
        f"{_first_fold(run)}{counts['train']:,} training, {counts['val']:,} validation, "
        f"{count_of(counts['test'], 'test image')}"
    )
    if run.data.unseen is not None:
        images += f", {count_of(len(run.data.unseen), 'test image')} of unseen classes"
    leaked = len(run.evaluation.leaked)
    duplicates = (
        f"{count_of(leaked, 'test image')} also occur{'s' if leaked == 1 else ''} in the training "
        f"or validation split{' or among the enrolled images' if run.enrolled else ''}"
    )
    skipped = len(run.embedding["skipped"])
    return [("images", f"{images}; {skipped} skipped"), ("duplicates", duplicates)]


def _chosen_rows(run: EvaluatedRun) -> list[tuple[str, str]]:
    """Return what was chosen on held-out classes and on validation images."""
    embedding, classifier = run.embedding, run.classifier
    first_fold, epoch = _first_fold(run), embedding["epoch"]
    held_out = embedding.get("held_out_classes")
    rows = []
    if held_out:
        text = f"{first_fold}epoch {epoch} was chosen by recall@1 on {', '.join(held_out)}"
        rows.append(("held out for the epoch", f"{text}, on which stage one is not trained"))
    if embedding["counts"]["val"]:
        epochs = "" if held_out else f"epoch {epoch}, "
        decay = classifier["history"][classifier["epoch"] - 1]["weight_decay"]
        text = f"{first_fold}{epochs}k {classifier['k']}, weight decay {decay}"
    else:
        epochs = "" if held_out else f"{epoch} epochs, "
        decay = classifier["history"][0]["weight_decay"]
        text = f"nothing, without validation images: {epochs}k {classifier['k']} and weight decay "
        text += f"{decay} are fixed"
    rows.append(("chosen on validation", text))
    temperature = f"{first_fold}temperature {classifier['temperature']:.3f}"
    rows.append(("calibration", temperature if run.calibrated else "uncalibrated"))
    return rows


def _first_fold(run: EvaluatedRun) -> str:
    if not run.folds:
        return ""
    name = run.folds[0].run.removeprefix(f"{run.run}/")
    return f"{name} of {len(run.folds)} folds: "


def _listed(title: str, values: Mapping[str, Any]) -> SettingRow:
    texts = (f"{name.replace('_', ' ')} {_text(name, value)}" for name, value in values.items())
    return SettingRow(title, tuple(texts))


def _text(name: str, value: Any) -> str:
    if value is None:
        return MEANING_OF_NONE.get(name, "automatic")
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
