"""A checkpoint: what is in a directory or file, before any module is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anyformer.parts.blocks import Blocks
from anyformer.spec import Transformer

if TYPE_CHECKING:
    from anyformer.text import Tokenizer


@dataclass(frozen=True)
class Carried:
    """What a checkpoint holds and no model reads, kept so that saving writes it back.

    `reasons` says of each ignored attribute and tensor why nothing reads it.
    """

    attributes: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A spec and its tensors under our names, each mapped from the file when it is asked for.

    `family` is the name of the format it came in, if any; `generation` the defaults of decoding and the ids of special
    tokens, by the names that generation_config.json gives them; `dtype` the type of most of its numbers; `origin` where
    it was read: a path, or `org/name@commit`. `quantised` are the names of the tensors that a GGUF file holds in few
    bits, `blocks` those of them that models compute with as they are, in the file's own bytes.
    """

    spec: Transformer
    tensors: Mapping[str, Tensor]
    family: str | None
    generation: dict[str, Any]
    tokenizer: Tokenizer | None
    carried: Carried
    dtype: torch.dtype
    origin: str = ""
    blocks: Mapping[str, Blocks] = field(default_factory=dict)
    quantised: frozenset[str] = frozenset()
