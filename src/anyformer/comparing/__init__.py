"""Variants of one recipe side by side: which is better, by how much, and is it more than noise."""

from anyformer.comparing.comparison import compare
from anyformer.comparing.results import Comparison, Row, Run, Sweep, SweptRun
from anyformer.comparing.statistics import Difference, Sample, difference, sample
from anyformer.comparing.sweeping import sweep

__all__ = [
    "Comparison",
    "Difference",
    "Row",
    "Run",
    "Sample",
    "Sweep",
    "SweptRun",
    "compare",
    "difference",
    "sample",
    "sweep",
]
