"""What weights of fewer bits cost: the loss on held-out text of one model in every format, and the bytes of its file.

    python benchmarks/quantization.py MODEL [FORMATS...]

GGUF files are written as `anyformer convert` does, read again here, computed in float32, and by llama.cpp: `apart` is
how far the two perplexities are. int8 and int4 are those of `load(quantize=)`, computed in bfloat16, whose bytes are in
memory. Windows out of the middle of books in ../shared/data, each read from its own beginning. Without
llama-cpp-python there is nothing beside.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from math import exp
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

import anyformer as af
from anyformer import checkpoints
from anyformer.model import Transformer
from anyformer.parts.blocks import FORMATS

BOOKS = ("austen-persuasion", "melville-moby_dick", "chesterton-brown", "shakespeare-hamlet")
WINDOW, WINDOWS = 512, 4
FLOATS = {"f32": torch.float32, "bf16": torch.bfloat16}
LOADED: tuple[Literal["int8"], Literal["int4"]] = ("int8", "int4")
TYPES = (*FLOATS, *LOADED, "q8_0", "q6_k", "q4_k", "q4_1", "q4_0")


def windows(model: Transformer) -> torch.Tensor:
    """[N, WINDOW] ids out of the middle of each book."""
    assert model.tokenizer is not None
    books = Path(__file__).resolve().parents[2] / "shared" / "data" / "gutenberg"
    rows = []
    for book in (books / f"{name}.txt" for name in BOOKS):
        text = book.read_text(encoding="utf-8")
        ids = model.tokenizer.encode(text[len(text) // 2 :][: 10 * WINDOW * WINDOWS], special=False)
        rows.append(torch.tensor(ids[: WINDOW * WINDOWS]).view(WINDOWS, WINDOW))
    return torch.cat(rows)


def write(model: Transformer, path: Path, kind: str) -> None:
    """Write the model as a GGUF file of a type."""
    checkpoints.write_gguf(
        path,
        spec=model.spec,
        tensors=dict(model.named_parameters()),
        dtype=FLOATS.get(kind, torch.float32),
        format=FORMATS.get(kind.upper()),
        family=model.family,
        tokenizer=model.tokenizer,
    )


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """The mean loss of each token after the first, in nats, of logits [T, V]."""
    return float(F.cross_entropy(logits[:-1].float(), ids[1:]))


@torch.no_grad()
def ours(model: Transformer, ids: torch.Tensor) -> float:
    """The mean loss here."""
    return float(np.mean([loss_of(model(row[None]).logits[0], row) for row in ids]))


def theirs(path: Path, ids: torch.Tensor) -> float | None:
    """The mean loss in llama.cpp, where it is installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    import llama_cpp

    threads = torch.get_num_threads()
    model = llama_cpp.Llama(
        str(path),
        n_ctx=WINDOW,
        n_batch=WINDOW,
        logits_all=True,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    found = []
    for row in ids:
        model.reset()
        model.eval(row.tolist())
        found.append(loss_of(torch.from_numpy(np.array(model.scores[:WINDOW])), row))
    return float(np.mean(found))


def measured(source: Transformer, kind: str, ids: torch.Tensor) -> tuple[int, float, float | None]:
    """Bytes, the loss here, and the loss in llama.cpp, of the model in a format."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "model.gguf")
        if kind in LOADED:
            write(source, path, "f32")
            model = af.load(path, dtype="bfloat16", device="cpu", quantize=kind)
            held = {each.untyped_storage() for each in (*model.parameters(), *model.buffers())}
            return sum(storage.nbytes() for storage in held), ours(model, ids), None
        write(source, path, kind)
        return path.stat().st_size, ours(af.load(path, dtype="float32", device="cpu"), ids), theirs(path, ids)


def main(reference: str, *types: str) -> None:
    source = af.load(reference, dtype="float32", device="cpu")
    ids = windows(source)
    plain = ours(source, ids)
    print(f"{ids.numel():,} tokens in windows of {WINDOW}; as it was read, in float32: {plain:.4f}")
    print("| format | MB | loss | change | perplexity | loss in llama.cpp | apart |\n|---|---|---|---|---|---|---|")
    for kind in types or TYPES:
        size, here, there = measured(source, kind, ids)
        beside = " | " if there is None else f"{there:.4f} | {exp(there - here) - 1:+.2%}"
        row = f"{kind} | {size / 1e6:.1f} | {here:.4f} | {here / plain - 1:+.2%} | {exp(here):.3f} | {beside}"
        print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
