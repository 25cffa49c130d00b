"""The same weights in llama.cpp, by its own functions (llama-cpp-python's lowest level), on as many threads as torch.

A batch is a sequence a row, all of their tokens in one call, as its own server does it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.errors import InputError
from anyformer.inspection.bench.comparing import Lap
from anyformer.inspection.bench.sides import Opened, Work

#: llama.cpp's own name for what a file holds most of: `LLaMA 1.2B Q4_0`, `llama 1B BF16`.
DESCRIPTION = 256


class LlamaCpp:
    """A context of llama.cpp, `model` and `context` its pointers."""

    def __init__(self, library: Any, model: Any, context: Any) -> None:
        self.library, self.context = library, context
        self.version = library.__version__
        said = ctypes.create_string_buffer(DESCRIPTION)
        library.llama_model_desc(model, said, DESCRIPTION)
        self.dtype = said.value.decode().rsplit(" ", 1)[-1]
        self.vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))

    def generate(self, work: Work, lap: Lap) -> list[list[int]]:
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), False)
        new = [self._read(work.ids.tolist(), 0)]
        lap()
        for length in range(work.prompt_tokens, work.prompt_tokens + work.new_tokens - 1):
            new.append(self._read([[id] for id in new[-1]], length))
            lap()
        return [list(row) for row in zip(*new)]

    def embed(self, work: Work, lap: Lap) -> Tensor:
        raise InputError("llama.cpp is compared at generating; leave it out for an encoder")

    def _read(self, rows: Sequence[Sequence[int]], start: int) -> list[int]:
        """Read ids of each row from position `start` on; the likeliest next one of each."""
        count, length = len(rows) * len(rows[0]), len(rows[0])
        batch = self.library.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for index in range(count):
                row, at = divmod(index, length)
                batch.token[index], batch.pos[index] = rows[row][at], start + at
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
                batch.logits[index] = at == length - 1
            if self.library.llama_decode(self.context, batch):
                raise InputError("llama.cpp could not read this prompt; try a shorter one, or a smaller batch")
        finally:
            self.library.llama_batch_free(batch)
        return [self._likeliest((row + 1) * length - 1) for row in range(len(rows))]

    def _likeliest(self, index: int) -> int:
        logits = self.library.llama_get_logits_ith(self.context, index)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocabulary,)).argmax())


@contextmanager
def open(opened: Opened, place: Path, work: Work) -> Iterator[LlamaCpp]:
    """The model from its GGUF file, or one written for it. Raises `InputError` where llama.cpp does not load it."""
    library = import_module("llama_cpp")
    quiet = library.llama_log_callback(lambda level, text, data: None)
    library.llama_log_set(quiet, ctypes.c_void_p(0))
    path = opened.file(place)
    options = library.llama_model_default_params()
    options.n_gpu_layers = 0
    model = library.llama_model_load_from_file(str(path).encode(), options)
    if not model:
        raise InputError(f"llama.cpp does not load {path}; leave it out")
    settings = library.llama_context_default_params()
    settings.n_ctx = work.batch * (work.prompt_tokens + work.new_tokens)
    settings.n_batch = work.batch * work.prompt_tokens
    settings.n_seq_max = work.batch
    settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
    context = library.llama_init_from_model(model, settings)
    try:
        if not context:
            raise InputError(f"llama.cpp makes no context of {settings.n_ctx} tokens for {path}; leave it out")
        yield LlamaCpp(library, model, context)
    finally:
        if context:
            library.llama_free(context)
        library.llama_model_free(model)
        library.llama_log_set(library.llama_log_callback(), ctypes.c_void_p(0))
