"""What a model is and costs, computed from its spec alone: shapes, parameters, FLOPs, bytes, a drawing."""

from anyformer.planning.counts import Parameters, forward_flops, kv_bytes, parameters, weight_bytes
from anyformer.planning.describe import describe, summary
from anyformer.planning.memory import Mesh, Step, peak, training_memory
from anyformer.planning.shapes import count, shapes

__all__ = [
    "Mesh",
    "Parameters",
    "Step",
    "count",
    "describe",
    "forward_flops",
    "kv_bytes",
    "parameters",
    "peak",
    "shapes",
    "summary",
    "training_memory",
    "weight_bytes",
]
