"""What a model is asked for: each objective turns text or records into the inputs of a step, and a step into a loss.

causal           the next token                                decoder
prefix           the rest of a text                            decoder, encoder-decoder
masked           tokens that were hidden                       encoder
spans            stretches that were cut out, in their order   encoder-decoder, decoder
seq2seq          the second text of a pair                     encoder-decoder, decoder
chat             what the assistant says                       decoder
preferences      the better of two answers                     decoder, encoder-decoder
classify         the label of a text                           encoder, decoder
classify_tokens  the label of each word                        encoder, decoder
"""

from anyformer.training.objectives.answering import Chat, SequenceToSequence
from anyformer.training.objectives.classifying import Classify, ClassifyTokens
from anyformer.training.objectives.continuing import Causal, Prefix
from anyformer.training.objectives.denoising import HIDDEN_SHARE, SENTINELS, Masked, Spans
from anyformer.training.objectives.objective import Batch, Objective, TextObjective
from anyformer.training.objectives.preferring import Preferences

#: What an objective is called in a recipe.
OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (Causal, Prefix, Masked, Spans, SequenceToSequence, Chat, Preferences, Classify, ClassifyTokens)
}

__all__ = [
    "HIDDEN_SHARE",
    "OBJECTIVES",
    "SENTINELS",
    "Batch",
    "Causal",
    "Chat",
    "Classify",
    "ClassifyTokens",
    "Masked",
    "Objective",
    "Preferences",
    "Prefix",
    "SequenceToSequence",
    "Spans",
    "TextObjective",
]
