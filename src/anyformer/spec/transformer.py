"""Blocks, stacks, heads and the whole Transformer, as data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from anyformer.spec.base import Flag, NonNegativeInt, Part, PositiveFloat, PositiveInt, Probability
from anyformer.spec.mixers import Activation, AnyMixer, Attention, Norm
from anyformer.spec.positions import EmbeddingPosition, RelativeBuckets

Placement = Literal["pre", "post", "output", "both"]


class Branch(Part, frozen=True):
    """One step along the residual stream x: a mixer f with its norm n, placed

        pre     x + f(n(x))            GPT-2, T5, LLaMA
        post    n(x + f(x))            the 2017 model, BERT
        output  x + n(f(x))            OLMo 2
        both    x + n'(f(n(x)))        Gemma 2 (two norms of one form)

    `norm="shared"`, in a parallel block, reads the normalised input of the branch before it (GPT-J).
    """

    mixer: AnyMixer
    norm: Norm | Literal["shared"] | None
    placement: Placement = "pre"
    dropout: Probability = 0.0

    @property
    def name(self) -> str:
        """The branch's name in parameters and traces, its mixer's role."""
        return self.mixer.name


class Block(Part, frozen=True):
    """A layer: branches one after the other, or (`parallel`) all from the same input, their outputs summed.

    `repeat`: how many layers in a row this entry of a stack's pattern stands for.
    """

    branches: tuple[Branch, ...] = Field(min_length=1)
    parallel: Flag = False
    repeat: PositiveInt = 1

    @model_validator(mode="after")
    def _fits(self) -> Block:
        names = [branch.name for branch in self.branches]
        if len(set(names)) < len(names):
            raise ValueError(f"a block's branches need different roles, these are {', '.join(names)}")
        for index, branch in enumerate(self.branches):
            if branch.norm == "shared" and not (self.parallel and index and branch.placement == "pre"):
                raise ValueError("norm 'shared' needs a parallel block, placement 'pre' and a branch before it")
            if self.parallel and branch.placement in ("post", "both"):
                raise ValueError(f"a parallel block cannot place a norm '{branch.placement}'; use 'pre' or 'output'")
        return self


class Embeddings(Part, frozen=True):
    """What turns token ids into the first residual stream: a table of `vocabulary` rows, then, each where given, a
    factor `scale`, added positions, added token types (`segments` of them), a norm, dropout."""

    vocabulary: PositiveInt
    position: EmbeddingPosition | None = None
    segments: NonNegativeInt = 0
    scale: PositiveFloat | None = None
    norm: Norm | None = None
    dropout: Probability = 0.0


class Stack(Part, frozen=True):
    """Embeddings, `depth` layers and a final norm. Layer i is entry i of `pattern` (repeats spelled out), cyclically.

    `relative` is one bucket table that all self-attention of the stack shares (T5). `dropout` follows the final norm.
    """

    dim: PositiveInt
    depth: PositiveInt
    pattern: tuple[Block, ...] = Field(min_length=1)
    embeddings: Embeddings
    norm: Norm | None = None
    relative: RelativeBuckets | None = None
    dropout: Probability = 0.0

    @model_validator(mode="after")
    def _fits(self) -> Stack:
        if self.relative is not None:
            heads = {mixer.heads for mixer in self.attentions() if mixer.source == "self"}
            if len(heads) > 1:
                raise ValueError(f"layers that share a relative table need equal heads, these have {sorted(heads)}")
            if not heads:
                raise ValueError("a relative table needs self-attention that reads it; leave relative out")
        sinusoidal = self.embeddings.position is not None and self.embeddings.position.kind == "sinusoidal"
        if sinusoidal and self.dim % 2:
            raise ValueError(f"sinusoidal positions need an even dim, not {self.dim}")
        return self

    def layers(self) -> list[Block]:
        """The block of each layer, `depth` of them."""
        spelled = [block for block in self.pattern for _ in range(block.repeat)]
        return [spelled[index % len(spelled)] for index in range(self.depth)]

    def attentions(self) -> Iterator[Attention]:
        """The attention mixers of the pattern."""
        for block in self.pattern:
            for branch in block.branches:
                if isinstance(branch.mixer, Attention):
                    yield branch.mixer


class LanguageModelHead(Part, frozen=True):
    """Logits over the vocabulary. `tied`: the matrix is the embedding table. `scale` multiplies the hidden states
    first (T5's d^-½); `soft_cap` c bounds logits by c·tanh(l/c)."""

    kind: Literal["language_model"] = "language_model"
    tied: Flag = False
    bias: Flag = False
    scale: PositiveFloat | None = None
    soft_cap: PositiveFloat | None = None


class MaskedLanguageModelHead(Part, frozen=True):
    """BERT's head (Devlin et al. 2019, appendix): a dense layer, activation, norm, then logits over the vocabulary.

    `dense_bias` is the dense layer's, `bias` that of the logits.
    """

    kind: Literal["masked_language_model"] = "masked_language_model"
    tied: Flag = True
    bias: Flag = True
    dense_bias: Flag = True
    activation: Activation = "gelu"
    norm: Norm


class SequenceClassificationHead(Part, frozen=True):
    """`labels` logits per sequence, read at its first, last or mean token; `activation` puts a dense layer before."""

    kind: Literal["sequence_classification"] = "sequence_classification"
    labels: PositiveInt
    pooling: Literal["first", "last", "mean"] = "first"
    activation: Activation | None = "tanh"
    bias: Flag = True
    dropout: Probability = 0.0


class TokenClassificationHead(Part, frozen=True):
    """`labels` logits per token."""

    kind: Literal["token_classification"] = "token_classification"
    labels: PositiveInt
    bias: Flag = True
    dropout: Probability = 0.0


class EmbeddingHead(Part, frozen=True):
    """No logits: the hidden states are what is wanted, pooled to one vector a sequence by `Transformer.embed`."""

    kind: Literal["embedding"] = "embedding"
    pooling: Literal["first", "last", "mean", "max"] = "mean"
    normalize: Flag = True


Head = Annotated[
    LanguageModelHead | MaskedLanguageModelHead | SequenceClassificationHead | TokenClassificationHead | EmbeddingHead,
    Field(discriminator="kind"),
]


class Initialization(Part, frozen=True):
    """How fresh weights are drawn: matrices from a normal of deviation `std` (None: 1/√inputs of each matrix, queries
    over what attention's own scale lacks to 1/√head_dim, as in T5); those that write to the residual stream divided by
    √(2·depth) with `depth_scaled` (GPT-2); biases zero, norms one."""

    std: PositiveFloat | None = 0.02
    embedding_std: PositiveFloat | None = None
    depth_scaled: Flag = False


class Transformer(Part, frozen=True):
    """A whole model: an encoder, a decoder, or both, and a head.

    `context` is the length the model was trained for, where known: it informs plans and messages; only learned
    positions make it a limit. `shared_embedding`: encoder and decoder have one token table.
    """

    encoder: Stack | None = None
    decoder: Stack | None = None
    head: Head
    context: PositiveInt | None = None
    shared_embedding: Flag = False
    initialization: Initialization = Initialization()

    @model_validator(mode="after")
    def _fits(self) -> Transformer:
        if self.encoder is None and self.decoder is None:
            raise ValueError("a Transformer needs an encoder, a decoder or both")
        both = self.encoder is not None and self.decoder is not None
        if self.shared_embedding and not both:
            raise ValueError("shared_embedding needs an encoder and a decoder")
        if self.shared_embedding and self.encoder is not None and self.decoder is not None:
            shapes = [(stack.embeddings.vocabulary, stack.dim) for stack in (self.encoder, self.decoder)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"shared_embedding needs equal tables, these are {shapes[0]} and {shapes[1]}")
        for name, stack, may_cross in (("encoder", self.encoder, False), ("decoder", self.decoder, both)):
            crosses = stack is not None and any(mixer.source == "cross" for mixer in stack.attentions())
            if crosses and not may_cross:
                raise ValueError(f"the {name} has cross-attention but no encoder to attend to")
        return self

    @property
    def output(self) -> Stack:
        """The stack whose hidden states the head reads: the decoder where there is one."""
        stack = self.decoder if self.decoder is not None else self.encoder
        assert stack is not None
        return stack

    @property
    def shape(self) -> Literal["encoder", "decoder", "encoder-decoder"]:
        """Which of the three shapes this is."""
        if self.encoder is None:
            return "decoder"
        return "encoder" if self.decoder is None else "encoder-decoder"

    def stacks(self) -> dict[str, Stack]:
        """The stacks that exist, by name, the encoder first."""
        named: dict[str, Any] = {"encoder": self.encoder, "decoder": self.decoder}
        return {name: stack for name, stack in named.items() if stack is not None}
