"""What is to be continued or answered, texts or ids, as decoding begins with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyformer.errors import InputError
from anyformer.generation import Prompts, Settings, left_padded

if TYPE_CHECKING:
    from anyformer.model.transformer import Transformer
    from anyformer.text import Tokenizer


def tokenizer_of(model: Transformer) -> Tokenizer:
    """The model's tokenizer. Raises `InputError` where it has none."""
    if model.tokenizer is None:
        raise InputError("this model has no tokenizer; set model.tokenizer, or hand generate a tensor of ids")
    return model.tokenizer


def encode(model: Transformer, prompts: Sequence[str], settings: Settings) -> list[list[int]]:
    """Ids of each prompt as the model expects them: an empty one is the beginning-of-text token."""
    tokenizer = tokenizer_of(model)
    rows = [tokenizer.encode(prompt) for prompt in prompts]
    # A decoder continues its prompt: an end token that the tokenizer appends would tell it that the text is over.
    if model.encoder is None:
        rows = [
            row[:-1] if len(row) > 1 and row[-1] in settings.eos and prompt else row
            for row, prompt in zip(rows, prompts)
        ]
    start = settings.bos if settings.bos is not None else tokenizer.bos
    start = start if start is not None else (settings.eos[0] if settings.eos else tokenizer.eos)
    if start is None and not all(rows):
        raise InputError("the prompt is empty and the tokenizer has no beginning-of-text token; give some text")
    return [row or [start] for row in rows]  # type: ignore[list-item]


def batch(
    model: Transformer, prompts: Sequence[str], settings: Settings, given: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Texts as ids [B, T], and which are no padding: on the left for a decoder, on the right for an encoder. Raises
    `InputError` where that is `given` already."""
    if given is not None:
        raise InputError("valid says which ids are no padding, and texts have none; leave it out, or hand over ids")
    if isinstance(prompts, str):
        raise InputError("generate takes a list of texts; put the text in one: [text]")
    if not isinstance(prompts, Sequence) or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError("generate takes a list of texts or a tensor of ids [B, T]; make one: torch.tensor(ids)")
    rows = encode(model, prompts, settings)
    ids, valid = left_padded(rows or [[]], settings.pad or 0, model.device)
    return (ids, valid) if model.encoder is None else right_padded(ids, valid)


def right_padded(ids: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Left-padded rows turned to right-padded ones, as encoders are used to."""
    if valid is None:
        return ids, None
    order = torch.argsort((~valid).long(), dim=1, stable=True)
    return ids.gather(1, order), valid.gather(1, order)


def beginning(model: Transformer, ids: Tensor, valid: Tensor | None, settings: Settings) -> Prompts:
    """What decoding begins with: ids [B, T] themselves; or as the source, and a start token for the decoder."""
    if model.decoder is None:
        raise InputError("an encoder reads and does not write; only a model with a decoder generates")
    if model.encoder is None:
        return Prompts(ids, valid)
    start = settings.start if settings.start is not None else settings.bos
    if start is None:
        raise InputError(
            "no token is known that the decoder starts with; give start= (or decoder_start_token_id in .generation)"
        )
    begin = torch.full((len(ids), 1), start, device=model.device)
    return Prompts(begin, source=ids, source_valid=valid)
