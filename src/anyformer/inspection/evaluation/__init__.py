"""How good a model is at what it is for.

likelihood      loss, perplexity and bits per byte of a text read from left to right
asking          loss of any training objective; accuracy of what was hidden
classification  accuracy and F1 of labels, of texts or of words
answering       BLEU and chrF of what a model answers
harness         the tasks of lm-eval
reporting       all of these on files, as data
"""

from anyformer.inspection.evaluation.likelihood import Evaluation, evaluate, spans, token_ids

__all__ = ["Evaluation", "evaluate", "spans", "token_ids"]
