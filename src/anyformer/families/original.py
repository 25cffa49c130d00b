"""The Transformer of "Attention Is All You Need", base and big (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762,
table 3): post-norm, waves for positions, ReLU, and one table for source, target and logits, scaled by √D where it is
read (section 3.4).

Its files are Marian's, so that what is trained here loads wherever Marian models do. The paper writes sines and cosines
alternately; here all sines stand before all cosines, the order of Marian and of the authors' own code (tensor2tensor,
`get_timing_signal_1d`), with the paper's wavelengths: the same up to the order of the channels. Projections have
biases, as in torch's `nn.Transformer` and in Marian; logits have none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from anyformer.families.bart import size
from anyformer.families.marian import family as marian


def _size(dim: int, layers: int, heads: int, hidden: int, **more: Any) -> dict[str, Any]:
    fixed = {"activation_function": "relu", "scale_embedding": True, "final_logits_bias": False}
    # What the authors' code draws embeddings and square matrices with.
    return size(dim, layers, heads, hidden, init_std=dim**-0.5, **fixed, **more)


family = replace(
    marian,
    name="original",
    title="Transformer (2017)",
    paper="https://arxiv.org/abs/1706.03762",
    format=marian,
    architectures={"MarianMTModel": "language_model"},
    presets={
        "tiny": _size(64, 2, 4, 256, vocab_size=1024, max_position_embeddings=128),
        "small": _size(256, 3, 4, 1024, vocab_size=8192),
        "base": _size(512, 6, 8, 2048, vocab_size=37000),
        "big": _size(1024, 6, 16, 4096, vocab_size=37000, dropout=0.3),
    },
)
