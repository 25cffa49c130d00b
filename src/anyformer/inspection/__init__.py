"""Looking at a model: the contract tried on it (`verify`), and its loss on texts."""

from anyformer.inspection.contract import Check, verify
from anyformer.inspection.evaluation import Evaluation, evaluate

__all__ = ["Check", "Evaluation", "evaluate", "verify"]
