"""Who may look at whom: a predicate over token attributes, never tensor-index arithmetic.

A mask is built from leaves (`Full`, `Causal`, `Window`, `SameDocument`, `Valid`, `Prefix`, `Sink`) with `&`, `|` and
`~`, and is asked `mask.allows(queries, keys) -> bool [B, T, S]`. `lower` turns it, once per forward, into the cheapest
form that is provably the same: nothing at all, a causal square, a band, documents one by one, or a dense tensor.

    Causal() & Window(4)              Causal() & SameDocument()          Prefix() with a prefix of 3
      k 0 1 2 3 4 5                     k 0 1 2 | 0 1 2                     k 0 1 2 3 4 5
    q 0 x . . . . .                   q 0 x . . | . . .                   q 0 x x x . . .
      1 x x . . . .                     1 x x . | . . .                     1 x x x . . .
      2 x x x . . .                     2 x x x | . . .                     2 x x x . . .
      3 x x x x . .                     0 . . . | x . .                     3 x x x x . .
      4 . x x x x .                     1 . . . | x x .                     4 x x x x x .
      5 . . x x x x                     2 . . . | x x x                     5 x x x x x x
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise, zip_longest
from typing import Any, Literal

import torch
from torch import Tensor

Lengths = tuple[tuple[int, ...], ...]


class Tokens:
    """What masks, positions and biases may know of a row of tokens, T of them.

    position  [B or 1, T] int64, counted from 0 within its document
    document  [B or 1, T] int64, or None: one document a row
    valid     [B or 1, T] bool, or None: no padding
    prefix    [B or 1, 1 or T] int64, how many first positions of its document every query may see, or None

    What is known on the host, without reading any tensor: `start` (every row stands at start, start + 1, ...), `low`
    and `high` (bounds of the positions), `lengths` (document lengths of each row, which sum to T), `prefixes` (a prefix
    for each of these documents). Lowering decides by these alone, so that it never waits for a device and never breaks
    a compiled graph.
    """

    def __init__(
        self,
        length: int,
        *,
        device: torch.device | str | None = None,
        start: int | None = None,
        position: Tensor | Callable[[], Tensor] | None = None,
        low: int | None = None,
        high: int | None = None,
        document: Tensor | None = None,
        valid: Tensor | None = None,
        prefix: Tensor | None = None,
        lengths: Lengths | None = None,
        prefixes: Lengths | None = None,
    ) -> None:
        assert start is not None or position is not None
        self.length = length
        self.device = device
        self.start = start
        self.low = start if start is not None else low
        self.high = start + length - 1 if start is not None else high
        self.document = document
        self.valid = valid
        self.prefix = prefix
        self.lengths = lengths
        self.prefixes = prefixes
        self._position = position

    @classmethod
    def packed(
        cls, lengths: Lengths, device: torch.device | str | None = None, prefixes: Lengths | None = None
    ) -> Tokens:
        """Rows of documents whose lengths the host knows, and their prefixes; positions restart in each."""
        position = torch.tensor([list(chain.from_iterable(range(n) for n in row)) for row in lengths], device=device)
        document = torch.tensor([[i for i, n in enumerate(row) for _ in range(n)] for row in lengths], device=device)
        prefix = None
        if prefixes is not None:
            rows = [[p for n, p in zip(*row, strict=True) for _ in range(n)] for row in zip(lengths, prefixes)]
            prefix = torch.tensor(rows, device=device)
        return cls(
            position.shape[1],
            device=device,
            position=position,
            low=0,
            high=max(max(row) for row in lengths) - 1,
            document=document,
            prefix=prefix,
            lengths=lengths,
            prefixes=prefixes,
        )

    @property
    def position(self) -> Tensor:
        """[B or 1, T] int64; made when first asked for, where it is only a range."""
        if self._position is None:
            assert self.start is not None
            self._position = torch.arange(self.start, self.start + self.length, device=self.device)[None]
        elif not isinstance(self._position, Tensor):
            self._position = self._position()
        return self._position

    def __getitem__(self, span: slice) -> Tokens:
        """The tokens of a slice of columns."""
        first, last, _ = span.indices(self.length)

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[:, first:last]

        known = self.start is not None
        return Tokens(
            last - first,
            device=self.device,
            start=self.start + first if self.start is not None else None,
            position=None if known else cut(self.position),
            low=self.low,
            high=self.high,
            document=cut(self.document),
            valid=cut(self.valid),
            prefix=cut(self.prefix) if self.prefix is not None and self.prefix.shape[1] > 1 else self.prefix,
        )

    def as_rows(self) -> Attributes:
        """Attributes shaped [B, T, 1], as queries."""
        return Attributes(*(None if a is None else a[:, :, None] for a in self._attributes()))

    def as_columns(self) -> Attributes:
        """Attributes shaped [B, 1, S], as keys."""
        return Attributes(*(None if a is None else a[:, None, :] for a in self._attributes()))

    def at(self, row: Tensor, index: Tensor) -> Attributes:
        """The attributes of single tokens, for kernels that ask pair by pair."""
        return Attributes(*(None if a is None else pick(a, row, index) for a in self._attributes()))

    def _attributes(self) -> tuple[Tensor | None, ...]:
        return self.position, self.document, self.valid, self.prefix


def pick(tensor: Tensor, row: Tensor, index: Tensor) -> Tensor:
    """tensor[row, index] of an attribute [B or 1, T or 1], where a dimension of one stands for any."""
    row = row if tensor.shape[0] > 1 else torch.zeros_like(row)
    return tensor[row, index if tensor.shape[1] > 1 else torch.zeros_like(index)]


@dataclass(frozen=True, eq=False)
class Attributes:
    """Token attributes in shapes that broadcast, queries against keys."""

    position: Tensor | None
    document: Tensor | None
    valid: Tensor | None
    prefix: Tensor | None


class Mask:
    """A predicate over (query, key) pairs."""

    def rule(self, q: Attributes, k: Attributes) -> Tensor:
        """Whether q may see k, for attributes of any shapes that broadcast."""
        raise NotImplementedError

    def horizon(self) -> int | None:
        """How many keys back from a query, itself included, it can ever look; None: without bound."""
        return None

    def allows(self, q: Tokens, k: Tokens) -> Tensor:
        """bool [B or 1, T, S]: whether query t may see key s."""
        allowed = self.rule(q.as_rows(), k.as_columns())
        return allowed.expand(*allowed.shape[:-2], q.length, k.length)

    def __and__(self, other: Mask) -> Mask:
        return And(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Or(self, other)

    def __invert__(self) -> Mask:
        return Not(self)


def _position(attributes: Attributes) -> Tensor:
    assert attributes.position is not None
    return attributes.position


def _true(q: Attributes, k: Attributes) -> Tensor:
    return torch.ones_like(_position(q) + _position(k), dtype=torch.bool)


@dataclass(frozen=True)
class Full(Mask):
    """Every key."""

    def rule(self, q: Attributes, k: Attributes) -> Tensor:
        return _true(q, k)


@dataclass(frozen=True)
class Causal(Mask):
    """Keys at the query's position or before it."""

    def rule(self, q: Attributes, k: Attributes) -> Tensor:
        return _position(k) <= _position(q)


@dataclass(frozen=True)
class Window(Mask):
    """`left` keys ending at the query and `right` keys starting at it, the query's own position included in both
    counts; None leaves a side open."""

    left: int | None
    right: int | None = None

    def rule(self, q: Attributes, k: Attributes) -> Tensor:
        ahead = _position(k) - _position(q)
        allowed = _true(q, k) if self.left is None else ahead > -self.left
        return allowed if self.right is None else allowed & (ahead < self.right)

    def horizon(self) -> int | None:
        return self.left


@dataclass(frozen=True)
class SameDocument(Mask):
    """Keys of the query's own document."""

    def rule(self, q: Attributes, k: Attributes) -> Tensor:
        if q.document is None or k.document is None:
            return _true(q, k)
        return q.document == k.document


@dataclass(frozen=True)
class Valid(Mask):
    """Keys that are not padding."""

    def rule(self, q: Attributes, k: Attributes) -> Tensor:
        return _true(q, k) if k.valid is None else k.valid & _true(q, k)


@dataclass(frozen=True)
class Prefix(Mask):
    """The keys of the document's prefix (`Tokens.prefix` of them), wherever the query stands; none where there is
    none."""

    def rule(self, q: Attributes, k: Attributes) -> Tensor:
        if k.prefix is None:
            return ~_true(q, k)
        return (_position(k) < k.prefix) & _true(q, k)


@dataclass(frozen=True)
class Sink(Mask):
    """The first `n` tokens (Xiao et al. 2023: kept visible, they keep a window's softmax steady)."""

    n: int

    def rule(self, q: Attributes, k: Attributes) -> Tensor:
        return (_position(k) < self.n) & _true(q, k)


@dataclass(frozen=True)
class And(Mask):
    """Both."""

    a: Mask
    b: Mask

    def rule(self, q: Attributes, k: Attributes) -> Tensor:
        return self.a.rule(q, k) & self.b.rule(q, k)

    def horizon(self) -> int | None:
        bounds = [bound for bound in (self.a.horizon(), self.b.horizon()) if bound is not None]
        return min(bounds, default=None)


@dataclass(frozen=True)
class Or(Mask):
    """Either."""

    a: Mask
    b: Mask

    def rule(self, q: Attributes, k: Attributes) -> Tensor:
        return self.a.rule(q, k) | self.b.rule(q, k)

    def horizon(self) -> int | None:
        a, b = self.a.horizon(), self.b.horizon()
        return None if a is None or b is None else max(a, b)


@dataclass(frozen=True)
class Not(Mask):
    """The contrary."""

    a: Mask

    def rule(self, q: Attributes, k: Attributes) -> Tensor:
        return ~self.a.rule(q, k)


Form = Literal["everything", "causal", "band", "documents", "dense"]


class Visible:
    """A mask lowered for given queries and keys. `form` says how a kernel may take it:

    everything  hide nothing
    causal      T = S and position i of either is the same token: exactly `is_causal`
    band        index distance is position distance: query i is key i + `offset`, and sees at most `left` keys ending
                there and `right` starting there; `allows` on a tile says the rest
    documents   `parts`: (length, lowered mask) of each document, rows of the batch laid end to end; the keys' documents
                may have lengths of their own, or be missing
    dense       only `dense()` will do
    """

    def __init__(
        self,
        form: Form,
        mask: Mask,
        q: Tokens,
        k: Tokens,
        *,
        left: int = 0,
        right: int = 0,
        offset: int = 0,
        parts: Sequence[tuple[int, Visible]] = (),
        dense: Tensor | None = None,
    ) -> None:
        self.form, self.mask, self.q, self.k = form, mask, q, k
        self.left, self.right, self.offset, self.parts = left, right, offset, parts
        #: What a kernel worked out of it for all layers.
        self.made: Any = None
        self._dense = dense
        self._added: dict[tuple[Bias | None, torch.dtype], Tensor] = {}

    @property
    def dense(self) -> Tensor:
        """bool [B or 1, 1, T, S]; one tensor for all layers and heads."""
        if self._dense is None:
            self._dense = self.mask.allows(self.q, self.k)[:, None]
        return self._dense

    @cached_property
    def spans(self) -> tuple[Tensor, Tensor] | None:
        """int32 [B or 1, T] twice: query t sees the keys first[t] to last[t] - 1 and no others. None where the host
        does not know that each sees one span."""
        return _spans(self)

    def added(self, bias: Bias | None, dtype: torch.dtype) -> Tensor:
        """What to add to the scores, [B or 1, H or 1, T, S]: the bias where a key is visible, -inf where not.

        Kept for the next layer that asks for the same, so that T5's shared table is read once per forward.
        """
        key = (bias, dtype)
        if key not in self._added:
            if bias is None:
                added = torch.zeros(self.dense.shape, dtype=dtype, device=self.dense.device)
            else:
                added = bias.dense(self.q, self.k).to(dtype)
            self._added[key] = added if self.form == "everything" else added.masked_fill(~self.dense, -torch.inf)
        return self._added[key]


#: What attention of visibility "prefix" sees.
_PREFIX = Or(Causal(), Prefix())


def lower(mask: Mask, q: Tokens, k: Tokens) -> Visible:
    """The cheapest form of `mask` for these queries and keys; decided by what the host knows, reading no tensor."""
    needed = [leaf for leaf in conjuncts(mask) if not _always_true(leaf, q, k)]
    if not needed:
        return Visible("everything", mask, q, k)
    known = k.prefix is None or k.prefixes is not None
    simple = all(isinstance(leaf, Causal | Window | SameDocument) or (known and leaf == _PREFIX) for leaf in needed)
    packed = q.lengths is not None and q.lengths == k.lengths
    if simple and packed and SameDocument() in needed:
        inner = _all([leaf for leaf in needed if not isinstance(leaf, SameDocument)])
        lengths = list(chain.from_iterable(q.lengths or ()))
        prefixes = list(chain.from_iterable(k.prefixes)) if k.prefixes is not None else [0] * len(lengths)
        kinds = list(zip(lengths, prefixes, strict=True))
        lowered = {kind: _document(inner, *kind, q.device) for kind in set(kinds)}
        return Visible("documents", mask, q, k, parts=[(kind[0], lowered[kind]) for kind in kinds])
    if needed == [SameDocument()] and q.lengths is not None and k.lengths is not None:
        parts = [pair for row in zip(q.lengths, k.lengths, strict=True) for pair in zip_longest(*row, fillvalue=0)]
        sizes = {size: Tokens(size, device=q.device, start=0) for pair in parts for size in pair}
        lowered = {pair: Visible("everything", Full(), sizes[pair[0]], sizes[pair[1]]) for pair in set(parts)}
        return Visible("documents", mask, q, k, parts=[(pair[0], lowered[pair]) for pair in parts])
    plain = k.valid is None and (q.document is None or k.document is None)
    if plain and q.start is not None and k.start is not None and 0 <= q.start - k.start <= k.length - q.length:
        offset = q.start - k.start
        if needed == [Causal()] and offset == 0 and q.length == k.length:
            return Visible("causal", mask, q, k)
        left, right = _reach(needed)
        if left is not None and right is not None and left + right < k.length and all(map(_by_distance, needed)):
            return Visible("band", mask, q, k, left=left, right=right, offset=offset)
    return Visible("dense", mask, q, k)


def _document(mask: Mask, length: int, prefix: int, device: torch.device | str | None) -> Visible:
    """A mask lowered for a document by itself."""
    # A prefix of nothing or of everything is a simpler mask.
    simpler = {0: Causal(), length: Full()}
    if prefix in simpler:
        mask = _all([simpler[prefix] if leaf == _PREFIX else leaf for leaf in conjuncts(mask)])
    seen = None if prefix in simpler else torch.tensor([[prefix]], device=device)
    tokens = Tokens(length, device=device, start=0, prefix=seen)
    return lower(mask, tokens, tokens)


def conjuncts(mask: Mask) -> list[Mask]:
    """What a mask says all of."""
    return conjuncts(mask.a) + conjuncts(mask.b) if isinstance(mask, And) else [mask]


def _all(leaves: list[Mask]) -> Mask:
    mask: Mask = Full()
    for leaf in leaves:
        mask = mask & leaf
    return mask


def _always_true(leaf: Mask, q: Tokens, k: Tokens) -> bool:
    """Whether the host knows that this leaf hides nothing here."""
    match leaf:
        case Full():
            return True
        case SameDocument():
            return q.document is None or k.document is None
        case Valid():
            return k.valid is None
        case Causal():
            return q.low is not None and k.high is not None and q.low >= k.high and q.document is None
        case Window(left, right):
            if q.low is None or q.high is None or k.low is None or k.high is None:
                return False
            return (left is None or q.high - k.low < left) and (right is None or k.high - q.low < right)
        case _:
            return False


def _by_distance(mask: Mask) -> bool:
    """Whether, between rows that stand in order, only the distance counts: then one tile of a band is like the next."""
    match mask:
        case And(a, b) | Or(a, b):
            return _by_distance(a) and _by_distance(b)
        case Not(a):
            return _by_distance(a)
        case _:
            return isinstance(mask, Full | Causal | Window | SameDocument | Valid)


def _reach(leaves: list[Mask]) -> tuple[int | None, int | None]:
    """The tightest (left, right) window that the conjunction implies."""
    left = [leaf.left for leaf in leaves if isinstance(leaf, Window) and leaf.left is not None]
    right = [leaf.right for leaf in leaves if isinstance(leaf, Window) and leaf.right is not None]
    right += [1 for leaf in leaves if isinstance(leaf, Causal)]
    return min(left, default=None), min(right, default=None)


def _spans(visible: Visible) -> tuple[Tensor, Tensor] | None:
    q, k = visible.q, visible.k
    if visible.form == "documents":
        return _spans_of_documents(visible)
    needed = [leaf for leaf in conjuncts(visible.mask) if not _always_true(leaf, q, k)]
    if not all(isinstance(leaf, Causal | Window) for leaf in needed):
        return None
    if needed and (q.start is None or k.start is None):
        return None
    left, right = _reach(needed)
    at = torch.arange(q.length, dtype=torch.int32, device=q.device)[None] + ((q.start or 0) - (k.start or 0))
    nothing = torch.zeros_like(at)
    first = nothing if left is None else (at - (left - 1)).clamp(0, k.length)
    last = nothing + k.length if right is None else (at + right).clamp(0, k.length)
    return first, last


def _spans_of_documents(visible: Visible) -> tuple[Tensor, Tensor] | None:
    """Those of each document, moved to where its keys begin in their row."""
    T, S = visible.q.length, visible.k.length
    edges: list[tuple[Tensor, Tensor]] = []
    of_queries = of_keys = 0
    for length, part in visible.parts:
        spans = part.spans
        if spans is None:
            return None
        begin = of_keys - of_queries // T * S
        if length:
            edges.append((spans[0][0] + begin, spans[1][0] + begin))
        of_queries, of_keys = of_queries + length, of_keys + part.k.length
    first, last = (torch.cat(side).view(-1, T) for side in zip(*edges, strict=True))
    return first, last


class Bias:
    """What adds to the scores instead of hiding them: a function of head, query position and key position."""

    def rule(self, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """The bias, at least float32, for head indices and positions of any shapes that broadcast."""
        raise NotImplementedError

    @property
    def heads(self) -> int:
        """How many heads the bias tells apart."""
        raise NotImplementedError

    def dense(self, q: Tokens, k: Tokens) -> Tensor:
        """At least float32, [B or 1, H, T, S]."""
        head = torch.arange(self.heads, device=k.position.device)[:, None, None]
        if q.start is not None and k.start is not None:
            # A function of distance alone: one row of every distance, of which each query reads a shifted part.
            first, last = k.start - (q.start + q.length - 1), k.start + k.length - 1 - q.start
            distance = torch.arange(first, last + 1, device=k.position.device)
            row = self.rule(head[:, :, 0], torch.zeros_like(distance), distance)
            return row.unfold(-1, k.length, 1).flip(-2)[None]
        return self.rule(head, q.position[:, None, :, None], k.position[:, None, None, :])


def pairs(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(start, stop) of consecutive spans of these lengths."""
    edges = [0]
    for length in lengths:
        edges.append(edges[-1] + length)
    return list(pairwise(edges))
