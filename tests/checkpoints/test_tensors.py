"""Tables of names at work on tensors: fused, transposed, stacked, tied, aliased, left aside, and exact both ways."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor as Numbers

from anyformer import families
from anyformer.checkpoints.tensors import Loaded, load, ties_output, unload
from anyformer.checkpoints.weights import DTYPES, Saved
from anyformer.errors import CheckpointError
from anyformer.families.names import PairedRows, Row, Table, Tensor, Transpose, Unused
from anyformer.planning.shapes import shapes
from anyformer.spec import (
    Attention,
    Block,
    Branch,
    EmbeddingHead,
    Embeddings,
    FeedForward,
    LanguageModelHead,
    MixtureOfExperts,
    Norm,
    Rotary,
    Stack,
    Transformer,
)

NAMES = {dtype: name for name, dtype in DTYPES.items()} | {torch.int64: "I64", torch.int8: "I8"}


class Memory:
    """A source in memory, which notes what is read."""

    def __init__(self, tensors: dict[str, Numbers]) -> None:
        self.where, self.tensors, self.reads = "memory", tensors, list[str]()
        self.saved = {name: Saved(tuple(one.shape), NAMES[one.dtype]) for name, one in tensors.items()}

    def read(self, name: str) -> Numbers:
        self.reads.append(name)
        return self.tensors[name]


def spec(**changes: object) -> Transformer:
    """A small decoder of two layers, the second with experts."""
    norm = Norm(kind="layer", bias=True)
    attention = Attention(heads=6, kv_heads=3, head_dim=4, visibility="causal", position=Rotary(), bias=True)
    mixers = (FeedForward(hidden=10, gated=True), MixtureOfExperts(experts=3, top_k=2, hidden=5))
    blocks = tuple(
        Block(branches=(Branch(mixer=attention, norm=norm), Branch(mixer=mixer, norm=norm))) for mixer in mixers
    )
    stack = Stack(dim=8, depth=2, pattern=blocks, embeddings=Embeddings(vocabulary=11), norm=norm)
    return Transformer(decoder=stack, head=LanguageModelHead(tied=True, bias=True)).replace(**changes)


def table(groups: int = 1, qkv_layout: tuple[object, ...] = (Transpose(),)) -> Table:
    layer = "decoder.layers.*"
    return (
        Tensor("base.wte", "decoder.embeddings.tokens.weight", aliases=("shared.wte",)),
        Tensor(
            "base.h.*.qkv.*",
            tuple(f"{layer}.attention.{part}.*" for part in ("query", "key", "value")),
            qkv_layout,  # type: ignore[arg-type]
            groups=groups,
        ),
        Tensor("base.h.*.proj.*", f"{layer}.attention.output.*", (Transpose(),)),
        Tensor("base.h.*.LayerNorm_1.*", f"{layer}.attention_norm.*"),
        Tensor("base.h.*.LayerNorm_2.*", f"{layer}.feed_forward_norm.*"),
        Tensor("base.h.*.LayerNorm_2.*", f"{layer}.experts_norm.*"),
        Tensor("base.h.*.gate_up.*", (f"{layer}.feed_forward.gate.*", f"{layer}.feed_forward.up.*")),
        Tensor("base.h.*.down.*", f"{layer}.feed_forward.down.*"),
        Tensor("base.h.*.router", f"{layer}.experts.router.weight"),
        Tensor("base.h.*.experts.#.w1", f"{layer}.experts.gate"),
        Tensor("base.h.*.experts.#.w3", f"{layer}.experts.up"),
        Tensor("base.h.*.experts.#.w2", f"{layer}.experts.down", (Transpose(),)),
        Tensor("base.ln.*", "decoder.norm.*"),
        Tensor("lm_head.weight", "head.output.weight"),
        Tensor("final_logits_bias", "head.output.bias", (Row(),)),
        Unused("base.h.**.mask", "a mask"),
    )


def numbers(model: Transformer, dtype: torch.dtype = torch.float32) -> dict[str, Numbers]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes(model).items()}


def saved(model: Transformer, names: Table, drop: str = "") -> dict[str, Numbers]:
    lazy, sizes = unload(numbers(model), model, names, drop=drop)
    tensors = {name: lazy[name].contiguous() for name in lazy}
    assert sizes == {name: tensor.nbytes for name, tensor in tensors.items()}
    return tensors


def read(tensors: dict[str, Numbers], model: Transformer | None = None, names: Table | None = None) -> Loaded:
    return load(Memory(tensors), model or spec(), names or table(), prefix="base.")


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_both_ways(groups: int, tied: bool) -> None:
    """Every rearrangement and its way back give the very same numbers, of every parameter."""
    model, names = spec(head=LanguageModelHead(tied=tied, bias=True)), table(groups)
    tensors = saved(model, names)
    assert ("lm_head.weight" in tensors) is not tied
    loaded = read(tensors, model, names)
    ours = numbers(model)
    assert loaded.tensors.keys() == ours.keys() and len(loaded.tensors) == len(ours)
    for name, tensor in ours.items():
        assert torch.equal(loaded.tensors[name], tensor), name


def test_what_the_file_holds() -> None:
    """Shapes and orders in the file are those of the table's words."""
    tensors, ours = saved(spec(), table()), numbers(spec())
    assert tensors["base.h.0.qkv.weight"].shape == (8, (6 + 3 + 3) * 4)
    assert torch.equal(tensors["base.h.0.qkv.weight"][:, :24], ours["decoder.layers.0.attention.query.weight"].T)
    assert torch.equal(tensors["base.h.0.qkv.bias"][24:36], ours["decoder.layers.0.attention.key.bias"])
    assert tensors["final_logits_bias"].shape == (1, 11)
    assert torch.equal(tensors["base.h.1.experts.2.w1"], ours["decoder.layers.1.experts.gate"][2])
    assert torch.equal(tensors["base.h.1.experts.2.w2"], ours["decoder.layers.1.experts.down"][2].T)


def test_rounds_of_fused_rows() -> None:
    """With groups, each round holds its share of every one: here two query heads, a key head, a value head."""
    fused = saved(spec(), table(3, ()))["base.h.0.qkv.weight"]
    ours = numbers(spec())
    query, key, value = (ours[f"decoder.layers.0.attention.{part}.weight"] for part in ("query", "key", "value"))
    rounds = [torch.cat([query[8 * k : 8 * k + 8], key[4 * k : 4 * k + 4], value[4 * k : 4 * k + 4]]) for k in range(3)]
    assert torch.equal(fused, torch.cat(rounds))


def test_each_tensor_is_read_when_it_is_asked_for() -> None:
    """Opening reads nothing, and asking for one of ours reads just what it is made of."""
    source = Memory(saved(spec(), table()))
    loaded = load(source, spec(), table())
    assert source.reads == []
    loaded.tensors["decoder.layers.1.experts.up"]
    assert source.reads == [f"base.h.1.experts.{index}.w3" for index in range(3)]


def test_names_of_other_versions() -> None:
    """Without the prefix of models with heads, with gamma and beta, under an alias."""
    tensors = saved(spec(), table())
    bare = {name.removeprefix("base."): tensor for name, tensor in tensors.items()}
    old = {
        name.replace("LayerNorm_1.weight", "LayerNorm_1.gamma").replace("LayerNorm_1.bias", "LayerNorm_1.beta"): tensor
        for name, tensor in tensors.items()
    }
    alias = {("shared.wte" if name == "base.wte" else name): tensor for name, tensor in tensors.items()}
    assert bare.keys() != tensors.keys() != old.keys() and alias.keys() != tensors.keys()
    for form in (bare, old, alias):
        loaded = read(form)
        assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in numbers(spec()).items())


def test_duplicates_must_be_equal() -> None:
    """A tied matrix and an alias may stand in the file once more, if they are the same to the bit."""
    tensors = saved(spec(), table())
    table_of_tokens = tensors["base.wte"]
    read({**tensors, "lm_head.weight": table_of_tokens.clone(), "shared.wte": table_of_tokens.clone()})
    for name in ("lm_head.weight", "shared.wte"):
        with pytest.raises(CheckpointError, match=f"memory: {name} differs from base.wte.*tie_word_embeddings"):
            read({**tensors, name: table_of_tokens + 1e-3})
        with pytest.raises(CheckpointError, match=f"{name} differs"):
            read({**tensors, name: table_of_tokens.double()})


def test_an_alias_alone_will_do() -> None:
    """Files that keep only the tied matrix under the head's name."""
    tensors = saved(spec(), table())
    tensors["lm_head.weight"] = tensors.pop("base.wte")
    expected = numbers(spec())["decoder.embeddings.tokens.weight"]
    assert torch.equal(read(tensors).tensors["decoder.embeddings.tokens.weight"], expected)


@pytest.mark.parametrize(
    ("output", "tied"),
    [(None, True), (lambda tokens: tokens.clone(), True), (lambda tokens: -tokens, False)],
    ids=["absent", "equal", "different"],
)
def test_tied_as_the_file_says(output: Callable[[Numbers], Numbers] | None, tied: bool) -> None:
    """Tied exactly if the output matrix is absent or equal."""
    tensors = saved(spec(), table())
    if output is not None:
        tensors["lm_head.weight"] = output(tensors["base.wte"])
    assert ties_output(Memory(tensors), spec(), table(), "base.") is tied


def test_missing_tensors_are_named() -> None:
    """The first three by name, the rest by number."""
    tensors = saved(spec(), table())
    with pytest.raises(CheckpointError, match=r"memory lacks base.ln.bias; its config"):
        read({name: tensor for name, tensor in tensors.items() if name != "base.ln.bias"})
    with pytest.raises(CheckpointError, match=r"memory lacks base.wte, base.h.0.qkv.weight, .* and \d+ more;"):
        read({f"unrelated.{index}": torch.ones(1) for index in range(9)})


def test_tensors_left_over_are_named() -> None:
    """What nobody reads is an error, unless a reason is on the list or the caller asks for it."""
    tensors = saved(spec(), table())
    with pytest.raises(CheckpointError, match=r"memory holds base.h.2.router, which.*ignore=\['base.h.2.router'\]"):
        read({**tensors, "base.h.2.router": torch.zeros(1)})
    loaded = load(Memory({**tensors, "extra.0": torch.zeros(1)}), spec(), table(), prefix="base.", ignore=["extra.*"])
    assert dict(loaded.reasons) == {"extra.0": "as you asked"} and not loaded.unused


def test_what_is_left_aside_for_a_reason() -> None:
    """The family's list and the shared one, of any type of number; carried, each with its reason."""
    aside = {"base.h.0.attn.mask": torch.ones(2, dtype=torch.int8), "position_ids": torch.arange(4)}
    loaded = read({**saved(spec(), table()), **aside})
    assert loaded.reasons["base.h.0.attn.mask"] == "a mask" and "0, 1, 2" in loaded.reasons["position_ids"]
    assert loaded.unused.keys() == aside.keys()
    assert all(torch.equal(loaded.unused[name], tensor) for name, tensor in aside.items())


def test_another_head_s_tensors() -> None:
    """Where only embeddings are wanted, tensors outside the base model belong to a head and are carried."""
    model = spec(head=EmbeddingHead())
    loaded = read(saved(spec(), table()), model)
    assert loaded.reasons == {"final_logits_bias": "of a head, where only embeddings are asked for"}
    with pytest.raises(CheckpointError, match=r"holds base.other"):
        read({**saved(model, table()), "base.other": torch.zeros(1)}, model)


def test_the_base_model_s_names() -> None:
    """A model without a head is saved without the prefix."""
    assert "wte" in saved(spec(head=EmbeddingHead()), table(), drop="base.")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "base.h.0.qkv.weight",
            lambda x: x.T,
            r"base.h.0.qkv.weight has shape \(48, 8\), and the config asks for \(8, 48\)",
        ),
        ("base.h.1.experts.1.w2", lambda x: x[:-1], r"base.h.1.experts.1.w2 has shape"),
        ("base.wte", lambda x: x.to(torch.int8), "base.wte is of type I8; parameters may be F64, F32, F16, BF16"),
    ],
)
def test_unfit_tensors_are_named(name: str, change: Callable[[Numbers], Numbers], message: str) -> None:
    """Shape found and wanted; type found and possible."""
    tensors = saved(spec(), table())
    with pytest.raises(CheckpointError, match=f"memory: {message}"):
        read({**tensors, name: change(tensors[name])})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_type_of_most_numbers(dtype: torch.dtype) -> None:
    """A file's type is that of most of its numbers; each tensor keeps its own."""
    tensors = {name: tensor.to(dtype) for name, tensor in saved(spec(), table()).items()}
    tensors["base.ln.bias"] = tensors["base.ln.bias"].float()
    loaded = read(tensors)
    assert loaded.dtype == dtype
    assert loaded.tensors["decoder.norm.bias"].dtype == torch.float32
    assert loaded.tensors["decoder.layers.1.experts.down"].dtype == dtype


def test_only_the_spec_s_parameters_are_saved() -> None:
    """A model that is not its spec's is refused before a byte is written."""
    ours = numbers(spec())
    unload({**ours, "head.output.weight": ours["decoder.embeddings.tokens.weight"]}, spec(), table())
    with pytest.raises(CheckpointError, match=r"not those of its spec: decoder.adapter"):
        unload({**ours, "decoder.adapter": torch.zeros(1)}, spec(), table())
    with pytest.raises(CheckpointError, match=r"not those of its spec: decoder.norm.bias"):
        unload({name: tensor for name, tensor in ours.items() if name != "decoder.norm.bias"}, spec(), table())
    with pytest.raises(CheckpointError, match=r"decoder.norm.bias has shape \(9,\) and its spec says \(8,\)"):
        unload({**ours, "decoder.norm.bias": torch.zeros(9)}, spec(), table())
    with pytest.raises(CheckpointError, match=r"no line for decoder.norm.bias"):
        unload(ours, spec(), [line for line in table() if line.saved != "base.ln.*"])


def test_llama_cpp_rows() -> None:
    """The GGUF table of llama puts together what turns together, for queries and for fewer key heads."""
    model = families.llama("tiny", num_key_value_heads=1)
    gguf = families.llama.gguf
    assert gguf is not None
    ours = numbers(model)
    lazy, _ = unload(ours, model, gguf.tensors(model))
    for name, heads, file in (("query", 4, "attn_q"), ("key", 1, "attn_k")):
        weight = ours[f"decoder.layers.1.attention.{name}.weight"]
        expected = weight.reshape(heads, 2, 16, 128).swapaxes(1, 2).reshape(weight.shape)
        assert torch.equal(lazy[f"blk.1.{file}.weight"], expected)
        assert torch.equal(PairedRows(heads).to_ours(expected), weight)
