"""`pipeline data`: check a data set without training."""

from dataclasses import replace

from pipeline.context import RunContext
from pipeline.data.audit import Audit, audit_source
from pipeline.data.sources import read_source
from pipeline.network_choice import choose_network
from stages.settings import EmbedSettings, ReadSettings


def audit_data(source: str, read: ReadSettings, *, context: RunContext) -> Audit:
    """Check a data set without training.

    Args:
        source: Source of the images.
        read: How to read and split the source.
        context: Cache, download and progress options.

    Returns:
        Classes, splits, unreadable files, duplicates, leaks, label conflicts, batches, and
        the network that ``--network auto`` would choose.

    Raises:
        DataError: If the source cannot be read at all.

    Example:
        >>> audit_data("digits", ReadSettings(), context=RunContext(quiet=True)).images
        1797
    """
    images = read_source(
        source,
        read,
        cache=context.cache,
        root=context.root,
        download=context.download,
        progress=context.show,
    )
    audit = audit_source(images, near=True, progress=context.show)
    _, settings, reason = choose_network(
        source, read, EmbedSettings(), replace(context, quiet=True)
    )
    return replace(audit, network=settings.network, network_choice=reason)
