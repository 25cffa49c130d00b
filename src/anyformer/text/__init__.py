"""Text to ids and back: tokenizers of every kind, chat templates, streams that never split a character."""

from anyformer.text.files import load, read
from anyformer.text.gguf import from_gguf
from anyformer.text.tokenizer import Tokenizer
from anyformer.text.training import byte_level, train_bpe

__all__ = ["Tokenizer", "byte_level", "from_gguf", "load", "read", "train_bpe"]
