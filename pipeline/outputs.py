"""Check and lock all outputs of a command before its work begins."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.files import check_output_file, check_output_folder, remove_partial_files
from pipeline.processes import main_process_only
from stages.errors import PipelineError

LOCK_SECONDS = 0.5  # a command that has just ended may still be removing its lock


@contextmanager
def reserve_outputs(
    files: Sequence[Path], *, folders: Sequence[Path] = (), inputs: Sequence[Path] = ()
) -> Iterator[None]:
    """Check that all outputs can be written, and lock them until the end of the block.

    A second command with one of these outputs ends with an error, in this or another process. The
    lock is a hidden file next to the output, or in the output folder. It is removed at the end. The
    operating system releases the lock of a killed process, so a lock file that is left has no
    effect. Temporary files that a killed process has left are removed. Commands that call other
    commands reserve the same outputs again; that is allowed.

    Folders are created. Those that are still empty at the end are removed, so that a failed command
    changes nothing.

    Args:
        files: Files that the command will write.
        folders: Folders that the command will write to.
        inputs: Files that the command reads, and that it must not replace.

    Raises:
        PipelineError: If an output cannot be written, is used twice, is an input, or is reserved.
    """
    with ExitStack() as stack:
        main_process_only(lambda: _reserve(stack, files, folders, inputs))
        yield


def refuse_existing(path: Path, force: bool, *, alternative: str = "another --out") -> None:
    """Raise an error on all ranks if an output exists and may not be replaced.

    Args:
        path: File that the command will write. It is reserved, so no other run creates it.
        force: Allow it to be replaced.
        alternative: What to use instead, for the message.

    Raises:
        PipelineError: If the file exists and ``force`` is False.
    """

    def check() -> None:
        if path.exists() and not force:
            raise PipelineError(f"{path}: exists; use {alternative}, or --force to replace it")

    main_process_only(check)


def _reserve(
    stack: ExitStack, files: Sequence[Path], folders: Sequence[Path], inputs: Sequence[Path]
) -> None:
    for file in files:
        check_output_file(file)
    for folder in folders:
        check_output_folder(folder)
    taken = {path.resolve() for path in inputs}
    locks = {folder.resolve() / ".report.lock": folder for folder in folders}
    for file in files:
        target = file.resolve()  # a link and its target are the same output
        if target in taken:
            raise PipelineError(
                f"{file}: is also an input or another output of this command; use another path"
            )
        taken.add(target)
        locks[target.with_name(f".{target.name}.lock")] = file
    for lock, output in sorted(locks.items()):
        stack.enter_context(_created_folder(lock.parent, output))
        stack.enter_context(_locked(lock, output))
    for file in files:
        remove_partial_files(file)


@contextmanager
def _created_folder(folder: Path, output: Path) -> Iterator[None]:
    """Create a folder with its parents, and remove at the end those of them that are empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PipelineError(
            f"{output}: cannot be written to ({error.strerror}); use another path"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # not empty
            for path in missing:
                path.rmdir()


@contextmanager
def _locked(path: Path, output: Path) -> Iterator[None]:
    lock = FileLock(path, is_singleton=True)  # one object per path, which counts its holders
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise PipelineError(
            f"{output}: another run is writing to it; wait for its end or use another path"
        ) from None
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            # Removed while it is locked: who opened it before sees that the file is gone.
            path.unlink(missing_ok=True)
        lock.release()
