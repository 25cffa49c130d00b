"""Going on with a text: each token from those before it, or the rest from a prefix that is seen whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anyformer import spec
from anyformer.data import Window, Windows
from anyformer.errors import TrainingError
from anyformer.training.objectives.objective import (
    Batch,
    Conditional,
    TextObjective,
    documents_of,
    window_batch,
)


class Causal(TextObjective):
    """Predict each token from those before it in its document, log P(x_t | x_<t) (Bengio et al. 2003, eq. 1)."""

    name, shapes = "causal", ("decoder",)
    is_likelihood = True

    @classmethod
    def check(cls, model: spec.Transformer) -> None:
        super().check(model)
        if any(attention.visibility != "causal" for attention in model.output.attentions()):
            raise TrainingError("training.objective 'causal' needs attention of visibility 'causal' in every layer")

    def batch(self, windows: Sequence[Window], generator: np.random.Generator) -> Batch:
        return window_batch([window.tokens for window in windows], [window.targets for window in windows], windows)


class Prefix(Conditional, TextObjective):
    """Go on with a document from a point drawn anew at every step, what stands before it seen in both directions
    (Liu et al. 2018; Raffel et al. 2020, section 3.2.1). A decoder's causal layers become those of visibility 'prefix'.
    """

    name = "prefix"

    @classmethod
    def adapt(cls, model: spec.Transformer, labels: int) -> spec.Transformer:
        return model if model.encoder is not None else model.replace(decoder=seeing_prefixes(model.output))

    def batch(self, windows: Sequence[Window], generator: np.random.Generator) -> Batch:
        own = zip(windows, generator.spawn(len(windows)))
        parted = ((document, drawn) for window, drawn in own for document in documents_of(window) if len(document) > 1)
        points = [(document, int(drawn.integers(1, len(document)))) for document, drawn in parted]
        return self.conditional([(document[:point], document[point:]) for document, point in points])

    def lengths(self, examples: Windows) -> tuple[float, float | None]:
        length = examples.length
        return (length / 2, length / 2) if self.has_encoder else (length - 1, None)


def seeing_prefixes(stack: spec.Stack) -> spec.Stack:
    """The stack with every causal self-attention made one of visibility 'prefix'."""

    def mixer(mixer: spec.Mixer) -> spec.Mixer:
        causal = isinstance(mixer, spec.Attention) and mixer.source == "self" and mixer.visibility == "causal"
        return mixer.replace(visibility="prefix") if causal else mixer

    def block(block: spec.Block) -> spec.Block:
        branches = tuple(branch.replace(mixer=mixer(branch.mixer)) for branch in block.branches)
        return block.replace(branches=branches)

    return stack.replace(pattern=tuple(block(each) for each in stack.pattern))
