"""What a model is and costs, computed from its spec alone: shapes, parameters, FLOPs, bytes, a drawing."""

from anyformer.planning.counts import Parameters, forward_flops, kv_bytes, parameters, weight_bytes
from anyformer.planning.describe import describe, summary
from anyformer.planning.shapes import count, shapes

__all__ = [
    "Parameters",
    "count",
    "describe",
    "forward_flops",
    "kv_bytes",
    "parameters",
    "shapes",
    "summary",
    "weight_bytes",
]
