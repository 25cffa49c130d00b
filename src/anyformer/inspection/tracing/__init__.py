"""Looking at what passes through a model while it runs, and changing it (the sites: `sites.py`)."""

from anyformer.inspection.tracing.sites import sites
from anyformer.inspection.tracing.traces import Trace, trace

__all__ = ["Trace", "sites", "trace"]
