"""`pipeline data`: audit a source without training."""

from pipeline.context import RunContext
from pipeline.data.audit import Audit, audit_source
from pipeline.data.sources import read_source
from stages.settings import ReadSettings


def audit_data(source: str, read: ReadSettings, *, context: RunContext) -> Audit:
    """Audit a source; trains nothing."""
    found = read_source(
        source,
        read,
        cache=context.cache,
        root=context.root,
        download=context.download,
        progress=context.show,
    )
    return audit_source(found, near=True, progress=context.show)
