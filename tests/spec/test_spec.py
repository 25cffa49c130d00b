"""Specs: exact through JSON, strict, and refused in one sentence that names the path."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from odd_specs import odd_model
from pydantic import ValidationError

from anyformer import spec
from anyformer.errors import SpecError
from anyformer.spec.base import Part

POSITIVE = st.integers(1, 10**12)
NUMBER = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
PROBABILITY = st.floats(0, 1, exclude_max=True)
FLAG = st.booleans()


def maybe(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | strategy


ACTIVATIONS = st.sampled_from(["relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh"])
NORMS = st.one_of(
    st.builds(spec.Norm, kind=st.just("layer"), eps=NUMBER, weight=st.just(True), bias=FLAG, unit_offset=FLAG),
    st.builds(spec.Norm, kind=st.just("rms"), eps=NUMBER, weight=st.just(False)),
)
DIVISORS = st.tuples(NUMBER)
SCALINGS = st.one_of(
    st.builds(spec.Llama3Scaling, factor=NUMBER, low=NUMBER, high=NUMBER, original_context=POSITIVE),
    st.builds(spec.LinearScaling, factor=NUMBER),
    st.builds(spec.DynamicScaling, factor=NUMBER, original_context=POSITIVE),
    st.builds(
        spec.YarnScaling,
        factor=NUMBER,
        original_context=POSITIVE,
        beta_fast=NUMBER,
        beta_slow=NUMBER,
        truncate=FLAG,
        attention_factor=maybe(NUMBER),
    ),
    st.builds(spec.LongRopeScaling, short=DIVISORS, long=DIVISORS, factor=NUMBER, original_context=POSITIVE),
)
POSITIONS = st.one_of(
    st.builds(spec.Rotary, base=NUMBER, dim=st.just(2), interleaved=FLAG, scaling=maybe(SCALINGS)),
    st.builds(spec.Rotary, base=NUMBER),
    st.builds(spec.Alibi, max_bias=NUMBER),
    st.builds(
        spec.RelativeBuckets, buckets=st.integers(4, 99), max_distance=st.integers(100, 10**6), bidirectional=FLAG
    ),
)


@st.composite
def attentions(draw: st.DrawFn, cross: bool = False) -> spec.Attention:
    kv_heads = draw(st.integers(1, 10**6))
    own = (
        {}
        if cross
        else {"position": draw(maybe(POSITIONS)), "window": draw(maybe(st.tuples(maybe(POSITIVE), maybe(POSITIVE))))}
    )
    return spec.Attention(
        heads=kv_heads * draw(st.integers(1, 9)),
        kv_heads=kv_heads,
        head_dim=2 * draw(POSITIVE),
        source="cross" if cross else "self",
        visibility="full" if cross else draw(st.sampled_from(["causal", "full", "prefix"])),
        bias=draw(FLAG),
        output_bias=draw(FLAG),
        query_key_norm=draw(maybe(NORMS)),
        query_key_norm_over=draw(st.sampled_from(["head", "width"])),
        soft_cap=draw(maybe(NUMBER)),
        scale=draw(maybe(NUMBER)),
        sinks=draw(FLAG),
        dropout=draw(PROBABILITY),
        **own,
    )


FEED_FORWARDS = st.builds(
    spec.FeedForward, hidden=POSITIVE, activation=ACTIVATIONS, gated=FLAG, bias=FLAG, dropout=PROBABILITY
)
EXPERTS = st.builds(
    spec.MixtureOfExperts,
    experts=st.integers(8, 99),
    top_k=st.integers(1, 8),
    hidden=POSITIVE,
    activation=ACTIVATIONS,
    gated=FLAG,
    normalize=FLAG,
    shared_hidden=POSITIVE,
    shared_gate=FLAG,
    balance=st.floats(0, 9),
)


@st.composite
def blocks(draw: st.DrawFn, cross: bool = False) -> spec.Block:
    mixers: list[spec.Mixer] = [draw(attentions()), draw(FEED_FORWARDS | EXPERTS)]
    if cross:
        mixers.insert(1, draw(attentions(cross=True)))
    parallel = draw(FLAG)
    placements = ["pre", "output"] if parallel else ["pre", "post", "output", "both"]
    branches = [
        spec.Branch(
            mixer=m, norm=draw(maybe(NORMS)), placement=draw(st.sampled_from(placements)), dropout=draw(PROBABILITY)
        )
        for m in mixers
    ]
    if parallel and draw(FLAG):
        branches[1] = branches[1].replace(norm="shared", placement="pre")
    return spec.Block(branches=tuple(branches), parallel=parallel, repeat=draw(POSITIVE))


@st.composite
def stacks(draw: st.DrawFn, cross: bool = False) -> spec.Stack:
    return spec.Stack(
        dim=2 * draw(POSITIVE),
        depth=draw(POSITIVE),
        pattern=tuple(draw(st.lists(blocks(cross), min_size=1, max_size=2))),
        embeddings=spec.Embeddings(
            vocabulary=draw(st.just(7) if cross else POSITIVE),
            position=draw(
                maybe(
                    st.builds(spec.Sinusoidal, base=NUMBER)
                    | st.builds(spec.Learned, size=POSITIVE, offset=st.integers(0, 9))
                )
            ),
            segments=draw(st.integers(0, 4)),
            scale=draw(maybe(NUMBER)),
            norm=draw(maybe(NORMS)),
            dropout=draw(PROBABILITY),
        ),
        norm=draw(maybe(NORMS)),
        dropout=draw(PROBABILITY),
    )


HEADS = st.one_of(
    st.builds(spec.LanguageModelHead, tied=FLAG, bias=FLAG, scale=maybe(NUMBER), soft_cap=maybe(NUMBER)),
    st.builds(spec.MaskedLanguageModelHead, tied=FLAG, bias=FLAG, activation=ACTIVATIONS, norm=NORMS),
    st.builds(spec.SequenceClassificationHead, labels=POSITIVE, activation=maybe(ACTIVATIONS), dropout=PROBABILITY),
    st.builds(spec.TokenClassificationHead, labels=POSITIVE, bias=FLAG, dropout=PROBABILITY),
    st.builds(spec.EmbeddingHead, pooling=st.sampled_from(["first", "last", "mean", "max"]), normalize=FLAG),
)


@st.composite
def transformers(draw: st.DrawFn) -> spec.Transformer:
    shape = draw(st.sampled_from(["encoder", "decoder", "both"]))
    return spec.Transformer(
        encoder=draw(stacks()) if shape != "decoder" else None,
        decoder=draw(stacks(cross=shape == "both")) if shape != "encoder" else None,
        head=draw(HEADS),
        context=draw(maybe(POSITIVE)),
        initialization=spec.Initialization(
            std=draw(maybe(NUMBER)), embedding_std=draw(maybe(NUMBER)), depth_scaled=draw(FLAG)
        ),
    )


@settings(max_examples=120)
@given(transformers())
def test_json_gives_back_an_equal_spec(whole: spec.Transformer) -> None:
    """Any spec, with any floating-point number in it, to the last bit; its JSON is the same again, and so is its hash;
    key order does not matter."""
    text = whole.to_json()
    again = spec.Transformer.from_json(text)
    assert again == whole and hash(again) == hash(whole)
    assert again.to_json() == text
    shuffled = json.dumps(json.loads(text), sort_keys=True)
    assert spec.Transformer.from_json(shuffled) == whole
    assert spec.Transformer.from_data(whole.model_dump()) == whole


@pytest.mark.parametrize("shape", ["encoder", "decoder", "encoder-decoder"])
def test_layers_are_the_pattern_spelled_out(shape: str) -> None:
    """As many as the depth says, cyclically; the shape is what the stacks make it."""
    for seed in range(20):
        whole = odd_model(random.Random(f"{shape} {seed}"), shape)
        assert whole.shape == shape
        assert whole.output is (whole.decoder or whole.encoder)
        assert list(whole.stacks()) == [name for name in ("encoder", "decoder") if getattr(whole, name)]
        for stack in whole.stacks().values():
            spelled = [block for block in stack.pattern for _ in range(block.repeat)] * stack.depth
            assert stack.layers() == spelled[: stack.depth]


def paths(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every object in plain data."""
    found = [path] if isinstance(data, dict) else []
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return found + [deeper for key, child in children for deeper in paths(child, (*path, key))]


def test_an_unknown_key_anywhere_is_named_by_its_path() -> None:
    """In every object of a large spec: the error names the key behind the steps that lead to it."""
    whole = odd_model(random.Random(3), "encoder-decoder")
    data = json.loads(whole.to_json())
    places = paths(data)
    assert len(places) > 20
    for place in places:
        changed = json.loads(json.dumps(data))
        target = changed
        for step in place:
            target = target[step]
        target["colour"] = "blue"
        with pytest.raises(SpecError) as error:
            spec.Transformer.from_data(changed)
        sentence = str(error.value)
        assert "\n" not in sentence and "has no key '" in sentence and "remove it" in sentence
        named = sentence.split("'")[1].split(".")
        assert named[-1] == "colour"
        steps = iter(named)
        # Union members put their kind between the steps.
        assert all(str(step) in steps for step in place), (place, sentence)


@given(st.data())
@settings(max_examples=150)
def test_whatever_value_stands_anywhere_is_read_or_refused_in_a_sentence(data: st.DataObject) -> None:
    """Any value in any place: an equal spec, another spec that round-trips, or one `SpecError` in one line."""
    plain = json.loads(odd_model(random.Random(data.draw(st.integers(0, 5))), "encoder-decoder").to_json())
    place = data.draw(st.sampled_from(paths(plain)))
    target = plain
    for step in place:
        target = target[step]
    assume(target)
    key = data.draw(st.sampled_from(sorted(target)))
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    target[key] = data.draw(
        scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=4), scalars, max_size=2)
    )
    try:
        read = spec.Transformer.from_data(plain)
    except SpecError as error:
        assert "\n" not in str(error) and ("wrong at '" in str(error) or "has no key '" in str(error))
    else:
        assert spec.Transformer.from_json(read.to_json()) == read


ATTENTION = {"heads": 4, "kv_heads": 2, "head_dim": 8, "visibility": "causal"}
FEED_FORWARD = {"kind": "feed_forward", "hidden": 8}
BRANCH = {"mixer": FEED_FORWARD, "norm": None}
STACK = {"dim": 8, "depth": 1, "pattern": [{"branches": [BRANCH]}], "embeddings": {"vocabulary": 5}}
CROSS = {"kind": "attention", **ATTENTION, "source": "cross", "visibility": "full"}
CROSSING = {**STACK, "pattern": [{"branches": [{"mixer": CROSS, "norm": None}]}]}
SELVES = [{"branches": [{"mixer": {"kind": "attention", **ATTENTION, "heads": n}, "norm": None}]} for n in (4, 8)]
TABLE = {"bidirectional": True}
HEAD = {"kind": "language_model"}


@pytest.mark.parametrize(
    ("part", "data", "sentence"),
    [
        (spec.Norm, {"kind": "rms", "bias": True}, "an rms norm has no bias; use kind 'layer' or bias false"),
        (spec.Norm, {"kind": "rms", "weight": False, "unit_offset": True}, "unit_offset needs a weight to offset"),
        (spec.Norm, {"kind": "layer", "weight": False, "bias": True}, "a norm with a bias has a weight too"),
        (spec.Norm, {"kind": "layer", "eps": 0}, "wrong at 'eps': input should be greater than 0"),
        (spec.Norm, {"kind": "batch"}, "wrong at 'kind': input should be 'layer' or 'rms'"),
        (spec.Attention, ATTENTION | {"kv_heads": 3}, "kv_heads=3 does not divide heads=4; every key/value head must"),
        (
            spec.Attention,
            ATTENTION | {"head_dim": 7, "position": {"kind": "rotary"}},
            "rotary positions turn 7 of head_dim=7",
        ),
        (
            spec.Attention,
            ATTENTION | {"position": {"kind": "rotary", "dim": 10}},
            "turn 10 of head_dim=8 channels; it must",
        ),
        (spec.Attention, CROSS | {"window": [3, 3]}, "cross-attention has neither positions nor a window"),
        (spec.Attention, CROSS | {"position": {"kind": "alibi"}}, "cross-attention has neither positions nor a window"),
        (
            spec.Attention,
            CROSS | {"visibility": "causal"},
            "cross-attention sees all of its source; use visibility 'full'",
        ),
        (spec.Attention, ATTENTION | {"window": [0, None]}, "wrong at 'window.0': input should be greater than 0"),
        (spec.Attention, ATTENTION | {"heads": "4"}, "wrong at 'heads': input should be a valid integer"),
        (spec.Attention, ATTENTION | {"heads": True}, "wrong at 'heads': input should be a valid integer"),
        (spec.Attention, ATTENTION | {"heads": 4.0}, "wrong at 'heads': input should be a valid integer"),
        (spec.Attention, ATTENTION | {"bias": "no"}, "wrong at 'bias': input should be a valid boolean"),
        (spec.Attention, ATTENTION | {"scale": float("nan")}, "wrong at 'scale': input should be a finite number"),
        (spec.Attention, ATTENTION | {"dropout": 1.0}, "wrong at 'dropout': input should be less than 1"),
        (spec.Attention, {"heads": 4}, "wrong at 'kv_heads': field required"),
        (spec.RelativeBuckets, {"buckets": 3, **TABLE}, "3 buckets up to distance 128 leave none to grow; use more"),
        (spec.RelativeBuckets, {"max_distance": 8, **TABLE}, "32 buckets up to distance 8 leave none to grow"),
        (spec.MixtureOfExperts, {"experts": 2, "top_k": 3, "hidden": 4}, "top_k=3 is more than experts=2"),
        (
            spec.MixtureOfExperts,
            {"experts": 2, "top_k": 1, "hidden": 4, "shared_gate": True},
            "shared_gate needs a shared expert; set shared_hidden",
        ),
        (
            spec.Branch,
            {"mixer": {"kind": "convolution"}, "norm": None},
            "no mixer is of kind 'convolution'; known kinds: att",
        ),
        (
            spec.Branch,
            {"mixer": {}, "norm": None},
            "no mixer is of kind None; known kinds: attention, ",
        ),
        (spec.Branch, {"mixer": {"kind": ["attention"]}, "norm": None}, "no mixer is of kind ['attention']; known"),
        (spec.Block, {"branches": []}, "wrong at 'branches'"),
        (
            spec.Block,
            {"branches": [BRANCH, BRANCH]},
            "branches need different roles, these are feed_forward, feed_forward",
        ),
        (spec.Block, {"branches": [BRANCH | {"norm": "shared"}]}, "norm 'shared' needs a parallel block"),
        (
            spec.Block,
            {"parallel": True, "branches": [BRANCH | {"placement": "post"}]},
            "a parallel block cannot place a norm 'post'; use 'pre' or 'output'",
        ),
        (
            spec.Stack,
            STACK | {"pattern": SELVES, "relative": TABLE},
            "share a relative table need equal heads, these have [4, 8]",
        ),
        (
            spec.Stack,
            STACK | {"relative": TABLE},
            "a relative table needs self-attention that reads it; leave relative out",
        ),
        (
            spec.Stack,
            STACK | {"dim": 7, "embeddings": {"vocabulary": 5, "position": {"kind": "sinusoidal"}}},
            "sinusoidal positions need an even dim, not 7",
        ),
        (spec.Transformer, {"head": HEAD}, "a Transformer needs an encoder, a decoder or both"),
        (
            spec.Transformer,
            {"decoder": STACK, "head": HEAD, "shared_embedding": True},
            "shared_embedding needs an encoder and",
        ),
        (
            spec.Transformer,
            {"encoder": STACK, "decoder": STACK | {"dim": 6}, "head": HEAD, "shared_embedding": True},
            "shared_embedding needs equal tables, these are (5, 8) and (5, 6)",
        ),
        (
            spec.Transformer,
            {"decoder": CROSSING, "head": HEAD},
            "the decoder has cross-attention but no encoder to attend to",
        ),
        (
            spec.Transformer,
            {"encoder": CROSSING, "head": HEAD},
            "the encoder has cross-attention but no encoder to attend to",
        ),
        (
            spec.Transformer,
            {"encoder": CROSSING, "decoder": CROSSING, "head": HEAD},
            "the encoder has cross-attention but no encoder to attend to",
        ),
        (
            spec.Transformer,
            {"decoder": STACK, "head": {"kind": "regression"}},
            "wrong at 'head': input tag 'regression' found using 'kind' does not match any of the expected tags",
        ),
        (
            spec.Transformer,
            {
                "decoder": STACK
                | {
                    "pattern": [
                        {"branches": [{"mixer": ATTENTION | {"kind": "attention", "kv_heads": 3}, "norm": None}]}
                    ]
                },
                "head": HEAD,
            },
            "wrong at 'decoder.pattern.0.branches.0.mixer': kv_heads=3 does not divide heads=4",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(part: type[Part], data: dict, sentence: str) -> None:
    """One line: what, where, and what to do."""
    with pytest.raises(SpecError) as error:
        part.from_data(data)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(part.__name__)


@pytest.mark.parametrize("text", ["", "{", "[1,]", "not json", '{"a": 1} x'])
def test_text_that_is_no_json_is_said_to_be_none(text: str) -> None:
    """With the place where it stops being JSON."""
    with pytest.raises(SpecError, match=r"the spec is not JSON: .*line 1"):
        spec.Transformer.from_json(text)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"spec"'])
def test_json_that_is_no_object_is_refused(text: str) -> None:
    """A list is no Transformer."""
    with pytest.raises(SpecError, match="Transformer is wrong: input should be"):
        spec.Transformer.from_json(text)


def test_specs_are_frozen() -> None:
    """Nothing about a spec changes after it was made; `replace` gives another, checked again."""
    norm = spec.Norm(kind="rms")
    with pytest.raises(ValidationError):
        norm.eps = 1.0  # type: ignore[misc]
    assert norm.replace(eps=1.0) == spec.Norm(kind="rms", eps=1.0)
    assert norm.eps == 1e-5
    with pytest.raises(SpecError, match="an rms norm has no bias"):
        norm.replace(bias=True)


def test_reading_a_spec_never_waits_for_torch() -> None:
    """In a fresh interpreter, a spec is read and written without torch or numpy being imported."""
    import subprocess
    import sys

    program = (
        "import sys; from anyformer import spec;"
        "whole = spec.Transformer.from_json(sys.stdin.read()); print(whole.to_json(), end='');"
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    )
    text = odd_model(random.Random(0), "encoder-decoder").to_json()
    done = subprocess.run([sys.executable, "-c", program], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, text), done.stderr


def test_a_family_may_add_a_mixer_of_its_own() -> None:
    """Registered by its kind, it reads and writes like the parts of the house, and without a module it says so."""
    from typing import ClassVar, Literal

    from anyformer.spec import mixers

    @spec.register_mixer
    class Shift(spec.Mixer, frozen=True):
        kind: Literal["shift"] = "shift"
        by: int = 1
        role: ClassVar[str] = "shift"

    try:
        branch = spec.Branch(mixer=Shift(by=3), norm=None)
        assert branch.name == "shift"
        assert spec.Branch.from_json(branch.to_json()) == branch
        with pytest.raises(SpecError, match=r"the mixer kind .shift. has no module; override Mixer\.module"):
            branch.mixer.module()
        with pytest.raises(SpecError, match=r"Branch has no key 'mixer\.sideways'"):
            spec.Branch.from_data({"mixer": {"kind": "shift", "sideways": 1}, "norm": None})
    finally:
        del mixers._MIXERS["shift"]
