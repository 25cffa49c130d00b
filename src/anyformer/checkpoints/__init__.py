"""Checkpoints: directories and files to spec, tensors and all that belongs to them, and back. Builds no module."""

from anyformer.checkpoints.checkpoint import Carried, Checkpoint
from anyformer.checkpoints.directory import expressible, write
from anyformer.checkpoints.gguf_writing import write_gguf
from anyformer.checkpoints.opening import fetch, open

__all__ = ["Carried", "Checkpoint", "expressible", "fetch", "open", "write", "write_gguf"]
