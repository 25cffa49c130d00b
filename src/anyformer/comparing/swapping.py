"""Parts of a model that a comparison swaps by name: each a function from a spec to a spec, on all layers of all stacks.

position=rotary   kv_heads=1   feed_forward=swiglu   placement=post   norm=rmsnorm   window=64   experts=8 ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from anyformer.errors import AnyformerError, ExperimentError
from anyformer.spec import (
    Alibi,
    Attention,
    Branch,
    Embeddings,
    FeedForward,
    Learned,
    MixtureOfExperts,
    Norm,
    RelativeBuckets,
    Rotary,
    RoutedExperts,
    Sinusoidal,
    Stack,
    Transformer,
)
from anyformer.spec.base import Part

P = TypeVar("P", bound=Part)
Swap = Callable[[Transformer, Any, int], Transformer]

#: What a feed-forward is called -> its activation, and whether it is gated (Shazeer 2020).
FEED_FORWARDS: dict[str, tuple[str, bool]] = {
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "silu": ("silu", False),
    "glu": ("sigmoid", True),
    "reglu": ("relu", True),
    "geglu": ("gelu", True),
    "swiglu": ("silu", True),
}
NORMS = {"layernorm": "layer", "rmsnorm": "rms"}
POSITIONS = ("rotary", "alibi", "sinusoidal", "learned", "relative", "none")
PLACEMENTS = ("pre", "post", "output", "both")
#: Experts that a token of a fresh mixture is sent to: those of Mixtral.
CHOSEN = 2


def changed(part: P, kind: type[Any], change: Callable[[Any], Part]) -> P:
    """A copy of a spec, or of a part of one, with every part of a kind in it changed, the innermost first."""
    return _changed(part, kind, change)


def _changed(value: Any, kind: type[Any], change: Callable[[Any], Part]) -> Any:
    if isinstance(value, tuple):
        return tuple(_changed(each, kind, change) for each in value)
    if not isinstance(value, Part):
        return value
    fields = {name: getattr(value, name) for name in type(value).model_fields}
    inner = {name: _changed(each, kind, change) for name, each in fields.items()}
    value = value.replace(**inner) if inner != fields else value
    return change(value) if isinstance(value, kind) else value


def _of_self(spec: Transformer, change: Callable[[Attention], Attention]) -> Transformer:
    """A spec with its self-attention changed; cross-attention has neither positions nor a window."""
    return changed(spec, Attention, lambda mixer: change(mixer) if mixer.source == "self" else mixer)


def _position(spec: Transformer, kind: str, length: int) -> Transformer:
    """Positions of one kind, and of no other. Those of the kind that are there stay as they are; a fresh table of
    learned ones has a row for each position of a training sequence, one of relative buckets is T5's."""
    turning = {"rotary": Rotary(), "alibi": Alibi()}.get(_one_of(kind, POSITIONS))
    added = {"sinusoidal": Sinusoidal(), "learned": Learned(size=length)}.get(kind)

    def attending(mixer: Attention) -> Attention:
        kept = mixer.position is not None and mixer.position.kind in (kind, f"{kind}_buckets")
        return mixer if kept else mixer.replace(position=turning)

    def embedding(embeddings: Embeddings) -> Embeddings:
        kept = embeddings.position is not None and embeddings.position.kind == kind
        return embeddings if kept else embeddings.replace(position=added)

    def whole(stack: Stack) -> Stack:
        attentions = [mixer for mixer in stack.attentions() if mixer.source == "self"]
        if kind != "relative":
            return stack.replace(relative=None)
        if stack.relative is not None or any(mixer.position is not None for mixer in attentions):
            return stack
        both_ways = any(mixer.visibility == "full" for mixer in attentions)
        return stack.replace(relative=RelativeBuckets(bidirectional=both_ways))

    return changed(changed(_of_self(spec, attending), Embeddings, embedding), Stack, whole)


def _kv_heads(spec: Transformer, count: int, length: int) -> Transformer:
    return changed(spec, Attention, lambda mixer: mixer.replace(kv_heads=_number(count)))


def _heads(spec: Transformer, count: int, length: int) -> Transformer:
    """So many query heads, all of them together as wide as before, and as many to a key/value head."""

    def split(mixer: Attention) -> Attention:
        width = mixer.heads * mixer.head_dim
        group = 1 if mixer.kv_heads == 1 else mixer.heads // mixer.kv_heads
        if width % _number(count) or count % group:
            raise ExperimentError(
                f"{width} channels in heads of which {group} share keys and values do not make {count} heads; "
                f"choose a number that divides {width} and is a multiple of {group}"
            )
        return mixer.replace(
            heads=count, head_dim=width // count, kv_heads=1 if mixer.kv_heads == 1 else count // group
        )

    return changed(spec, Attention, split)


def _depth(spec: Transformer, count: int, length: int) -> Transformer:
    return changed(spec, Stack, lambda stack: stack.replace(depth=_number(count)))


def _window(spec: Transformer, size: Any, length: int) -> Transformer:
    """So many keys, the query's own included, on either side of where it looks; none sees all."""
    window = None if size == "none" else (_number(size), None)

    def narrow(mixer: Attention) -> Attention:
        return mixer.replace(window=window and (window[0], window[0] if mixer.visibility == "full" else None))

    return _of_self(spec, narrow)


def _feed_forward(spec: Transformer, kind: str, length: int) -> Transformer:
    activation, gated = FEED_FORWARDS[_one_of(kind, FEED_FORWARDS)]
    return _wide(spec, lambda mixer: mixer.replace(activation=activation, gated=gated))


def _experts(spec: Transformer, count: int, length: int) -> Transformer:
    """A mixture of so many experts for each feed-forward, those that a token meets together as wide as that was; a
    mixture that is there gets so many. 1 makes one feed-forward of it, as wide as what a token met."""

    def mix(mixer: Any) -> Any:
        if isinstance(mixer, FeedForward):
            chosen = min(CHOSEN, _number(count))
            shape = {"hidden": max(1, mixer.hidden // chosen), "activation": mixer.activation, "gated": mixer.gated}
            return mixer if count == 1 else MixtureOfExperts(experts=count, top_k=chosen, balance=0.01, **shape)
        if count == 1:
            hidden = mixer.hidden * mixer.top_k + (mixer.shared_hidden or 0)
            return FeedForward(hidden=hidden, activation=mixer.activation, gated=mixer.gated)
        return mixer.replace(experts=_number(count), top_k=min(mixer.top_k, count))

    return changed(spec, Branch, lambda branch: branch.replace(mixer=mix(branch.mixer)) if _is_wide(branch) else branch)


def _is_wide(branch: Branch) -> bool:
    return isinstance(branch.mixer, FeedForward | RoutedExperts)


def _wide(spec: Transformer, change: Callable[[Any], Any]) -> Transformer:
    """A spec with its feed-forwards and mixtures of experts changed."""
    return changed(
        spec, Branch, lambda branch: branch.replace(mixer=change(branch.mixer)) if _is_wide(branch) else branch
    )


def _top_k(spec: Transformer, count: int, length: int) -> Transformer:
    return changed(spec, RoutedExperts, lambda mixer: mixer.replace(top_k=_number(count)))


def _hidden(spec: Transformer, width: int, length: int) -> Transformer:
    return _wide(spec, lambda mixer: mixer.replace(hidden=_number(width)))


def _placement(spec: Transformer, place: str, length: int) -> Transformer:
    """Norms placed so in every branch; behind the last layer stands one wherever the stream itself is not normed."""
    _one_of(place, PLACEMENTS)

    def end(stack: Stack) -> Stack:
        norms = (branch.norm for block in stack.pattern for branch in block.branches if isinstance(branch.norm, Norm))
        return stack.replace(norm=None if place == "post" else stack.norm or next(norms, None))

    return changed(changed(spec, Branch, lambda branch: branch.replace(placement=place)), Stack, end)


def _norm(spec: Transformer, kind: str, length: int) -> Transformer:
    """Norms of one kind along the stream; a LayerNorm with its bias, as it was proposed. Those of queries and keys, and
    a head's own, stay."""
    wanted = NORMS[_one_of(kind, NORMS)]

    def other(norm: Any) -> Any:
        if not isinstance(norm, Norm) or norm.kind == wanted:
            return norm
        return norm.replace(kind=wanted, bias=wanted == "layer" and norm.weight)

    for part in (Branch, Embeddings, Stack):
        spec = changed(spec, part, lambda held: held.replace(norm=other(held.norm)))
    return spec


#: What can be swapped by name -> the function that does it: of a spec, a value, and the length of a training sequence.
SWAPS: Mapping[str, Swap] = {
    "position": _position,
    "heads": _heads,
    "kv_heads": _kv_heads,
    "window": _window,
    "feed_forward": _feed_forward,
    "hidden": _hidden,
    "experts": _experts,
    "top_k": _top_k,
    "placement": _placement,
    "norm": _norm,
    "depth": _depth,
}


def swapped(spec: Transformer, name: str, value: Any, length: int) -> Transformer:
    """A spec with the part that is called `name` swapped for what `value` says, for sequences of `length` tokens.

    Raises `ExperimentError` where the value is none of the part's, or makes no model.
    """
    try:
        return SWAPS[name](spec, value, length)
    except AnyformerError as error:
        raise ExperimentError(f"{name}={value} makes no model of this recipe: {error}") from None


def _one_of(value: Any, known: Any) -> str:
    if value not in known:
        raise ExperimentError(f"there is no {value!r} here; there are {', '.join(known)}")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ExperimentError(f"{value!r} is no number of them; give one of 1 or more")
    return value
