"""From a recipe and some text to a model: `train`, and what it is made of."""

from anyformer.training.recipe import Recipe, read_recipe
from anyformer.training.run import Result, train
from anyformer.training.state import read_metrics
from anyformer.training.watching.report import write_report

__all__ = ["Recipe", "Result", "read_metrics", "read_recipe", "train", "write_report"]
