"""What a forward pass keeps for the backward one, counted by shape, as the parts of the house keep it.

    n tokens, D wide, in a layer of attention and gated feed-forward, norms before (bytes; w: of a product's number)

    stream      4·n·D   a branch's norm keeps its input
    norm          n·D·w   the product keeps its own: the normalised stream
    attention   n·(2·H + 2·K)·C·w    queries, keys, values, and what comes of them; 4·n·H of softmax's sums
    feed-forward    3·n·F·w          gate, up, their product; on accelerators the gate's activation as well

Norms, the stream and losses are float32 whatever products are.
"""

from __future__ import annotations

from dataclasses import dataclass

from anyformer.spec import (
    Alibi,
    Attention,
    Block,
    Branch,
    FeedForward,
    Mixer,
    Norm,
    RelativeBuckets,
    RoutedExperts,
    Stack,
)

#: Activations whose backward pass needs what they gave; the others need what they were given, so both are kept.
BY_OUTPUT = frozenset({"relu", "sigmoid", "tanh"})
WIDE = 4
#: Of `parts/kernels/products.py`: weights that it keeps at most, in elements, and queries of a causal block.
LARGEST_KEPT, BLOCK = 1 << 24, 128


@dataclass(frozen=True)
class Pass:
    """A forward pass over `rows` rows of `tokens` tokens (`source` tokens each for cross-attention).

    - `width`: bytes of a product's number.
    - `tensor`: over how many ranks heads and feed-forward widths are divided.
    - `packed`: rows hold documents of different lengths.
    - `fused`: kernels of accelerators, which keep less of an RMS norm and of dropout.
    - `relative`: layers share a table of relative positions.
    """

    rows: int
    tokens: int
    source: int
    width: int = WIDE
    tensor: int = 1
    packed: bool = True
    fused: bool = False
    relative: bool = False

    @property
    def count(self) -> int:
        """Tokens in all."""
        return self.rows * self.tokens


def stack_bytes(stack: Stack, step: Pass) -> int:
    """Bytes that embeddings and final norm of a stack keep, and what its layers share: biases on scores, which are the
    same for all rows. The layers' own are counted by `block_bytes`."""
    embeddings, n = stack.embeddings, step.count
    kept = norm_bytes(embeddings.norm, stack.dim, step) + norm_bytes(stack.norm, stack.dim, step)
    kept += sum(mask_bytes(rate, n * stack.dim, WIDE, step) for rate in (embeddings.dropout, stack.dropout))
    biases = {(mixer.position, mixer.heads) for mixer in stack.attentions() if isinstance(mixer.position, Alibi)}
    return kept + sum(heads * step.tokens**2 * WIDE // step.tensor for _, heads in biases)


def block_bytes(block: Block, dim: int, source_dim: int | None, step: Pass) -> int:
    """Bytes that a layer keeps."""
    kept = 0
    for index, branch in enumerate(block.branches):
        kept += _branch_bytes(branch, dim, source_dim, step, reads_again=block.parallel and index > 0)
    return kept


def _branch_bytes(branch: Branch, dim: int, source_dim: int | None, step: Pass, reads_again: bool) -> int:
    n, norm = step.count, branch.norm if isinstance(branch.norm, Norm) else None
    kept = mixer_bytes(branch.mixer, dim, source_dim, step) + mask_bytes(branch.dropout, n * dim, step.width, step)
    before = branch.placement in ("pre", "both")
    if norm is not None:
        inputs = 0 if before and reads_again else n * dim * WIDE
        times = 2 if branch.placement == "both" else 1
        kept += inputs + (times - 1) * n * dim * WIDE + times * (norm_bytes(norm, dim, step) - n * dim * WIDE)
    shared = branch.norm == "shared" or (reads_again and not before and step.width == WIDE)
    return kept + (0 if shared else n * dim * step.width)


def norm_bytes(norm: Norm | None, dim: int, step: Pass) -> int:
    """Its input, and its statistics where they are not made again (`parts/kernels/rows.py`)."""
    if norm is None:
        return 0
    statistics = 2 if norm.kind == "layer" else int(step.fused)
    return step.count * (dim + statistics) * WIDE


def mask_bytes(rate: float, numbers: int, width: int, step: Pass) -> int:
    """What dropout keeps of so many numbers: which of them stay."""
    return numbers * (1 if step.fused else width) if rate else 0


def mixer_bytes(mixer: Mixer, dim: int, source_dim: int | None, step: Pass) -> int:
    """Bytes that a mixer keeps beside its input."""
    match mixer:
        case Attention():
            return _attention_bytes(mixer, step)
        case FeedForward():
            return _feed_forward_bytes(mixer, step)
        case RoutedExperts():
            return _experts_bytes(mixer, dim, step)
        case _:
            # A family's own: what each of its matrices gives, but for the last, which goes into the stream, and what
            # the last reads. Where it attends, its values are of another width than its keys: only the CPU's kernel of
            # spans takes such and keeps no scores.
            matrices = [shape for shape in mixer.shapes(dim, source_dim).values() if len(shape) == 2]
            widths = [shape[0] for shape in matrices[:-1]] + [matrices[-1][1]]
            again = not step.fused and step.width == WIDE
            scores = 0 if again else step.rows * getattr(mixer, "heads", 0) * step.tokens**2 * WIDE
            return (step.count * sum(widths) * step.width + scores) // step.tensor


def _attention_bytes(attention: Attention, step: Pass) -> int:
    n, C = step.count, attention.head_dim
    seen = step.rows * step.source if attention.source == "cross" else n
    queries, keys = n * attention.heads * C, seen * attention.kv_heads * C
    # Packed documents, or blocks of a window, are attended to apart, and what comes of it is laid side by side, but
    # where one kernel takes them all.
    blocks = 1 if _over_spans(attention, step) else _blocks(attention, step)
    outputs = 1 if _over_spans(attention, step) else 1 + step.packed + (blocks > 1)
    kept = (queries * (1 + outputs) + 2 * keys * blocks) * step.width + n * attention.heads * WIDE
    norm = attention.query_key_norm
    if norm is not None:
        kept += (queries + keys) * WIDE
    return (kept + step.rows * attention.heads * _score_bytes(attention, step)) // step.tensor


def _over_spans(attention: Attention, step: Pass) -> bool:
    """Whether `parts/kernels/spans.py` serves, on CPUs in float32."""
    shared = step.relative and attention.source == "self"
    added = shared or isinstance(attention.position, Alibi | RelativeBuckets)
    plain = attention.soft_cap is None and not attention.sinks and not attention.dropout
    return plain and not added and not step.fused and step.width == WIDE


def _blocks(attention: Attention, step: Pass) -> int:
    """In how many blocks of queries each key takes part, where a window is shorter than the rows."""
    left, right = attention.window or (None, None)
    right = 1 if attention.visibility == "causal" else right
    if left is None or right is None or left + right >= step.tokens:
        return 1
    return 1 + (left > 1) + (right > 1)


def _score_bytes(attention: Attention, step: Pass) -> int:
    """Bytes of scores that a head keeps for a row: none with the kernels that compute them again (Dao et al. 2022).
    Those know no soft cap and no sinks, learn no bias, and on CPUs drop nothing out."""
    keys = step.source if attention.source == "cross" else step.tokens
    pairs = step.tokens * keys
    if attention.soft_cap is not None or attention.sinks:
        return 3 * pairs * WIDE
    learned = isinstance(attention.position, RelativeBuckets) or (step.relative and attention.source == "self")
    drops = attention.dropout > 0 and not step.fused
    asked = not step.fused and (learned or drops or step.width < WIDE) and _blocks(attention, step) == 1
    if asked and step.rows * attention.heads * pairs <= LARGEST_KEPT:
        # The weights alone (`parts/kernels/products.py`); of a causal mask, block by block, about half of them.
        seen = step.tokens * (step.tokens + BLOCK) // 2 if attention.visibility == "causal" else pairs
        return min(seen, pairs) * (step.width + drops)
    return pairs * WIDE * (3 if drops else learned)


def _feed_forward_bytes(feed_forward: FeedForward, step: Pass) -> int:
    between = step.count * feed_forward.hidden
    copies = _copies(feed_forward.gated, feed_forward.activation, step)
    return (copies * between * step.width + mask_bytes(feed_forward.dropout, between, step.width, step)) // step.tensor


def _copies(gated: bool, activation: str, step: Pass) -> int:
    """How many tensors between two matrices are kept."""
    if gated:
        return 3 if not step.fused else 3 + (activation not in BY_OUTPUT)
    return 1 + (activation not in BY_OUTPUT)


def _experts_bytes(experts: RoutedExperts, dim: int, step: Pass) -> int:
    """Each token stands there once for every expert that it goes to: as it comes, between the matrices, and twice as it
    leaves, before and after its weight."""
    chosen = step.count * experts.top_k
    copies = _copies(experts.gated, experts.activation, step)
    kept = chosen * (3 * dim + copies * experts.hidden) * step.width + step.count * experts.experts * WIDE
    if experts.shared_hidden is not None:
        kept += step.count * copies * experts.shared_hidden * step.width
    return kept
