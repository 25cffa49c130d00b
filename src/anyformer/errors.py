"""One exception family. Every message is one sentence that says what is wrong, where, and what to do.

All of them are `ValueError`s: they tell a person that an input cannot be used. What only a mistake of our own can
cause is an `assert` instead. The command line prints the sentence and leaves with exit code 2.
"""


class AnyformerError(ValueError):
    """The input cannot be used; the message says what, where and what to do."""


class SpecError(AnyformerError):
    """A spec, preset or config describes no Transformer that can be built."""


class CheckpointError(AnyformerError):
    """A file or directory of weights cannot be read or written as asked."""


class TextError(AnyformerError):
    """A tokenizer or chat template cannot be read, or cannot do what was asked of it."""


class DataError(AnyformerError):
    """A data file cannot be read, or holds too little."""


class InputError(AnyformerError):
    """What was handed to a model (ids, positions, a prompt) does not fit it."""


class KernelError(AnyformerError):
    """An attention kernel was asked for something that it names as beyond it."""


class TrainingError(AnyformerError):
    """A recipe, a run directory or a training state cannot be used."""


class PlanError(AnyformerError):
    """A plan cannot be made of this: an impossible budget, an unknown device, too few runs for a law."""


class ExperimentError(AnyformerError):
    """An experiment does not exist, or lacks what it needs; a comparison compares nothing."""
