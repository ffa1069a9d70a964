"""Decode the images of a small source in another process, while this one imports torch.

The other process writes the store of decoded images, which the command then opens. It changes
nothing else: if it fails, the command decodes the images itself and reports what is wrong.
"""

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.settings import AUTO, EmbedSettings, ReadSettings

# The other process finds the modules where this one does, whatever the current folder contains.
# A signal makes it clean up, which no second signal may interrupt.
CODE = """
import json, signal, sys
def stop(*_):
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    raise KeyboardInterrupt
for name in (signal.SIGINT, signal.SIGTERM):
    signal.signal(name, stop)
sys.path = json.loads(sys.argv[1])
from pipeline.data.decode_ahead import decode_small_source
decode_small_source(**json.loads(sys.argv[2]))
"""

PATIENCE = 2.0  # longest wait after the imports, in seconds; the other process may list many files
CLEAN_UP = 1.0  # longest wait for it to clean up, in seconds


@contextmanager
def decoding_ahead(
    source: str, read: ReadSettings, settings: EmbedSettings, cache: Path | None
) -> Generator[None]:
    """Decode the images of a source while the body of the ``with`` statement imports torch.

    Nothing is decoded if torch is imported already: the program would only wait.

    Args:
        source: Source of images. Only a folder or manifest is decoded.
        read: Settings of the decoder.
        settings: Settings of stage one. A library's network may change the size of the images, so
            nothing is decoded for it.
        cache: Folder of decoded images; ``None`` for the user's cache.

    Example:
        >>> with decoding_ahead("photos/", ReadSettings(), EmbedSettings(), None):
        ...     import torch
    """
    # torchrun's processes start no further ones: the first one decodes while the others wait.
    is_useless = "torch" in sys.modules or "RANK" in os.environ or not sys.executable
    is_named = source == "digits" or source.startswith("torchvision:")  # even if there is a folder
    if is_useless or settings.from_library or is_named or not os.path.exists(source):
        yield
        return
    request = {
        "source": source,
        "read": asdict(read),
        "network": settings.network,
        "cache": str(cache) if cache else None,
    }
    path = json.dumps([str(folder) for folder in sys.path])
    command = [sys.executable, "-I", "-c", CODE, path, json.dumps(request)]
    silent = subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=silent, stdout=silent, stderr=silent)
    except OSError:  # no further process can be started
        yield
        return
    with process:
        try:
            yield
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(CLEAN_UP)
            process.kill()


def decode_small_source(source: str, read: dict[str, Any], network: str, cache: str | None) -> None:
    """Decode the images of a source into the cache, unless worker processes would be faster.

    Args:
        source: A folder or a CSV file.
        read: Fields of the decoder's settings.
        network: Network of the settings. For ``auto``, only images of at most 64 pixels are
            decoded: larger ones may be needed at another size.
        cache: Folder of decoded images; ``None`` for the user's cache.
    """
    # Imported here, because the command imports this module before anything is decoded.
    from pipeline.data.decode import MAX_OWN_SIZE
    from pipeline.data.decoding_pool import are_worth_a_pool
    from pipeline.data.image_facts import facts_of_files
    from pipeline.data.source_files import decode_files, list_files
    from pipeline.files import default_cache
    from pipeline.progress import no_progress

    files, _ = list_files(source)
    if are_worth_a_pool([(file.path, file.state) for file in files]):
        return
    if network == AUTO and facts_of_files([file.path for file in files]).side > MAX_OWN_SIZE:
        return
    folder = Path(cache) if cache else default_cache()
    decode_files(files, ReadSettings(**read), folder, no_progress)
