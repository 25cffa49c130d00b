"""What a Transformer *is*, as plain data: frozen, strict, exact through JSON. Imports no torch."""

from anyformer.spec.mixers import Attention, FeedForward, Mixer, MixtureOfExperts, Norm, register_mixer
from anyformer.spec.positions import Alibi, Learned, Llama3Scaling, RelativeBuckets, Rotary, Sinusoidal
from anyformer.spec.transformer import (
    Block,
    Branch,
    EmbeddingHead,
    Embeddings,
    Head,
    Initialization,
    LanguageModelHead,
    MaskedLanguageModelHead,
    SequenceClassificationHead,
    Stack,
    TokenClassificationHead,
    Transformer,
)

__all__ = [
    "Alibi",
    "Attention",
    "Block",
    "Branch",
    "EmbeddingHead",
    "Embeddings",
    "FeedForward",
    "Head",
    "Initialization",
    "LanguageModelHead",
    "Learned",
    "Llama3Scaling",
    "MaskedLanguageModelHead",
    "Mixer",
    "MixtureOfExperts",
    "Norm",
    "RelativeBuckets",
    "Rotary",
    "SequenceClassificationHead",
    "Sinusoidal",
    "Stack",
    "TokenClassificationHead",
    "Transformer",
    "register_mixer",
]
