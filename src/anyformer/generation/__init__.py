"""Sampling, searches and decoding loops; they know a model only by the `Decoder` protocol."""

from anyformer.generation.answer import Answer, Token
from anyformer.generation.answering import answers, decode, stream
from anyformer.generation.beam import search
from anyformer.generation.decoding import Decoder, steps, until_end
from anyformer.generation.prompts import Prompts, left_padded
from anyformer.generation.sampling import seeds_of
from anyformer.generation.settings import Settings
from anyformer.generation.speculation import Speculation, Tally
from anyformer.generation.stopping import Writing, with_marks, written

__all__ = [
    "Answer",
    "Decoder",
    "Prompts",
    "Settings",
    "Speculation",
    "Tally",
    "Token",
    "Writing",
    "answers",
    "decode",
    "left_padded",
    "search",
    "seeds_of",
    "steps",
    "stream",
    "until_end",
    "with_marks",
    "written",
]
