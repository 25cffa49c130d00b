"""A family from outside the package, whole in one file: fused and transposed projections, ALiBi, a mixer of its own."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from anyformer.families import Family, register
from anyformer.families.config import Config
from anyformer.families.family import branch
from anyformer.families.names import Table, Tensor, Transpose, Unused
from anyformer.spec import (
    Alibi,
    Attention,
    Block,
    Branch,
    Embeddings,
    LanguageModelHead,
    Mixer,
    Norm,
    Stack,
    Transformer,
    register_mixer,
)


@register_mixer
class Bilinear(Mixer):
    """down(gate(x) · up(x)): a gated feed-forward without an activation."""

    kind: Literal["toy_bilinear"] = "toy_bilinear"
    hidden: int

    role: ClassVar[str] = "bilinear"

    def shapes(self, dim: int, source_dim: int | None = None) -> dict[str, tuple[int, ...]]:
        inward = (self.hidden, dim)
        return {"gate.weight": inward, "up.weight": inward, "down.weight": (dim, self.hidden)}

    def module(self) -> Any:
        from torch import nn

        class Module(nn.Module):
            def __init__(self, bilinear: Bilinear, dim: int) -> None:
                super().__init__()
                self.gate = nn.Linear(dim, bilinear.hidden, bias=False)
                self.up = nn.Linear(dim, bilinear.hidden, bias=False)
                self.down = nn.Linear(bilinear.hidden, dim, bias=False)

            def forward(self, x: Any, context: Any, cache: Any = None) -> Any:
                return self.down(self.gate(x) * self.up(x))

        return Module


def read(config: Config) -> Transformer:
    heads, width = config.size("heads"), config.size("width")
    norm = Norm(kind="layer", bias=True)
    attention = Attention(
        heads=heads, kv_heads=1, head_dim=config.size("head_width"), visibility="causal", position=Alibi(), bias=True
    )
    mixers = (attention, Bilinear(hidden=config.size("hidden")))
    stack = Stack(
        dim=width,
        depth=config.size("layers"),
        pattern=(Block(branches=tuple(Branch(mixer=mixer, norm=norm) for mixer in mixers)),),
        embeddings=Embeddings(vocabulary=config.size("vocab_size"), norm=norm),
        norm=norm,
    )
    head = LanguageModelHead(tied=config.flag("tie_word_embeddings", default=True))
    return Transformer(decoder=stack, head=config.head(head))


def write(spec: Transformer) -> dict[str, Any]:
    attention, _ = branch(spec.decoder, "attention", Attention)
    bilinear, _ = branch(spec.decoder, "bilinear", Bilinear)
    return {
        "vocab_size": spec.output.embeddings.vocabulary,
        "width": spec.output.dim,
        "layers": spec.output.depth,
        "heads": attention.heads,
        "head_width": attention.head_dim,
        "hidden": bilinear.hidden,
    }


def tensors(spec: Transformer) -> Table:
    attention = "decoder.layers.*.attention"
    return (
        Tensor("toy.embed", "decoder.embeddings.tokens.weight"),
        Tensor("toy.embed_norm.*", "decoder.embeddings.norm.*"),
        Tensor("toy.h.*.qkv.*", tuple(f"{attention}.{part}.*" for part in ("query", "key", "value")), (Transpose(),)),
        Tensor("toy.h.*.out.*", f"{attention}.output.*", (Transpose(),)),
        Tensor("toy.h.*.norm_1.*", "decoder.layers.*.attention_norm.*"),
        Tensor("toy.h.*.norm_2.*", "decoder.layers.*.bilinear_norm.*"),
        Tensor(
            "toy.h.*.inward.*", ("decoder.layers.*.bilinear.gate.*", "decoder.layers.*.bilinear.up.*"), (Transpose(),)
        ),
        Tensor("toy.h.*.outward.*", "decoder.layers.*.bilinear.down.*"),
        Tensor("toy.norm.*", "decoder.norm.*"),
        Tensor("toy.unembed", "head.output.weight"),
        Unused("toy.slopes", "ALiBi's slopes follow from the number of heads"),
    )


family = register(
    Family(
        name="toy",
        title="Toy",
        paper="none",
        model_types=("toy",),
        architectures={"ToyForCausalLM": "language_model"},
        presets={"tiny": {"vocab_size": 257, "width": 30, "layers": 2, "heads": 5, "head_width": 4, "hidden": 41}},
        read=read,
        write=write,
        tensors=tensors,
        defaults={"rotary": False},
        generation={"eos_token_id": 0},
    )
)
