"""A model drawn as a person would draw it, and the same as plain data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import prod
from typing import Any

from anyformer.planning import counts
from anyformer.planning.shapes import shapes
from anyformer.spec import (
    Alibi,
    Attention,
    Block,
    Branch,
    EmbeddingHead,
    Embeddings,
    FeedForward,
    Head,
    LanguageModelHead,
    Learned,
    MaskedLanguageModelHead,
    Mixer,
    Norm,
    RelativeBuckets,
    Rotary,
    RoutedExperts,
    SequenceClassificationHead,
    Stack,
    TokenClassificationHead,
    Transformer,
)

#: Columns of the drawing: up to here words, then a column of numbers.
WORDS, NUMBERS = 62, 17
PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def summary(
    spec: Transformer, context: int | None = None, dtype: str = "bfloat16", quantize_cache: str | None = None
) -> dict[str, Any]:
    """What a model is and costs, as plain data for JSON.

    Costs are counted at `context` tokens (the one that the spec names, unless given): `flops.forward_per_token` is the
    mean over a sequence of that length (both sides of an encoder-decoder have it, and their tokens count alike),
    `flops.decode_per_token` those of its last token where a cache holds the others; `kv_bytes_per_token` what a token
    adds while no window is full, `kv_bytes` what a sequence of that length keeps. Bytes are in `dtype`; of a
    cache in 8 bits, with `quantize_cache="int8"`.
    """
    context = context or counts.default_context(spec)
    counts.check_length(spec, context, "a context")
    parameters = counts.parameters(spec)
    forward = counts.forward_flops(spec, context)
    passed = context * len(spec.stacks())
    flops: dict[str, Any] = {
        "forward_per_token": round(sum(forward.values()) / passed),
        "parts": {part: round(flops / passed) for part, flops in forward.items()},
    }
    if spec.decoder is not None:
        flops["decode_per_token"] = sum(counts.forward_flops(spec, 1, source=context, cached=context - 1).values())
    return {
        "shape": spec.shape,
        "head": spec.head.kind,
        "layers": {name: stack.depth for name, stack in spec.stacks().items()},
        "trained_context": spec.context,
        "parameters": {
            "total": parameters.total,
            "active": parameters.active,
            "embedding": parameters.embedding,
            "parts": parameters.parts,
        },
        "context": context,
        "flops": flops,
        "dtype": dtype,
        "weight_bytes": counts.weight_bytes(spec, dtype),
        "kv_bytes_per_token": counts.kv_bytes(spec, 1, dtype=dtype, quantize=quantize_cache),
        "kv_bytes": counts.kv_bytes(spec, context, dtype=dtype, quantize=quantize_cache),
    }


def describe(
    spec: Transformer, context: int | None = None, dtype: str = "bfloat16", quantize_cache: str | None = None
) -> str:
    """The model as a person would draw it: stacks, blocks (repeated ones once), branches as formulas of the residual
    stream x, parts with shapes and parameters, then what it costs at `context` tokens."""
    lines = [*_flow(spec), ""]
    for name, stack in spec.stacks().items():
        lines += [*_draw(_stack(spec, name, stack)), ""]
    return "\n".join([*lines, *_draw(_head(spec)), "", *_costs(spec, context, dtype, quantize_cache)]) + "\n"


@dataclass
class Node:
    """A line of the drawing, the facts and parts under it, and what hangs from it."""

    text: str
    count: int | None = None
    under: list[tuple[str, int | None]] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)


def _draw(node: Node, lead: str = "", below: str = "") -> Iterator[str]:
    yield _row(lead + node.text, node.count)
    stem = below + ("│  " if node.children else "   ")
    for text, count in node.under:
        for line in _wrap(text, WORDS - len(stem)) if count is None else [text]:
            yield _row(stem + line, count)
    for index, child in enumerate(node.children):
        last = index + 1 == len(node.children)
        yield from _draw(child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))


def _wrap(facts: str, width: int) -> list[str]:
    """Facts (joined by dots) in lines of at most `width`, never cut inside a fact."""
    lines: list[str] = []
    for fact in facts.split(" · "):
        fits = lines and len(lines[-1]) + len(fact) + 3 <= width
        lines[-1:] = [f"{lines[-1]} · {fact}"] if fits else [*lines[-1:], fact]
    return lines


def _row(text: str, count: int | None) -> str:
    return text if count is None else f"{text:<{WORDS}}{count:>{NUMBERS},}"


def _flow(spec: Transformer) -> list[str]:
    """Which way tokens go."""
    out = f"{_words(spec.head.kind)} → {_output(spec)}"
    if spec.shape == "encoder-decoder":
        return ["source ids → encoder ─┐ keys and values", f"target ids → decoder ─┴→ {out}"]
    return [f"ids → {spec.shape} → {out}"]


def _output(spec: Transformer) -> str:
    match spec.head:
        case SequenceClassificationHead() as head:
            return f"{head.labels} logits a sequence"
        case TokenClassificationHead() as head:
            return f"{head.labels} logits a token"
        case EmbeddingHead():
            return f"a vector of {spec.output.dim:,} a sequence"
        case _:
            return f"{spec.output.embeddings.vocabulary:,} logits a token"


def _stack(spec: Transformer, name: str, stack: Stack) -> Node:
    own = {key: prod(shape) for key, shape in shapes(spec).items() if key.startswith(f"{name}.")}
    embedded = sum(count for key, count in own.items() if key.startswith(f"{name}.embeddings."))
    shares = spec.shared_embedding and name == "decoder"
    node = Node(f"{name}: {several(stack.depth, 'layer')}, {stack.dim:,} wide", sum(own.values()))
    embeddings = Node("embeddings", embedded, _embedding_lines(stack.embeddings, stack.dim, shares))
    node.children = [embeddings, *_layers(spec, stack)]
    if stack.relative is not None:
        table = f"relative positions: {_buckets(stack.relative)}"
        node.children.append(Node(table, own[f"{name}.relative.weight"]))
    if stack.norm is not None:
        node.children.append(Node(f"norm: {_norm(stack.norm)}", _norm_count(stack.norm, stack.dim)))
    return node


def _embedding_lines(embeddings: Embeddings, dim: int, shares: bool) -> list[tuple[str, int | None]]:
    tokens = f"tokens         {embeddings.vocabulary:,} × {dim:,}"
    lines: list[tuple[str, int | None]] = [
        (f"{tokens}, the encoder's table", None) if shares else (tokens, embeddings.vocabulary * dim)
    ]
    if embeddings.scale is not None:
        lines.append((f"times {embeddings.scale:g}", None))
    if isinstance(embeddings.position, Learned):
        rows = embeddings.position.size + embeddings.position.offset
        offset = f", from row {embeddings.position.offset} on" if embeddings.position.offset else ""
        lines.append((f"+ positions    {rows:,} × {dim:,}, learned{offset}", rows * dim))
    elif embeddings.position is not None:
        lines.append(("+ positions    sinusoidal", None))
    if embeddings.segments:
        lines.append((f"+ segments     {embeddings.segments} × {dim:,}", embeddings.segments * dim))
    if embeddings.norm is not None:
        lines.append((f"norm           {_norm(embeddings.norm)}", _norm_count(embeddings.norm, dim)))
    if embeddings.dropout:
        lines.append((f"dropout {embeddings.dropout:g}", None))
    return lines


def _layers(spec: Transformer, stack: Stack) -> list[Node]:
    """The layers of a stack, each kind of block drawn once."""
    layers = stack.layers()
    kinds = list(dict.fromkeys(layers))
    labels = _labels(kinds)
    source_dim = spec.encoder.dim if spec.encoder is not None else None
    drawn: dict[Block, Node] = {}
    for block in kinds:
        where = [index for index, layer in enumerate(layers) if layer == block]
        node = _block(block, stack, source_dim)
        each = sum(child.count or 0 for child in node.children)
        name = f"{labels[block]}, " if labels[block] else ""
        node.text = f"{name}layers {_ranges(where)}: {len(where)} × {each:,}"
        node.count = len(where) * each
        drawn[block] = node
    period = _period(layers)
    if period is None or len(kinds) == 1:
        return list(drawn.values())
    turns = [(labels[block], len(list(run))) for block, run in groupby(layers[:period])]
    text = f"layers 0-{len(layers) - 1}, in turn {', '.join(f'{times} × {label}' for label, times in turns)}"
    for block, node in drawn.items():
        times = layers.count(block)
        node.text = f"{labels[block]}: {times} × {(node.count or 0) // times:,}"
    return [Node(text, sum(node.count or 0 for node in drawn.values()), children=list(drawn.values()))]


def _period(layers: Sequence[Block]) -> int | None:
    """The shortest stretch that the layers repeat at least twice over (the last time perhaps in part); None: none."""
    spans = range(1, len(layers) // 2 + 1)
    return next((n for n in spans if all(one == other for one, other in zip(layers, layers[n:]))), None)


def _ranges(indices: Sequence[int]) -> str:
    """Indices with runs joined: 0-2, 7."""
    runs = [[index for _, index in run] for _, run in groupby(enumerate(indices), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _labels(kinds: Sequence[Block]) -> dict[Block, str]:
    """What to call each kind of block of a stack, by what tells them apart; nothing where there is one kind."""
    if len(kinds) == 1:
        return {kinds[0]: ""}
    windows = [any(getattr(branch.mixer, "window", None) for branch in block.branches) for block in kinds]
    mixtures = [any(isinstance(branch.mixer, RoutedExperts) for branch in block.branches) for block in kinds]
    reach = ["local" if window else "global" for window in windows] if len(set(windows)) > 1 else [""] * len(kinds)
    width = ["experts" if mixes else "dense" for mixes in mixtures] if len(set(mixtures)) > 1 else [""] * len(kinds)
    names = [" ".join(filter(None, pair)) for pair in zip(reach, width)]
    same = len(set(names)) < len(names)
    return {
        block: f"{name} {chr(ord('A') + index)}".strip() if same else name
        for index, (block, name) in enumerate(zip(kinds, names))
    }


def _block(block: Block, stack: Stack, source_dim: int | None) -> Node:
    node = Node("")
    branches = [_branch(branch, stack, source_dim) for branch in block.branches]
    for branch, drawn in zip(block.branches, branches):
        drawn.text = branch.name if block.parallel else f"x + {_placed(branch)}"
        if branch.placement == "post" and branch.norm is not None:
            drawn.text = f"norm(x + {branch.name}(x))"
    if block.parallel:
        node.under.append((" + ".join(["x", *(_placed(branch) for branch in block.branches)]), None))
    node.children = branches
    return node


def _placed(branch: Branch) -> str:
    """What a branch adds to the residual stream x, as a formula."""
    if branch.norm is None:
        return f"{branch.name}(x)"
    forms = {"pre": "{}(norm(x))", "output": "norm({}(x))", "both": "norm'({}(norm(x)))", "post": "{}(x)"}
    return forms[branch.placement].format(branch.name)


def _branch(branch: Branch, stack: Stack, source_dim: int | None) -> Node:
    facts = [*_facts(branch.mixer, stack), *([f"dropout {branch.dropout:g} after"] if branch.dropout else [])]
    lines: list[tuple[str, int | None]] = [(" · ".join(facts), None)]
    if isinstance(branch.norm, Norm):
        for name in ("norm", "norm'") if branch.placement == "both" else ("norm",):
            lines.append((f"{name:<14} {_norm(branch.norm)}", _norm_count(branch.norm, stack.dim)))
    elif branch.norm == "shared":
        lines.append(("norm           the branch's before", None))
    lines += _parts(branch.mixer.shapes(stack.dim, source_dim))
    return Node("", sum(count or 0 for _, count in lines), lines)


def _parts(named: dict[str, tuple[int, ...]]) -> list[tuple[str, int | None]]:
    """A line for each part of a mixer: its shape (from the input to the output), and its numbers, bias included."""
    lines: list[tuple[str, int | None]] = []
    parts: dict[str, list[tuple[int, ...]]] = {}
    for name, shape in named.items():
        parts.setdefault(re.sub(r"[._](weight|bias)$", "", name), []).append(shape)
    for part, held in parts.items():
        first, *rest = held
        match first:
            case (outputs, inputs):
                shape = f"{inputs:,} → {outputs:,}"
            case (experts, outputs, inputs):
                shape = f"{experts} × ({inputs:,} → {outputs:,})"
            case _:
                shape = " × ".join(f"{size:,}" for size in first)
        shape += " + bias" if rest else ""
        lines.append((f"{part:<14} {shape}", sum(map(prod, held))))
    return lines


def _facts(mixer: Mixer, stack: Stack) -> list[str]:
    match mixer:
        case Attention():
            return list(_attention_facts(mixer, stack))
        case FeedForward():
            return [_activation(mixer), *([f"dropout {mixer.dropout:g} inside"] if mixer.dropout else [])]
        case RoutedExperts():
            facts = [f"the best {mixer.top_k} of {mixer.experts} experts", _activation(mixer)]
            facts += ["weights sum to 1"] if mixer.normalize else []
            facts += [f"balance loss × {mixer.balance:g}"] if mixer.balance else []
            own = mixer.model_dump(exclude=set(RoutedExperts.model_fields))
            return facts + [f"{_words(name)} {value}" for name, value in own.items()]
        case _:
            return [mixer.kind, *_own_facts(mixer)]


def _own_facts(mixer: Mixer) -> Iterator[str]:
    """What a family's own mixer says that is not its default."""
    for name, known in type(mixer).model_fields.items():
        value = getattr(mixer, name)
        if isinstance(value, Rotary):
            yield from _rotary_facts(value, value.dim)
        elif name != "kind" and value != known.default:
            yield f"{_words(name)} {value}"


def _attention_facts(mixer: Attention, stack: Stack) -> Iterator[str]:
    views = {"causal": "causal", "full": "sees both ways", "prefix": "sees all of a prefix, causal beyond"}
    yield "sees the encoder's output" if mixer.source == "cross" else views[mixer.visibility]
    if mixer.window is not None:
        left, right = mixer.window
        sides = [f"{size:,} {side}" for size, side in ((left, "back"), (right, "ahead")) if size is not None]
        yield f"window of {' and '.join(sides)}"
    yield f"{several(mixer.heads, 'head')} × {mixer.head_dim}"
    if mixer.kv_heads == 1 and mixer.heads > 1:
        yield "one key/value head for all (multi-query)"
    elif mixer.kv_heads < mixer.heads:
        yield f"{mixer.kv_heads} key/value heads (grouped-query)"
    position = mixer.position
    match position:
        case Rotary():
            yield from _rotary_facts(position, mixer.head_dim)
        case Alibi():
            yield "ALiBi"
        case RelativeBuckets():
            yield f"relative positions: {_buckets(position)}"
        case _:
            if stack.relative is not None and mixer.source == "self":
                yield "relative positions of the stack"
    if mixer.query_key_norm is not None:
        over = "each head" if mixer.query_key_norm_over == "head" else "all heads"
        yield f"{mixer.query_key_norm.kind} norm of queries and keys over {over}"
    if mixer.scale is not None:
        yield f"scores × {mixer.scale:g}"
    if mixer.soft_cap is not None:
        yield f"scores capped at {mixer.soft_cap:g}"
    if mixer.sinks:
        yield "a learned sink a head"
    if mixer.dropout:
        yield f"dropout {mixer.dropout:g} of weights"


def _rotary_facts(rotary: Rotary, head_dim: int | None) -> Iterator[str]:
    yield f"rotary, base {rotary.base:,.0f}"
    if rotary.dim not in (None, head_dim):
        yield f"{rotary.dim} of {head_dim} channels turn"
    if rotary.interleaved:
        yield "neighbouring channels paired"
    if rotary.scaling is not None:
        factor = getattr(rotary.scaling, "factor", None)
        yield f"{rotary.scaling.kind} scaling" + (f" × {factor:g}" if factor is not None else "")


def _buckets(relative: RelativeBuckets) -> str:
    way = "both ways" if relative.bidirectional else "backwards"
    return f"{relative.buckets} buckets up to {relative.max_distance}, {way}"


def _activation(mixer: FeedForward | RoutedExperts) -> str:
    names = {"silu": "SwiGLU", "gelu": "GEGLU", "gelu_tanh": "GEGLU (tanh)", "relu": "ReGLU", "sigmoid": "GLU"}
    plain = {"silu": "SiLU", "gelu": "GELU", "gelu_tanh": "GELU (tanh)", "relu": "ReLU"}
    return (names if mixer.gated else plain).get(mixer.activation, f"{'gated ' * mixer.gated}{mixer.activation}")


def _norm(norm: Norm) -> str:
    kind = {"rms": "RMS", "layer": "layer"}[norm.kind]
    weight = "times 1 + w" if norm.unit_offset else "" if norm.weight else "no weight"
    return ", ".join(filter(None, [f"{kind} + bias" if norm.bias else kind, f"ε {norm.eps:g}", weight]))


def _norm_count(norm: Norm, dim: int) -> int:
    return dim * (norm.weight + norm.bias)


def _head(spec: Transformer) -> Node:
    head, dim = spec.head, spec.output.dim
    named = {key.removeprefix("head."): shape for key, shape in shapes(spec).items() if key.startswith("head.")}
    node = Node(f"head: {_words(head.kind)}", sum(prod(shape) for shape in named.values()))
    if facts := " · ".join(_head_facts(head)):
        node.under.append((facts, None))
    if isinstance(head, LanguageModelHead | MaskedLanguageModelHead) and head.tied:
        vocabulary = f"{dim:,} → {spec.output.embeddings.vocabulary:,}"
        bias = " + bias" if head.bias else ""
        if head.bias:
            del named["output.bias"]
        node.under += _parts(named)
        text = f"output         {vocabulary}{bias}, tied to the token table"
        node.under.append((text, spec.output.embeddings.vocabulary if head.bias else None))
        return node
    node.under += _parts(named)
    return node


def _head_facts(head: Head) -> Iterator[str]:
    match head:
        case LanguageModelHead():
            if head.scale is not None:
                yield f"hidden states × {head.scale:g}"
            if head.soft_cap is not None:
                yield f"logits capped at {head.soft_cap:g}"
        case MaskedLanguageModelHead():
            yield f"dense, {head.activation}, norm"
        case SequenceClassificationHead():
            yield {"first": "the first token", "last": "the last token", "mean": "the mean over tokens"}[head.pooling]
            if head.activation is not None:
                yield f"dense, {head.activation}"
        case EmbeddingHead():
            pooled = {"first": "the first token", "last": "the last token", "mean": "the mean", "max": "the maximum"}
            yield pooled[head.pooling] + (" over tokens" if head.pooling in ("mean", "max") else "")
            if head.normalize:
                yield "normalised to length 1"
        case _:
            pass


def _costs(spec: Transformer, context: int | None, dtype: str, quantize_cache: str | None) -> Iterator[str]:
    facts, kept = summary(spec, context, dtype, quantize_cache), quantize_cache or dtype
    parameters, flops, at = facts["parameters"], facts["flops"], f"{facts['context']:,} tokens"
    active = f" · active {parameters['active']:,}" if parameters["active"] < parameters["total"] else ""
    share = parameters["embedding"] / parameters["total"]
    yield f"parameters     {parameters['total']:,}{active} · embeddings {parameters['embedding']:,} ({share:.0%})"
    yield f"weights        {scaled(facts['weight_bytes'], 'B')} in {dtype}"
    scores = flops["parts"].get("scores", 0) / flops["forward_per_token"]
    forward = f"{scaled(flops['forward_per_token'], 'FLOP')} forward, the mean over {at}"
    yield f"FLOPs a token  {forward} ({scores:.0%} attention scores)"
    if "decode_per_token" in flops:
        yield f"               {scaled(flops['decode_per_token'], 'FLOP')} to decode one, {at} in view"
        cache = f"{facts['kv_bytes_per_token']:,} B a token · {scaled(facts['kv_bytes'], 'B')} at {at}, in {kept}"
        yield f"KV cache       {cache}"
    known = f"trained for {spec.context:,} tokens" if spec.context is not None else "trained length unknown"
    yield f"context        {known}{_limit(spec)}"


def _limit(spec: Transformer) -> str:
    limits = [stack.embeddings.position for stack in spec.stacks().values()]
    sizes = [position.size for position in limits if isinstance(position, Learned)]
    return f" · limit: {min(sizes):,} learned positions" if sizes else " · no limit"


def scaled(number: int | float, unit: str) -> str:
    """A number to three digits with a decimal prefix: 134515008 B is 135 MB."""
    power = 0
    while number >= 999.5 and power < len(PREFIXES) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {PREFIXES[power]}{unit}"


def several(number: int, noun: str) -> str:
    """So many of them: 1 layer, 2 layers."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _words(name: str) -> str:
    return name.replace("_", " ")
