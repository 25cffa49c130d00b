"""How fast a model runs here: beside what the machine could do, and beside the same weights in other projects."""

from anyformer.inspection.bench.comparing import Comparison, Spread, compare, interleave, spread
from anyformer.inspection.bench.report import OURS, Phase, Report, bench
from anyformer.inspection.bench.sides import RIVALS, Here, Opened, Side, Work, beside, do, there, warm

__all__ = [
    "OURS",
    "RIVALS",
    "Comparison",
    "Here",
    "Opened",
    "Phase",
    "Report",
    "Side",
    "Spread",
    "Work",
    "bench",
    "beside",
    "compare",
    "do",
    "interleave",
    "spread",
    "there",
    "warm",
]
