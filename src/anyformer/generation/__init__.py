"""Sampling and decoding loops; they know a model only by the `Decoder` protocol."""

from anyformer.generation.decoding import Decoder, left_padded, steps
from anyformer.generation.settings import Settings

__all__ = ["Decoder", "Settings", "left_padded", "steps"]
