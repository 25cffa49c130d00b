"""Looking at a model: what passes through it (`trace`), the contract tried on it (`verify`), its loss on texts."""

from anyformer.inspection.contract import Check, verify
from anyformer.inspection.evaluation import Evaluation, evaluate
from anyformer.inspection.tracing import Trace, sites, trace

__all__ = ["Check", "Evaluation", "Trace", "evaluate", "sites", "trace", "verify"]
