"""Variants of one recipe side by side: which is better, by how much, and is it more than noise."""

from anyformer.comparing.comparison import compare
from anyformer.comparing.results import Comparison, Row, Run
from anyformer.comparing.statistics import Difference, Sample, difference, sample

__all__ = ["Comparison", "Difference", "Row", "Run", "Sample", "compare", "difference", "sample"]
