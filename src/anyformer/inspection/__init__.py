"""Looking at a model: the contract tried on it (`verify`), and its loss on texts."""

from anyformer.inspection.contract import Check, verify

__all__ = ["Check", "verify"]
