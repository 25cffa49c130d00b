"""llama.cpp as the reference for GGUF files. Its package compiles for minutes when it is installed, so it is no part of
the tests' own requirements; what asks for it is skipped where it is missing."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor


def library() -> Any:
    """The package, kept quiet; skips the test where it is not installed."""
    llama_cpp = pytest.importorskip(
        "llama_cpp", reason="llama-cpp-python, which compiles for minutes, is not installed"
    )
    for null in (llama_cpp._utils.outnull_file, llama_cpp._utils.errnull_file):
        null.close()  # opened when it is imported, and never closed
    llama_cpp.llama_log_set(_SILENT(llama_cpp), ctypes.c_void_p(0))
    return llama_cpp


_KEPT: list[Any] = []


def _SILENT(llama_cpp: Any) -> Any:
    # ctypes forgets a callback that nobody holds.
    if not _KEPT:
        _KEPT.append(llama_cpp.llama_log_callback(lambda level, text, data: None))
    return _KEPT[0]


@contextmanager
def opened(path: Path, *, embeddings: bool = False, context: int = 64) -> Iterator[tuple[Any, Any, Any]]:
    """The library, a model and its context, in float32 wherever it lets one choose."""
    llama_cpp = library()
    options = llama_cpp.llama_model_default_params()
    options.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
    assert model, f"llama.cpp does not load {path}"
    setting = llama_cpp.llama_context_default_params()
    setting.n_ctx = setting.n_batch = setting.n_ubatch = context
    setting.n_threads = setting.n_threads_batch = 1
    setting.type_k = setting.type_v = llama_cpp.GGML_TYPE_F32
    setting.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    setting.embeddings = embeddings
    setting.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE
    made = llama_cpp.llama_init_from_model(model, setting)
    assert made, f"llama.cpp makes no context for {path}"
    try:
        yield llama_cpp, model, made
    finally:
        llama_cpp.llama_free(made)
        llama_cpp.llama_model_free(model)


def logits(path: Path, ids: Sequence[int], source: Sequence[int] | None = None) -> Tensor:
    """[T, V], of a decoder, or of an encoder-decoder that reads `source`."""
    with opened(path) as (llama_cpp, model, context):
        width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        if source is not None:
            _run(llama_cpp, llama_cpp.llama_encode, context, source)
        _run(llama_cpp, llama_cpp.llama_decode, context, ids)
        return _rows(llama_cpp.llama_get_logits(context), len(ids), width)


def hidden(path: Path, ids: Sequence[int]) -> Tensor:
    """[T, D], of an encoder."""
    with opened(path, embeddings=True) as (llama_cpp, model, context):
        _run(llama_cpp, llama_cpp.llama_encode, context, ids)
        rows = [llama_cpp.llama_get_embeddings_ith(context, index) for index in range(len(ids))]
        return torch.cat([_rows(row, 1, llama_cpp.llama_model_n_embd(model)) for row in rows])


def tokens(path: Path, text: str) -> list[int]:
    """The ids of a text, special tokens around it."""
    llama_cpp = library()
    options = llama_cpp.llama_model_default_params()
    options.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
    assert model, f"llama.cpp does not load the vocabulary of {path}"
    try:
        data = text.encode()
        found = (llama_cpp.llama_token * (len(data) + 8))()
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        count = llama_cpp.llama_tokenize(vocabulary, data, len(data), found, len(found), True, False)
        return list(found[:count])
    finally:
        llama_cpp.llama_model_free(model)


def _run(llama_cpp: Any, run: Any, context: Any, ids: Sequence[int]) -> None:
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    try:
        batch.n_tokens = len(ids)
        for index, id in enumerate(ids):
            batch.token[index], batch.pos[index], batch.n_seq_id[index] = id, index, 1
            batch.seq_id[index][0], batch.logits[index] = 0, 1
        assert run(context, batch) == 0
    finally:
        llama_cpp.llama_batch_free(batch)


def _rows(pointer: Any, rows: int, width: int) -> Tensor:
    return torch.from_numpy(np.ctypeslib.as_array(pointer, shape=(rows * width,)).copy()).view(rows, width)
