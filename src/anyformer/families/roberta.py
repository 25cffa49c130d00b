"""RoBERTa: BERT trained longer, on more, with masked language modelling alone (Liu et al. 2019,
https://arxiv.org/abs/1907.11692). Its positions begin after the id of padding."""

from __future__ import annotations

from typing import Any

from anyformer.errors import SpecError
from anyformer.families.bert import (
    POOLER,
    encoder_tensors,
    masked_tensors,
    read_encoder,
    read_head,
    size,
    write_encoder,
    write_position,
)
from anyformer.families.config import Config
from anyformer.families.family import Family, architectures
from anyformer.families.names import Table, Tensor, Unused
from anyformer.spec import Learned, Transformer


def read(config: Config) -> Transformer:
    offset = config.integer("pad_token_id", default=1) + 1
    rows = config.size("max_position_embeddings", default=512)
    if rows <= offset:
        config.refuse(f"max_position_embeddings is {rows}; the first {offset} rows belong to padding")
    return read_encoder(config, Learned(size=rows - offset, offset=offset), read_head(config, "gelu"))


def write(spec: Transformer) -> dict[str, Any]:
    position = write_position(spec)
    if not position.offset:
        raise SpecError("it needs positions that begin after the id of padding (an offset)")
    rows = position.size + position.offset
    return {**write_encoder(spec), "max_position_embeddings": rows, "pad_token_id": position.offset - 1}


def tensors(spec: Transformer) -> Table:
    heads: dict[str, Table] = {
        "masked_language_model": (
            Tensor("lm_head.dense.*", "head.dense.*"),
            *masked_tensors(spec.head, "lm_head", "lm_head.layer_norm"),
        ),
        "sequence_classification": (
            Tensor("classifier.dense.*", "head.dense.*"),
            Tensor("classifier.out_proj.*", "head.output.*"),
        ),
        "token_classification": (Tensor("classifier.*", "head.output.*"),),
    }
    return (*encoder_tensors("roberta"), *heads.get(spec.head.kind, ()), Unused("roberta.pooler.**", POOLER))


_ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}

family = Family(
    name="roberta",
    title="RoBERTa",
    paper="https://arxiv.org/abs/1907.11692",
    model_types=("roberta",),
    architectures=architectures("Roberta", masked=True),
    presets={
        "tiny": {**size(128, 2, 2, 512), **_ROBERTA, "vocab_size": 1024, "max_position_embeddings": 130},
        "distil": {**size(768, 6, 12, 3072), **_ROBERTA},
        "base": {**size(768, 12, 12, 3072), **_ROBERTA},
        "large": {**size(1024, 24, 16, 4096), **_ROBERTA},
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="roberta.",
    defaults={"position_embedding_type": "absolute"},
)
