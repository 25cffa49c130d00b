"""Texts as vectors: read, pooled and normalised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anyformer import spec
from anyformer.errors import InputError
from anyformer.generation import left_padded
from anyformer.generation.fitting import must_read
from anyformer.model.heads import pool
from anyformer.model.inputs import tokens_of
from anyformer.model.prompting import right_padded, tokenizer_of
from anyformer.model.stack import Stack
from anyformer.parts.context import Context

if TYPE_CHECKING:
    from anyformer.model.transformer import Transformer


@torch.no_grad()
def embed(model: Transformer, texts: Sequence[str], batch_size: int) -> Tensor:
    """A vector for each text, [N, D] float32; texts of about a length are read together."""
    if isinstance(texts, str):
        raise InputError("embed takes a list of texts; put the text in one: [text]")
    tokenizer, stack = tokenizer_of(model), _reader(model)
    longest = getattr(stack.embeddings.positions, "size", None)
    rows = [row[:longest] for row in tokenizer.encode_batch(texts)]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    found: list[Tensor | None] = [None] * len(rows)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        padded = left_padded([rows[index] or [0] for index in batch], tokenizer.pad or 0, model.device)
        ids, valid = right_padded(*padded)
        for index, vector in zip(batch, embed_ids(model, ids, valid)):
            found[index] = vector
    if not found:
        return torch.zeros(0, stack.embeddings.tokens.embedding_dim, device=model.device)
    return torch.stack([vector for vector in found if vector is not None])


@torch.no_grad()
def embed_ids(model: Transformer, ids: Tensor, valid: Tensor | None) -> Tensor:
    """A vector for each row of ids [B, T], of which `valid` [B, T] are no padding: [B, D]."""
    head = model.spec.head if isinstance(model.spec.head, spec.EmbeddingHead) else spec.EmbeddingHead(normalize=False)
    if model.encoder is None and head.pooling == "first":
        raise InputError("a decoder's first token has seen nothing but itself; pool the mean or the last")
    must_read(model.spec.encoder or model.spec.output, ids.device, *ids.shape)
    tokens = tokens_of(ids, valid, None, None, None)
    pooled = pool(_reader(model)(ids, Context(tokens)).float(), tokens, head.pooling)
    return nn.functional.normalize(pooled, dim=-1) if head.normalize else pooled


def _reader(model: Transformer) -> Stack:
    """Where texts are read: the encoder where there is one."""
    return model.encoder if model.encoder is not None else model.output_stack
