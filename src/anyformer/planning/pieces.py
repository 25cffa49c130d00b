"""In how large pieces a prompt is read, so that its length costs time, and no memory beyond the cache.

A token on its way through the widest layer takes the stream, what a norm makes of it, and the most that a mixer makes
of that. Besides, each pair of a piece's token and a key that it may look at takes its place in a mask, which only a
prompt that is read at once and alone goes without; per head as well, where something is added to the scores, or no
kernel computes them in tiles.
"""

from __future__ import annotations

from anyformer.spec import Alibi, Attention, Mixer, RelativeBuckets, Stack, Transformer

#: Bytes that a piece may take; the most and the fewest tokens of one. With fewer, weights are read too often.
PIECE_BYTES, MOST, FEWEST = 1 << 28, 2048, 64
#: Bytes of a pair: the mask, and what kernels make of it; of each head where a bias is added, or scores are held.
MASK, BIAS, SCORES = 10, 8, 16
#: Bytes of a number at most.
WIDE = 4
#: So many tensors of logits are held while a token is chosen: the step's before it, its own, what the settings make of
#: them, and their probabilities. Of each candidate of a search, bytes of what is sorted.
LOGITS, SORTED = 4, 24


def piece(spec: Transformer, batch: int, before: int) -> int:
    """How many tokens of each of `batch` prompts to read at a time, when the cache holds `before` of them."""
    tokens = MOST
    while tokens > FEWEST and passing(spec.output, batch, before + tokens, tokens) > PIECE_BYTES:
        tokens //= 2
    return tokens


def passing(stack: Stack, batch: int, keys: int, tokens: int, width: int = WIDE) -> int:
    """Bytes that the last `tokens` of each of `batch` rows of `keys` take on their way through the widest layer of a
    stack, `width` a number."""
    mixers = [branch.mixer for block in stack.pattern for branch in block.branches]
    numbers = 2 * stack.dim + max(_made(mixer, stack.dim) for mixer in mixers)
    mask = MASK if batch > 1 or tokens < keys else 0
    return batch * tokens * (width * numbers + _looking(stack, keys, tokens, mask))


def choosing(spec: Transformer, keys: int, candidates: int = 0) -> int:
    """Bytes that the next token of one row takes, after `keys` of them: on its way through the model, and until it is
    chosen, by a search among so many `candidates` of each row."""
    V = spec.output.embeddings.vocabulary
    return passing(spec.output, 1, keys, 1) + WIDE * LOGITS * V + SORTED * min(candidates, V)


def _made(mixer: Mixer, dim: int) -> int:
    """Numbers that the matrices of a mixer make of a token."""
    active = mixer.active(dim)
    return sum(active[name] // shape[-1] for name, shape in mixer.shapes(dim).items() if len(shape) > 1)


def _looking(stack: Stack, keys: int, tokens: int, mask: int) -> int:
    """Bytes of what a token looks at, in the layer where that is most; in a window, it and the piece at most."""
    most = 0
    for mixer in stack.attentions():
        left = mixer.window[0] if mixer.window is not None else None
        seen = keys if left is None else min(keys, left + tokens)
        most = max(most, seen * (mask + _added(mixer, shares=stack.relative is not None)))
    return most


def _added(attention: Attention, shares: bool) -> int:
    """Bytes of a pair besides its mask, over all heads. `shares`: the stack has a table of relative positions."""
    if attention.soft_cap is not None or attention.sinks:
        return SCORES * attention.heads
    return BIAS * attention.heads if shares or isinstance(attention.position, Alibi | RelativeBuckets) else 0
