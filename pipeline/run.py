"""What each command does, callable without the command line: load, call the stage, save."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from pipeline import checkpoint, runtime, weights
from pipeline.audit import Audit, audit_source, warnings_of
from pipeline.data import SUFFIXES, Dataset, default_cache, load_dataset, read_source
from pipeline.features import see_once
from pipeline.predict import find_images, predict_images, write_predictions
from pipeline.report import Comparison, write_report
from pipeline.watch import Watch, state_path
from stages.classify import DECAYS, choose_neighbours, embed_frozen, train_classifier
from stages.embed import new_network, plan_training, train_embedding
from stages.errors import CheckpointError, DataError, PipelineError, SettingsError
from stages.metrics import usual_neighbours
from stages.network import EmbeddingNet, Pretrained, embed_split, to_device, with_new_layers
from stages.processes import place
from stages.records import EmbeddingCheckpoint, Embeddings, Split, TrainingState
from stages.score import Baseline, raw_pixels, score_split
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings


@dataclass(frozen=True)
class Machine:
    """Where and how loudly to run: `--device --precision --threads --quiet --cache --root --download`."""

    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    quiet: bool = False
    cache: Path | None = None
    root: Path | None = None
    download: bool = False

    def start(self) -> torch.device:
        return runtime.start(self.device, self.threads)

    def say(self, message: str) -> None:
        """A line for the person who waits, above any progress bar."""
        if not self.quiet and runtime.leads():
            tqdm.write(message, file=sys.stderr)

    def bar(self, caption: str, total: int, items: Iterable[Any] | None = None, *, initial: int = 0, unit: str = "it") -> Any:
        """A progress bar, on a terminal only."""
        hidden = self.quiet or not sys.stderr.isatty() or not runtime.leads()
        return tqdm(
            items, total=total, desc=caption, file=sys.stderr, disable=hidden, leave=False, initial=initial, unit=unit, unit_scale=True
        )

    def show(self, caption: str, total: int, items: Iterable[Any]) -> Iterable[Any]:
        """An iterable under a progress bar."""
        bar: Iterable[Any] = self.bar(caption, total, items)
        return bar

    def load(self, source: str | Dataset, read: ReadSettings) -> Dataset:
        """Read a source; one that has been read already comes back as it is."""
        if isinstance(source, Dataset):
            return source
        data = runtime.leader_first(
            lambda: load_dataset(source, read, cache=self.cache, root=self.root, download=self.download, progress=self.show)
        )
        for note in data.notes:
            self.say(f"note: {note}")
        return data


def data(source: str, read: ReadSettings, *, machine: Machine) -> Audit:
    """Audit a source; trains nothing."""
    found = read_source(source, read, cache=machine.cache, root=machine.root, download=machine.download, progress=machine.show)
    return audit_source(found, near=True, progress=machine.show)


def embed(
    source: str | Dataset,
    read: ReadSettings,
    settings: EmbedSettings,
    *,
    out: Path,
    machine: Machine,
    force: bool = False,
    resume: bool = False,
    tensorboard: Path | None = None,
) -> Path:
    """Stage one: train the embedding on the source's training part and save it at `out`; its epochs and state go beside it.

    resume: go on from the saved state; start if there is none; do nothing if the run is finished.
    Raises CheckpointError if `out` holds a run of another source or other settings, or its state an unfinished run that is not
    to be resumed, and `force` is off; KeyboardInterrupt, the state being saved, if a signal has asked to stop.
    """
    device = machine.start()
    pretrained = weights.load_weights(settings)
    data = machine.load(source, weights.fit(read, settings))
    runtime.same_everywhere(data.source, data.fingerprint)
    identity = _embedding_identity(data, settings, pretrained)
    _refuse_another(out, "embedding", identity, force)
    for warning in warnings_of(audit_source(data.origin, dataset=data)):
        machine.say(f"warning: {warning}; `pipeline data` lists them")
    plan, epochs = plan_training(data.train.labels, settings)
    checkpoint.check_writable(out.parent)
    network = None
    if pretrained or settings.trunk == "frozen" or settings.from_library:
        network = to_device(new_network(data.train, settings, pretrained), device)
    precision = runtime.choose_precision(machine.precision, device, network)
    processes = place()[1]
    resumable = identity | {"precision": str(precision), "processes": processes}
    state: TrainingState | None = None
    speeds: list[float | None] = []
    if state_path(out).exists():
        state, speeds = _saved_state(state_path(out), resumable, resume=resume, force=force)
    elif resume and out.exists() and not force:  # of the same source and settings, or it would have been refused
        machine.say(f"{out}: finished; nothing to resume")
        return out
    counts = {name: len(part) if part else 0 for name, part in (("train", data.train), ("val", data.validation), ("test", data.test))}
    batch = plan.classes_per_batch * plan.images_per_class
    machine.say(
        f"{data.source}: {len(data.train.classes)} classes, {counts['train']} training, {counts['val']} validation and "
        f"{counts['test']} test images of {data.read.size} x {data.read.size}, {'grey' if data.read.channels == 1 else 'colour'}\n"
        f"{epochs} epochs of {plan.per_epoch} batches, {plan.classes_per_batch} classes x {plan.images_per_class} images, "
        f"on {device.type} in {str(precision).removeprefix('torch.')}" + (f", {processes} processes" if processes > 1 else "")
    )
    if data.validation is None:
        machine.say("note: there is no validation image; the last epoch is taken")
    if processes > 1 and device.type != "cuda":
        machine.say("note: BatchNorm in training sees each process's share of the batch; spanning processes takes CUDA")
    if settings.trunk == "frozen" and not pretrained:
        machine.say("warning: the trunk is frozen and its weights are random; give --weights, or --trunk tune")
    if network:
        data = _see_once(data, network, device, machine)
    if state:
        machine.say(f"going on after step {state.step} of {state.steps}")
    with (
        machine.bar("training", epochs * plan.per_epoch * batch, initial=state.step * batch if state else 0, unit=" images") as bar,
        runtime.stop_signals(machine.say) as stop,
    ):
        watch = Watch(out, resumable, epochs=epochs, bar=bar, say=machine.say, stop=stop, speeds=speeds, tensorboard=tensorboard)
        trained = train_embedding(
            data.train,
            data.validation,
            settings,
            device=device,
            precision=precision,
            network=network,
            state=state,
            on_step=watch.on_step,
            on_epoch=watch.on_epoch,
        )
    if watch.stopped:
        raise KeyboardInterrupt(f"interrupted; the same command with --resume goes on from {state_path(out)}")
    record = {
        **identity,
        "network": trained.network.config,
        "weights": pretrained and {"origin": pretrained.origin, "digest": pretrained.digest},
        "classes": data.train.classes,
        "source": data.source,
        "root": str(machine.root.resolve()) if machine.root else None,
        "counts": counts,
        "skipped": [skipped._asdict() for skipped in data.skipped],
        "epoch": trained.epoch,
        "history": [asdict(log) for log in trained.history],
        "precision": str(precision).removeprefix("torch."),
        "processes": processes,
        "versions": runtime.versions(),
    }

    def write() -> None:
        checkpoint.save_embedding(out, trained.network, record)
        watch.write_history(trained.history)

    runtime.leader_only(write)
    return out


def _saved_state(path: Path, identity: Mapping[str, Any], *, resume: bool, force: bool) -> tuple[TrainingState | None, list[float | None]]:
    """The state to go on from, None to start anew, and the speeds that it remembers."""
    if not resume and force:
        return None, []
    state, record = checkpoint.load_state(path)
    if not resume:
        if not record["finished"]:
            raise CheckpointError(
                f"{path}: an unfinished run, at step {state.step} of {state.steps}; go on with --resume, or start anew with --force"
            )
        return None, []
    if differing := _differences(identity, record):
        raise CheckpointError(f"{path}: can't be resumed: it holds {differing}; give its settings, or start anew with --force")
    return state, record["speeds"]


def classify(
    embedding: Path,
    settings: ClassifySettings,
    *,
    out: Path,
    machine: Machine,
    source: str | Dataset | None = None,
    force: bool = False,
) -> Path:
    """Stage two: train the head on the frozen embedding and save both at `out`.

    source: only if the data has moved since stage one. Raises DataError if it isn't the data of stage one.
    """
    device = machine.start()
    embedded = checkpoint.load_embedding(embedding)
    identity = _classifier_identity(embedded.record, settings)
    _refuse_another(out, "classifier", identity, force)
    train, validation, vectors = _vectors(embedding, embedded, source, device, machine)
    with machine.bar("training the head", len(DECAYS)) as bar:
        trained = train_classifier(train, validation, settings, device=device, k=vectors["k"], on_epoch=lambda _: bar.update())
    best = trained.history[trained.epoch - 1]
    accuracy = "" if best.val_accuracy is None else f", validation accuracy {best.val_accuracy:.4f}"
    machine.say(
        f"head: weight decay {best.weight_decay:g}, {trained.history[-1].epoch} passes{accuracy}; "
        f"temperature {trained.temperature:.2f}; k = {trained.k}"
    )
    if not best.converged:
        machine.say(f"warning: the head has not converged; give more than --epochs {settings.epochs}")
    record = {
        **identity,
        **{name: embedded.record[name] for name in ("network", "classes", "source", "counts", "skipped")},
        "embedding_digest": embedded.digest,
        "gallery_ids": vectors["ids"],
        "temperature": trained.temperature,
        "k": trained.k,
        "epoch": trained.epoch,
        "history": [asdict(log) for log in trained.history],
        "versions": runtime.versions(),
    }
    runtime.leader_only(lambda: checkpoint.save_classifier(out, embedded.network, trained.head, train, record))
    return out


def _vectors(
    embedding: Path, embedded: EmbeddingCheckpoint, source: str | Dataset | None, device: torch.device, machine: Machine
) -> tuple[Embeddings, Embeddings | None, dict[str, Any]]:
    """What stage two trains on: from the file beside the embedding, or embedded now and left there.

    Images are read only where they must be, or where `source` asks for them to be compared. The record holds the training
    images' `ids` and kNN's `k`, which depends on the vectors alone.
    """
    path = embedding.with_name(f"{embedding.stem}.vectors")
    fingerprint = embedded.record["fingerprint"]
    cached = checkpoint.load_vectors(path, embedding_digest=embedded.digest, fingerprint=fingerprint, classes=embedded.classes)
    if cached and source is None:
        return cached
    data = _reload(embedded.record, source, machine)
    if cached:
        return cached
    data = _see_once(data, to_device(embedded.network, device), device, machine)
    train, validation = embed_frozen(embedded.network, data.train, data.validation, device=device)
    k = _neighbours(validation.vectors if validation else None, train.vectors, data)
    record = {"embedding_digest": embedded.digest, "fingerprint": fingerprint, "ids": data.train.ids, "k": k}
    try:
        runtime.leader_only(lambda: checkpoint.save_vectors(path, train, validation, record))
    except PipelineError as error:
        machine.say(f"note: {error}; until then each run of stage two embeds again")
    return train, validation, record


def report(
    embeddings: Path | Sequence[Path],
    classifiers: Path | Sequence[Path],
    *,
    out: Path,
    machine: Machine,
    source: str | Dataset | None = None,
    figures: Path | None = None,
) -> tuple[Comparison, ...]:
    """The comparison on the test part, opened only here; written below the folder `out`, its figures below `figures`.

    Several runs: as many classifiers as embeddings, in the same order.
    Raises CheckpointError if a classifier was trained on another embedding, DataError if there is no test image.
    """
    embeddings, classifiers = ([paths] if isinstance(paths, Path) else list(paths) for paths in (embeddings, classifiers))
    if len(embeddings) != len(classifiers):
        raise SettingsError(
            f"--classifier: {len(classifiers)} given for {len(embeddings)} of --embedding; give one for each, in the same order"
        )
    names = _run_names(embeddings)
    comparisons: list[Comparison] = []
    for name, embedding, classifier in zip(names, embeddings, classifiers, strict=True):
        known = source or next((c.data for c in comparisons if _same_data(c.embedding, embedding)), None)
        comparisons.append(compare(name, embedding, classifier, machine=machine, source=known))
    runtime.leader_only(lambda: write_report(out, comparisons, figures=figures))
    return tuple(comparisons)


def compare(
    name: str, embedding: Path, classifier: Path, *, machine: Machine, source: str | Dataset | None = None, within: bool = True
) -> Comparison:
    """One run of the report, scored and not yet written; within: as in `score_split`. Raises as `report` does."""
    device = machine.start()
    embedded, classified = checkpoint.load_embedding(embedding), checkpoint.load_classifier(classifier)
    if classified.embedding_digest != embedded.digest:
        raise CheckpointError(
            f"{classifier}: trained on embedding {classified.embedding_digest[:12]}, but {embedding} holds {embedded.digest[:12]}; "
            f"run `pipeline classify --embedding {embedding} --out {classifier} --force`"
        )
    data = _reload(embedded.record, source, machine)
    network = to_device(embedded.network, device)
    data = _see_once(data, network, device, machine)
    if data.test is None:
        raise DataError(f"{data.source}: no test image; add a test/ folder, or images enough to split some off (--test, --split-seed)")
    fresh = _untrained(data, embedded, device, machine)
    test = embed_split(network, data.test, device=device)
    scored = score_split(
        test,
        classified,
        pixels=_baseline(data, raw_pixels),
        untrained=_baseline(data, lambda part: embed_split(fresh, part, device=device).vectors) if fresh else None,
        leaked=data.leaked,
        validated=data.validation is not None,
        within=within,
    )
    return Comparison(name, embedded.record, classified.record, data, test, classified.gallery, classified.gallery_ids, scored)


def _untrained(data: Dataset, embedded: EmbeddingCheckpoint, device: torch.device, machine: Machine) -> EmbeddingNet | None:
    """The network as stage one started it. None, and a note, if that takes a file of weights that is gone: a trunk that was
    trained isn't kept as it was before, a frozen one is.
    """
    record, pretrained = embedded.record, None
    settings = EmbedSettings(**record["settings"])
    if settings.trunk == "frozen":
        return with_new_layers(to_device(embedded.network, device), settings.seed).to(device)
    if record.get("weights"):
        try:
            pretrained = weights.load_weights(replace(settings, weights=record["weights"]["origin"]))
            if pretrained and pretrained.digest != record["weights"]["digest"]:
                raise CheckpointError(f"--weights {pretrained.origin}: not what stage one started from; put that back")
        except PipelineError as error:
            machine.say(f"note: the report leaves out the network before training, which its weights are needed for: {error}")
            return None
    return new_network(data.train, settings, pretrained).to(device)


def predict(images: Sequence[Path], classifier: Path, *, out: Path | None, as_json: bool, machine: Machine) -> int:
    """Label files and folders of images, from the classifier's checkpoint alone; returns how many could be read.

    out: a file, or None for stdout. Raises DataError if a path is missing or no image can be read.
    """
    device = machine.start()
    classified = checkpoint.load_classifier(classifier)
    to_device(classified.network, device)
    count, skipped = write_predictions(predict_images(find_images(images), classified, device=device), out, as_json=as_json)
    for path, reason in skipped:
        machine.say(f"skipped: {path}: {reason}")
    if not count:
        raise DataError(f"{images[0]}: none of {len(skipped)} images can be read; give images ({', '.join(sorted(SUFFIXES))})")
    return count


def _baseline(data: Dataset, vectors: Callable[[Split], Tensor]) -> Baseline:
    """Another space over the same images, with a k of its own that validation chose."""
    assert data.test is not None
    gallery = vectors(data.train)
    return Baseline(vectors(data.test), gallery, _neighbours(vectors(data.validation) if data.validation else None, gallery, data))


def _neighbours(queries: Tensor | None, gallery: Tensor, data: Dataset) -> int:
    """k of kNN from validation, or from the class sizes."""
    if queries is None or data.validation is None:
        return usual_neighbours(data.train.labels)
    return choose_neighbours(queries, data.validation.labels, gallery, data.train.labels)


def _run_names(embeddings: Sequence[Path]) -> list[str]:
    """File names without their endings; with their folder where they would be the same."""
    names = [path.stem for path in embeddings]
    if len(set(names)) < len(names):
        names = [f"{path.absolute().parent.name}/{path.stem}" for path in embeddings]
    return [name if names.count(name) == 1 else f"{name} {place}" for place, name in enumerate(names, 1)]


def _same_data(record: Mapping[str, Any], embedding: Path) -> bool:
    other = checkpoint.read_header(embedding).record
    return all(other.get(name) == record[name] for name in ("source", "fingerprint", "read"))


class _Run(NamedTuple):
    """One of several runs: its name, the settings of both stages, its checkpoints."""

    name: str
    first: EmbedSettings
    second: ClassifySettings
    embedding: Path
    classifier: Path

    def with_seed(self, seed: int) -> "_Run":
        paths = (path.with_name(f"{path.stem}-seed-{seed}{path.suffix}") for path in (self.embedding, self.classifier))
        return _Run(f"seed-{seed}", replace(self.first, seed=seed), replace(self.second, seed=seed), *paths)


def run(
    source: str,
    read: ReadSettings,
    embed_settings: EmbedSettings,
    classify_settings: ClassifySettings,
    *,
    embedding: Path,
    classifier: Path,
    out: Path,
    machine: Machine,
    force: bool = False,
    resume: bool = False,
    seeds: Sequence[int] = (),
    figures: Path | None = None,
) -> tuple[Comparison, ...]:
    """The three stages in a row, the images read once; all checkpoints are checked before anything is trained.

    resume: of stage one, see `embed`. seeds: run it once a seed, on the same split; each run has its own checkpoints,
    `-seed-N` in their names.
    """
    data = machine.load(source, weights.fit(read, embed_settings))
    pretrained = weights.load_weights(embed_settings)
    runs = [_Run(embedding.stem, embed_settings, classify_settings, embedding, classifier)]
    if seeds:
        runs = [runs[0].with_seed(seed) for seed in seeds]
    for one in runs:
        identity = _embedding_identity(data, one.first, pretrained)
        _refuse_another(one.embedding, "embedding", identity, force)
        _refuse_another(one.classifier, "classifier", _classifier_identity(identity, one.second), force)
    comparisons = []
    for one in runs:
        embed(data, read, one.first, out=one.embedding, machine=machine, force=force, resume=resume)
        classify(one.embedding, one.second, out=one.classifier, machine=machine, source=data, force=force)
        comparisons.append(compare(one.name, one.embedding, one.classifier, machine=machine, source=data))
    runtime.leader_only(lambda: write_report(out, comparisons, figures=figures, pooled=len(seeds) > 0))
    return tuple(comparisons)


def _embedding_identity(data: Dataset, settings: EmbedSettings, pretrained: Pretrained | None) -> dict[str, Any]:
    """What makes a stage one run the same run: its images, how they were read and split, its settings.

    A file of weights counts by what it holds, wherever it lies.
    """
    if pretrained and settings.weights != "default":
        settings = replace(settings, weights=pretrained.digest[:12])
    return {"fingerprint": data.fingerprint, "read": asdict(data.read), "settings": asdict(settings)}


def _see_once(data: Dataset, network: EmbeddingNet, device: torch.device, machine: Machine) -> Dataset:
    return runtime.leader_first(lambda: see_once(data, network, cache=machine.cache or default_cache(), device=device, show=machine.show))


def _classifier_identity(embedding: Mapping[str, Any], settings: ClassifySettings) -> dict[str, Any]:
    """The same of stage two, from the embedding's record."""
    return {
        "fingerprint": embedding["fingerprint"],
        "read": embedding["read"],
        "settings": asdict(settings),
        "embedding_settings": embedding["settings"],
    }


def _reload(record: Mapping[str, Any], source: str | Dataset | None, machine: Machine) -> Dataset:
    """The data that a checkpoint was trained on, split the same way."""
    if machine.root is None and record.get("root"):
        machine = replace(machine, root=Path(record["root"]))
    data = machine.load(source or record["source"], ReadSettings(**record["read"]))
    if data.fingerprint != record["fingerprint"]:
        raise DataError(
            f"{data.source}: not the images that the checkpoint was trained on (fingerprint {data.fingerprint[:12]}, trained on "
            f"{record['fingerprint'][:12]}); give these with --data, or train again with `pipeline embed`"
        )
    return data


def _refuse_another(path: Path, kind: str, identity: Mapping[str, Any], force: bool) -> None:
    """Never replace another run's checkpoint unasked."""
    if force or not path.exists():
        return
    header = checkpoint.read_header(path)
    if header.kind != kind:
        raise CheckpointError(f"{path}: holds a checkpoint of kind {header.kind}; give another --out, or --force to replace it")
    if differing := _differences(identity, header.record):
        raise CheckpointError(f"{path}: holds {differing}; give another --out, or --force to replace it")


def _differences(wanted: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """In words, what another run a record is of; empty if it is of the same."""
    for name, value in json.loads(json.dumps(wanted)).items():
        found = record.get(name)
        if found == value:
            continue
        if name == "fingerprint":
            return f"a run on other images, {record.get('source', 'or of another split')}"
        old, new = (one if isinstance(one, dict) else {name: one} for one in (found, value))
        stage = "its embedding's " if name == "embedding_settings" else ""
        return f"a run with {stage}" + ", ".join(
            f"{key.replace('_', '-')} {old.get(key)}, not {new[key]}" for key in new if old.get(key) != new[key]
        )
    return ""
