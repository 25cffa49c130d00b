"""Every kernel of a library on random shapes, each instruction set of this machine: what runs under the sanitizers.

python every_kernel.py LIBRARY
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
from torch import Tensor

from anyformer import spec
from anyformer.parts.blocks import FORMATS
from anyformer.parts.kernels.int8_rows import Int8Rows, quantized
from anyformer.parts.kernels.native import building, calls, headwise, loading, mixtures
from anyformer.parts.kernels.native import many as calls_of_many
from anyformer.parts.norms import Norm


def norm(width: int, dtype: torch.dtype) -> Norm | None:
    """A norm of any kind, or none."""
    layer = random.random() < 0.5
    described = spec.Norm(kind="layer" if layer else "rms", bias=layer, unit_offset=random.random() < 0.3)
    return random.choice([None, Norm(described, width).to(dtype)])


def product(matrix: Tensor, format: int, width: int, dtype: torch.dtype) -> None:
    """Few rows times a matrix [out, ...], with all that may stand around it."""
    rows, out = random.randint(1, 32), len(matrix)
    gated = out % 2 == 0 and random.random() < 0.5
    x, bias = torch.randn(rows, width).to(dtype), torch.randn(out).to(dtype)
    stream = torch.randn(rows, out // 2 if gated else out).to(dtype)
    around = random.choice([None, bias]), norm(width, dtype), random.choice([None, stream])
    activation = random.choice([name for name in loading.ACTIVATIONS if name != "clamped"])
    calls.linear(x, matrix, format, *around, activation, gated)


def products(dtype: torch.dtype) -> None:
    """With a matrix of floats, and with one in the blocks of each format, both of any number of rows and columns."""
    width, out = random.randint(1, 300), random.randint(1, 90)
    product(torch.randn(out, width).to(dtype), loading.TYPES[dtype], width, dtype)
    for format in FORMATS.values():
        blocks, out = random.randint(1, 3 if format.elements == 256 else 11), random.randint(1, 90)
        matrix = torch.randint(0, 256, (out, blocks * format.size), dtype=torch.uint8)
        product(matrix, format.code, blocks * format.elements, dtype)
        calls.expand(matrix, format.code, torch.empty(out, blocks * format.elements))


def mixture(dtype: torch.dtype) -> None:
    """Experts chosen, of groups too, and what they make of few tokens, with matrices of floats or of blocks; some are
    nobody's."""
    groups, size = random.randint(1, 6), random.randint(2, 9)
    top_groups = random.randint(1, groups)
    grouped = torch.randn(random.randint(1, 32), groups * size).to(dtype)
    top_k, how = random.randint(1, top_groups * size), (random.random() < 0.5, torch.randn(groups * size))
    mixtures.choose(grouped, top_k, True, *how, groups, top_groups, 2.5)
    experts, rows = random.randint(1, 20), random.randint(1, 32)
    top_k, gated, biased = random.randint(1, experts), random.random() < 0.7, random.random() < 0.5
    _, weight, chosen = mixtures.choose(torch.randn(rows, experts).to(dtype), top_k, random.random() < 0.5)
    chosen[0, 0] = random.choice([-1, 0, experts])
    found = random.choice([None, *FORMATS.values()])
    step = 1 if found is None else found.elements
    width, hidden = (step * random.randint(1, max(1, 90 // step)) for _ in range(2))
    shapes = [(experts, hidden, width)] * (2 if gated else 1) + [(experts, width, hidden)]
    if found is None:
        format, matrices = loading.TYPES[dtype], [torch.randn(shape).to(dtype) for shape in shapes]
    else:
        format, rows_of = found.code, [(*shape[:2], found.row_bytes(shape[2])) for shape in shapes]
        matrices = [torch.randint(0, 256, shape, dtype=torch.uint8) for shape in rows_of]
    biases = [torch.randn(shape[:2]).to(dtype) if biased else None for shape in shapes]
    activation = random.choice([name for name in loading.ACTIVATIONS if gated or name != "clamped"])
    formats = [format] * len(shapes)
    mixtures.experts(
        torch.randn(rows, width).to(dtype), weight, chosen, matrices, formats, biases, activation, 7.0, 1.7
    )


def attention(dtype: torch.dtype) -> None:
    """Few queries over keys and values of their type, and over rows in 8 bits."""
    B, K, G, T, S, C, V = (random.randint(1, most) for most in (2, 3, 5, 4, 200, 140, 140))
    q, k, v = (torch.randn(shape).to(dtype) for shape in ((B, K * G, T, C), (B, K, S, C), (B, K, S, V)))
    for keys, values in ((k, v), (Int8Rows(quantized(k), C), Int8Rows(quantized(v), V))):
        added = random.choice([None, torch.randn(B, 1, T, S)])
        sinks = random.choice([None, torch.randn(K * G).to(dtype)])
        calls.attention(q, keys, values, added, sinks, 0.1, random.choice([None, 3.0]))


def heads(dtype: torch.dtype) -> None:
    """Turned, normed, multiplied, and kept in their slots: as they are, and in 8 bits."""
    B, H, T, C = (random.randint(1, most) for most in (2, 6, 4, 140))
    x = torch.randn(B, T, H, C).to(dtype)
    dim = random.randint(0, C // 2) * 2
    if dim:
        cos, sin = torch.randn(2, 1, T, 1, dim)
        calls.rotary(x, cos, sin, random.random() < 0.5)
    if (found := norm(C, dtype)) is not None:
        calls.normed(x[:, :, 1:] if H > 1 else x, found)
        calls.normed(x, found, torch.randn(x.shape).to(dtype))
    out = random.randint(1, 140)
    for transposed, shape in ((True, (H, C, out)), (False, (H, out, C))):
        headwise.heads(x, torch.randn(shape).to(dtype), transposed, random.choice(list(loading.TYPES)))
    x = x.transpose(1, 2)
    for store in (torch.zeros(B, H, T + 2, C, dtype=dtype), quantized(torch.zeros(B, H, T + 2, C))):
        calls.keep(x, store, None, 2)
        calls.keep(x, store, torch.randint(-1, T + 2, (B, T)), 0)


def many_rows() -> None:
    """Attention over spans of the keys, some of them empty, RMS norms and activations of both types, each with its
    gradients."""
    B, K, G, T, S, C, V = (random.randint(1, most) for most in (2, 3, 3, 90, 200, 70, 70))
    q, k, v = (torch.randn(shape) for shape in ((B, K * G, T, C), (B, K, S, C), (B, K, S, V)))
    first, last = torch.randint(0, S + 1, (2, random.choice([1, B]), T), dtype=torch.int32).sort(0).values
    y, log_sums = calls_of_many.spans(q, k, v, first, last, 0.1)
    calls_of_many.spans_back(q, k, v, y, log_sums, torch.randn(y.shape), first, last, 0.1)
    x, weight = torch.randn(random.randint(1, 99), C), random.choice([None, torch.randn(C)])
    kind = loading.RMS | random.choice([0, loading.OFFSET])
    calls_of_many.norm_rows(x, weight, kind, 1e-5)
    calls_of_many.norm_rows_back(x, weight, torch.randn(x.shape), kind, 1e-5)
    for name in loading.ACTIVATIONS:
        for dtype in loading.TYPES:
            x, up, d_y = torch.randn(3, random.randint(1, 5000)).to(dtype).split(1)
            calls_of_many.activated_rows(x, random.choice([None, up]), name)
            calls_of_many.activated_rows_back(x, random.choice([None, up]), d_y, name)


@torch.no_grad()
def main(path: Path) -> None:
    library = loading.load(path)
    loading.library = lambda: library  # type: ignore[assignment]
    random.seed(0)
    torch.manual_seed(0)
    for name in building.instruction_sets():
        if library.anyformer_use(name.encode()):
            for turn in range(30):
                dtype = random.choice(list(loading.TYPES))
                for part in (products, mixture, attention, heads):
                    print(name, turn, part.__name__, file=sys.stderr)
                    part(dtype)
                print(name, turn, many_rows.__name__, file=sys.stderr)
                many_rows()
    print("sound")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
