"""Bytes that training takes on one device, at the moments of a step when they are most: read off the spec, no torch.

loss     after the forward pass: all that was kept, and the logits of a chunk of tokens with their gradients
layers   at the end of the backward pass: all gradients, and what one layer needs
update   gradients, and what the optimizer needs besides its moments
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

from anyformer.planning.activations import WIDE, Pass, block_bytes, stack_bytes
from anyformer.planning.counts import size_of
from anyformer.planning.shapes import shapes
from anyformer.spec import Attention, FeedForward, Mixer, RoutedExperts, Transformer

#: Logits that exist at a time, in elements (`model/heads.py`).
LARGEST_LOGITS = 1 << 24
#: Numbers that an optimizer keeps for a matrix, and for anything else that learns.
MOMENTS = {"adamw": (2, 2), "muon": (1, 2)}
#: Biases that are as wide as heads or feed-forward, not as the stream.
INWARD_BIASES = frozenset(f"{name}.bias" for name in ("query", "key", "value", "gate", "up"))


@dataclass(frozen=True)
class Mesh:
    """How many devices there are along each axis of a training run: as `scale` of a recipe has it."""

    data: int = 1
    shard: int = 1
    context: int = 1
    expert: int = 1
    tensor: int = 1

    @property
    def devices(self) -> int:
        """How many in all."""
        return self.data * self.shard * self.context * self.expert * self.tensor

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are divided over devices and gathered when they are needed."""
        return self.devices > self.tensor

    @property
    def rows(self) -> int:
        """How many of them read rows of their own."""
        return self.data * self.shard * self.expert


@dataclass(frozen=True)
class Step:
    """How a device takes a step.

    - `rows` of `tokens` tokens (and of `source`, of an encoder-decoder) at a time: the micro-batch of each device that
      reads rows of its own.
    - `chunked_loss`: as the heads take it (`model/heads.py`); without, all logits stand at once.
    - `accumulates`: a step has several micro-batches, so that gradients stand while activations do.
    - `average`: the weights are averaged (`ema`). `packed`: rows hold documents of different lengths.
    - `fused`: an accelerator's kernels (`activations.Pass`).
    """

    rows: int
    tokens: int
    source: int | None = None
    precision: str = "float32"
    optimizer: str = "adamw"
    average: bool = False
    checkpoint_activations: bool = False
    chunked_loss: bool = True
    accumulates: bool = False
    packed: bool = True
    fused: bool = False
    mesh: Mesh = field(default_factory=Mesh)


def training_memory(spec: Transformer, step: Step) -> dict[str, dict[str, int]]:
    """Bytes on each device by moment and by what they are: weights, moments, average, gradients, activations, working.

    Weights, moments and gradients are float32. Raises `SpecError` for a precision that there is not.
    """
    kinds, mesh = parameters_of(spec), step.mesh
    of_matrices, of_others = MOMENTS[step.optimizer]
    whole = sum(kind.kept(mesh) for kind in kinds)
    moments = sum(kind.kept(mesh) * (of_matrices if kind.is_hidden_matrix else of_others) for kind in kinds)
    standing = {"weights": whole * WIDE, "moments": moments * WIDE, "average": whole * WIDE * step.average}
    gradients = {"gradients": whole * WIDE}
    kept, layer = activations(spec, step)
    gathered = _gathered(kinds, step)
    table = spec.output.embeddings.vocabulary * spec.output.dim * WIDE
    # Muon's products make a few matrices as large as the one whose turn it is.
    largest = max(kind.kept(mesh) for kind in kinds if kind.is_hidden_matrix) if of_matrices < of_others else 0
    return {
        "loss": {
            **standing,
            **(gradients if step.accumulates else {}),
            "activations": kept,
            "working": _narrow_copies(kinds, step) + gathered + _loss_working(spec, step),
        },
        "layers": {**standing, **gradients, "activations": layer, "working": gathered + table},
        "update": {**standing, **gradients, "working": 2 * largest * WIDE},
    }


def peak(spec: Transformer, step: Step) -> tuple[str, int]:
    """The moment of a step that takes the most memory on a device, and the bytes it takes."""
    totals = {moment: sum(parts.values()) for moment, parts in training_memory(spec, step).items()}
    moment = max(totals, key=lambda name: totals[name])
    return moment, totals[moment]


@dataclass(frozen=True)
class Kind:
    """A parameter, as far as memory and meshes go.

    layer     the layer that it is of; None: embeddings, head and the like
    divided   heads or feed-forward widths, which ranks of `tensor` share out
    stacked   experts, which ranks of `expert` share out
    """

    shape: tuple[int, ...]
    layer: str | None
    divided: bool
    stacked: bool
    is_bias: bool

    @property
    def is_hidden_matrix(self) -> bool:
        return self.layer is not None and len(self.shape) == 2 and not self.is_bias

    def gathered(self, mesh: Mesh) -> int:
        """Numbers of it that a device computes with."""
        return prod(self.shape) // (mesh.tensor if self.divided else 1) // (mesh.expert if self.stacked else 1)

    def kept(self, mesh: Mesh) -> int:
        """Numbers of it that a device keeps."""
        return self.gathered(mesh) * (mesh.expert if self.stacked else 1) // (mesh.shard * mesh.context * mesh.expert)


@lru_cache(maxsize=8)
def parameters_of(spec: Transformer) -> tuple[Kind, ...]:
    """Every parameter of a model, each once."""
    return tuple(_parameters_of(spec))


def _parameters_of(spec: Transformer) -> Iterator[Kind]:
    mixers: dict[str, Mixer] = {
        f"{name}.layers.{index}.{branch.name}": branch.mixer
        for name, stack in spec.stacks().items()
        for index, block in enumerate(stack.layers())
        for branch in block.branches
    }
    for name, shape in shapes(spec).items():
        steps = name.split(".")
        mixer = mixers.get(".".join(steps[:4]))
        inner = ".".join(steps[4:])
        yield Kind(
            shape=shape,
            layer=".".join(steps[:3]) if steps[1] == "layers" else None,
            divided=isinstance(mixer, Attention | FeedForward)
            and ((inner.endswith(".weight") and "norm" not in inner) or inner in INWARD_BIASES),
            stacked=isinstance(mixer, RoutedExperts) and inner in mixer.STACKED,
            is_bias=name.endswith("bias"),
        )


def activations(spec: Transformer, step: Step) -> tuple[int, int]:
    """Bytes that a forward pass keeps, and the most that a single layer does."""
    kept, largest = 0, 0
    source_dim = spec.encoder.dim if spec.encoder is not None else None
    for name, stack in spec.stacks().items():
        of = _pass(spec, step, name)
        layers = [block_bytes(block, stack.dim, source_dim, of) for block in stack.layers()]
        largest = max(largest, *layers)
        kept += stack_bytes(stack, of)
        kept += len(layers) * of.count * stack.dim * WIDE if step.checkpoint_activations else sum(layers)
    return kept + _pass(spec, step, "decoder").count * spec.output.dim * size_of(step.precision), largest


def _pass(spec: Transformer, step: Step, name: str) -> Pass:
    source = step.tokens if step.source is None else step.source
    tokens = source if name == "encoder" and spec.decoder is not None else step.tokens
    return Pass(
        rows=step.rows,
        tokens=tokens // step.mesh.context,
        source=source // step.mesh.context,
        width=size_of(step.precision),
        tensor=step.mesh.tensor,
        packed=step.packed,
        fused=step.fused,
        relative=any(stack.relative is not None for stack in spec.stacks().values()),
    )


def _narrow_copies(kinds: Iterable[Kind], step: Step) -> int:
    """Under autocast, a narrow copy of every matrix stands until its gradient is there; none where layers are gathered
    as narrow as that, and put away."""
    width = size_of(step.precision)
    if step.mesh.is_sharded:
        return 0
    matrices = (kind for kind in kinds if kind.layer is not None and len(kind.shape) > 1 and not kind.is_bias)
    return sum(kind.gathered(step.mesh) for kind in matrices) * width if width < WIDE else 0


def _gathered(kinds: Iterable[Kind], step: Step) -> int:
    """What a sharded model gathers: embeddings and head for the whole pass, a layer and the next in the run's
    precision; and gradients of one layer, which are made as wide as they are summed, and of those."""
    if not step.mesh.is_sharded:
        return 0
    layers: Counter[str | None] = Counter()
    for kind in kinds:
        layers[kind.layer] += kind.gathered(step.mesh)
    outside, width = layers.pop(None), size_of(step.precision)
    widened = width if width < WIDE else 0
    return 2 * outside * WIDE + max(layers.values()) * (2 * width + WIDE + widened)


def _loss_working(spec: Transformer, step: Step) -> int:
    """Of a chunk of tokens: log-probabilities, their gradient and the logits'; then the logits' and the head's. Where
    there are several chunks, the head's gradient so far and that of all hidden states stand beside; to the first a
    chunk's own is added as it is made, but under autocast on accelerators."""
    if spec.head.kind not in ("language_model", "masked_language_model"):
        return 0
    n, dim, vocabulary = _pass(spec, step, "decoder").count, spec.output.dim, spec.output.embeddings.vocabulary
    chunk, matrix = min(n * vocabulary, LARGEST_LOGITS) if step.chunked_loss else n * vocabulary, vocabulary * dim
    if n * vocabulary <= chunk:
        return max(3 * chunk, chunk + matrix) * WIDE
    own = matrix if step.fused and size_of(step.precision) < WIDE else 0
    return (matrix + n * dim + max(3 * chunk, chunk + own)) * WIDE
