"""What a forward pass is given: checked, and what masks may know of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anyformer.errors import InputError
from anyformer.parts.cache import Cache
from anyformer.parts.masks import Lengths, Tokens


def check_ids(tokens: Tensor) -> None:
    """Raises `InputError` for what are no ids [B, T]."""
    if tokens.dim() != 2:
        raise InputError(f"tokens must be [B, T], not {list(tokens.shape)}; add the batch dimension")
    if tokens.dtype not in (torch.int64, torch.int32):
        raise InputError(f"tokens must be integer ids, not {tokens.dtype}; make them int64: .long()")
    if not tokens.shape[1]:
        raise InputError("there are no tokens to read; give at least one")


def check_fits(name: str, given: Tensor | None, *shapes: Sequence[int]) -> None:
    """Raises `InputError` for what is given under a name, if it has none of these shapes, or not the name's type."""
    if given is not None and list(given.shape) not in [list(shape) for shape in shapes]:
        raise InputError(f"{name} must be {list(shapes[0])} to fit the tokens, not {list(given.shape)}")
    if given is not None and (given.dtype == torch.bool) != name.endswith("valid"):
        raise InputError(f"{name} must be {'bool' if name.endswith('valid') else 'integers'}, not {given.dtype}")


def check_cached(
    cache: Cache,
    tokens: Tensor,
    valid: Tensor | None,
    documents: Lengths | Tensor | None,
    positions: Tensor | None,
    segments: Tensor | None,
) -> None:
    """Raises `InputError` for what a pass with a cache cannot be given."""
    check_fits("valid", valid, tokens.shape)
    if documents is not None or positions is not None:
        raise InputError("a cache counts positions itself; leave documents and positions out, or the cache")
    if len(tokens) != cache.batch_size:
        raise InputError(f"the cache is for {cache.batch_size} rows, not {len(tokens)}; make a new one")
    if cache.stretches and segments is not None:
        raise InputError("a cache whose rotary angles follow the length keeps no segments; leave them out")


def prefix_of(
    prefix: Tensor | Lengths | None, tokens: Tensor, documents: Lengths | Tensor | None
) -> Tensor | Lengths | None:
    """A prefix as `tokens_of` takes it: [B, 1], or a number for each document."""
    if prefix is None:
        return None
    if isinstance(prefix, Tensor):
        check_fits("prefix", prefix, tokens.shape[:1])
        return prefix[:, None]
    if documents is None or isinstance(documents, Tensor) or [*map(len, prefix)] != [*map(len, documents)]:
        raise InputError("a prefix given as numbers needs documents= given as lengths, one number for each of them")
    return prefix


def tokens_of(
    ids: Tensor,
    valid: Tensor | None,
    documents: Lengths | Tensor | None,
    positions: Tensor | None,
    prefix: Tensor | Lengths | None,
) -> Tokens:
    """What masks may know of ids [B, T]; `prefix` [B, 1], or of each document given by its length."""
    T, device = ids.shape[1], ids.device
    check_fits("valid", valid, ids.shape)
    check_fits("positions", positions, ids.shape, (1, T))
    if documents is not None and not isinstance(documents, Tensor):
        return _packed(ids, valid, documents, positions, prefix)
    assert prefix is None or isinstance(prefix, Tensor)
    if documents is not None:
        check_fits("documents", documents, ids.shape)
        positions = _restarting(documents) if positions is None else positions
    if positions is not None:
        return Tokens(T, device=device, position=positions, document=documents, valid=valid, prefix=prefix)
    if valid is not None:
        counted = (valid.long().cumsum(1) - 1).clamp(min=0)
        return Tokens(T, device=device, position=counted, high=T - 1, valid=valid, prefix=prefix)
    return Tokens(T, device=device, start=0, prefix=prefix)


def _packed(
    ids: Tensor,
    valid: Tensor | None,
    documents: Lengths,
    positions: Tensor | None,
    prefix: Tensor | Lengths | None,
) -> Tokens:
    """As `tokens_of`, of documents given by their lengths; empty ones count for nothing."""
    T, device = ids.shape[1], ids.device
    if len(documents) != len(ids) or any(sum(row) != T or min(row) < 0 for row in documents):
        raise InputError(f"documents must give lengths that sum to {T} for each of the {len(ids)} rows")
    lengths = tuple(tuple(length for length in row if length) for row in documents)
    prefixes = None
    if prefix is not None and not isinstance(prefix, Tensor):
        prefixes = tuple(tuple(p for p, n in zip(*row) if n) for row in zip(prefix, documents))
    packed = Tokens.packed(lengths, device, prefixes)
    if valid is None and positions is None and (prefix is None or prefixes is not None):
        return packed
    where = packed.position if positions is None else positions
    seen = prefix if isinstance(prefix, Tensor) else packed.prefix
    return Tokens(T, device=device, position=where, document=packed.document, valid=valid, prefix=seen)


def _restarting(documents: Tensor) -> Tensor:
    """Positions [B, T] that start again wherever the document [B, T] changes."""
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    changed = torch.ones_like(documents, dtype=torch.bool)
    changed[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return index - torch.where(changed, index, 0).cummax(1).values
