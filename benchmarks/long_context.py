"""A sliding window's cost: time and memory per token as the text grows, and a stream of a million tokens.

    python benchmarks/long_context.py [--window 256] [--stream 1000000]

Forward and forward+backward of one small model with a window, at lengths from 8k to 64k, several rounds interleaved:
time per token against that at 8k, and the growth of peak memory. Then the stream, through a ring cache, in chunks.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from anyformer import spec
from anyformer.cli.process import keep_freed_memory
from anyformer.model import Transformer, build

LENGTHS = (8192, 16384, 32768, 65536)


def model(window: int) -> Transformer:
    """Two layers, 128 wide, 4 heads over 2 key heads: small enough that attention is what is measured."""
    attention = spec.Attention(
        heads=4, kv_heads=2, head_dim=32, visibility="causal", window=(window, None), position=spec.Rotary()
    )
    norm = spec.Norm(kind="rms")
    block = spec.Block(
        branches=(
            spec.Branch(mixer=attention, norm=norm),
            spec.Branch(mixer=spec.FeedForward(hidden=256, activation="silu", gated=True), norm=norm),
        )
    )
    stack = spec.Stack(dim=128, depth=2, pattern=(block,), embeddings=spec.Embeddings(vocabulary=256), norm=norm)
    return build(spec.Transformer(decoder=stack, head=spec.LanguageModelHead(tied=True)), seed=0)


def seconds(net: Transformer, length: int, backward: bool) -> float:
    """One pass over `length` random ids."""
    ids = torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    if backward:
        net(ids, targets=ids).loss.backward()
        net.zero_grad()
    else:
        with torch.inference_mode():
            net(ids, targets=ids)
    return time.perf_counter() - start


def peak_mib() -> float:
    """The most memory that this process has held, in MiB. (getrusage would count what its parent held before.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def memory_of(length: int, backward: bool, window: int) -> float:
    """Peak MiB of a fresh process that makes one pass, above one that only builds the model."""
    flags = ["--probe", str(length), "--window", str(window), *(["--backward"] if backward else [])]
    return float(subprocess.run([sys.executable, __file__, *flags], check=True, capture_output=True, text=True).stdout)


def stream(window: int, total: int, chunk: int = 4096) -> None:
    """`total` tokens through the ring cache; the cache's size and the process's peak, as it goes."""
    net = model(window)
    cache = net.new_cache(1)
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    with torch.inference_mode():
        for at in range(0, total, chunk):
            net(torch.randint(0, 256, (1, chunk), generator=generator), cache=cache, last=True)
            if at // chunk in (3, 30, total // chunk):
                held = f"cache {cache.bytes():,} bytes, process peak {peak_mib():.0f} MiB"
                print(f"  after {cache.length:>9,} tokens: {held}", flush=True)
        one = torch.zeros(1, 1, dtype=torch.long)
        for _ in range(64):
            net(one, cache=cache)
    print(f"  {total / (time.perf_counter() - start):,.0f} tokens/s; then 64 single steps at position {cache.length:,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--stream", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--probe", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--backward", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    keep_freed_memory()
    net = model(arguments.window)
    if arguments.probe:
        before = peak_mib()
        seconds(net, arguments.probe, arguments.backward)
        print(peak_mib() - before)
        return
    for backward in (False, True):
        print("forward + backward" if backward else "forward", f"(window {arguments.window})")
        seconds(net, LENGTHS[0], backward)
        times: dict[int, list[float]] = {length: [] for length in LENGTHS}
        for _ in range(arguments.rounds):
            for length in LENGTHS:
                times[length].append(seconds(net, length, backward) / length)
        base = times[LENGTHS[0]]
        for length in LENGTHS:
            ratios = [time / first for time, first in zip(times[length], base, strict=True)]
            mib = memory_of(length, backward, arguments.window)
            print(
                f"  {length:>6,} tokens: time per token x{statistics.median(ratios):.2f} of that at {LENGTHS[0]:,} "
                f"({min(ratios):.2f} to {max(ratios):.2f}), {mib:,.0f} MiB, {mib * 1024 / length:.2f} KiB a token"
            )
    print(f"a stream of {arguments.stream:,} tokens")
    stream(arguments.window, arguments.stream)


if __name__ == "__main__":
    main()
