"""Whether what is read has room in this machine's memory: known before anything is computed."""

from __future__ import annotations

import torch

from anyformer import machine, planning
from anyformer.errors import InputError
from anyformer.generation.settings import Settings
from anyformer.parts.cache import Cache
from anyformer.planning.pieces import choosing, passing
from anyformer.spec import Stack, Transformer


def must_step(spec: Transformer, device: torch.device, prompts: int, length: int, settings: Settings) -> None:
    """Raises `InputError`, with the figures, where a step of all that is continued side by side of so many `prompts` of
    `length` tokens, beams, answers or candidates, does not fit into memory: whatever is kept of them comes on top."""
    V = spec.output.embeddings.vocabulary
    name, copies = "answers", settings.answers
    if settings.beams > 1:
        name, copies = "beams", settings.beams
    elif settings.penalty_alpha > 0:
        name, copies = "top_k", min(settings.top_k, V)
    left = machine.available(device)
    each = choosing(spec, length, 2 * settings.beams if settings.beams > 1 else 0)
    if left is None or prompts * copies * each <= left:
        return
    fewer = "give fewer prompts at a time" if copies == 1 else f"set lower {name}"
    raise InputError(
        f"each step of {_prompts(prompts, copies)} takes {prompts * copies * each / 1e9:,.1f} GB, with logits of "
        f"{V:,} tokens each, and of this machine's memory {left / 1e9:,.1f} GB are left; {fewer}: "
        f"{left // each:,} side by side fit"
    )


def must_read(stack: Stack, device: torch.device, rows: int, tokens: int) -> None:
    """Raises `InputError`, with the figures, where `rows` texts of `tokens` do not pass through a stack that reads them
    at once, for each token sees what stands behind it."""
    left, needed = machine.available(device), passing(stack, rows, tokens, tokens)
    if left is None or needed <= left:
        return
    text = "a text" if rows == 1 else f"{rows:,} texts"
    raise InputError(
        f"{text} of {tokens:,} tokens, read at once, would take {needed / 1e9:,.1f} GB, and of this machine's memory "
        f"{left / 1e9:,.1f} GB are left; give shorter ones" + ("" if rows == 1 else ", or fewer at a time")
    )


def must_fit(
    spec: Transformer, dtype: torch.dtype, rows: int, tokens: int, cache: Cache, more: int = 0, copies: int = 1
) -> None:
    """Raises `InputError`, with the figures, where `rows` prompts of `tokens` more each, of which there will be so many
    `copies` (beams, answers), do not fit beside what is in memory already. What a window's ring keeps does not grow,
    and always fits. The cache then makes room for the prompts, and for up to `more` tokens after them if these fit as
    well, so that what fits does not outgrow memory by being read."""
    left, length = machine.available(torch.device(cache.device)), cache.length + tokens
    kept = "int8" if cache.int8 else None
    name = str(dtype).removeprefix("torch.")

    def needed(length: int) -> int:
        return rows * copies * planning.kv_bytes(spec, length, source=0, dtype=name, quantize=kept)

    if left is None or needed(min(length + more, 2 * length)) - cache.bytes() <= left:
        cache.foresee(tokens, more)
        return
    whole = needed(length)
    if whole - cache.bytes() <= left:
        cache.foresee(tokens, more, ahead=False)
        return
    most = int((left + cache.bytes()) / whole * length)
    weights = planning.parameters(spec).total
    raise InputError(
        f"keys and values of {_prompts(rows, copies)} of {length:,} tokens take {whole / 1e9:,.1f} GB in "
        f"{kept or name}, and of this machine's memory {left / 1e9:,.1f} GB are left beside {weights:,} weights; give "
        f"{f'at most {most:,} tokens' if most else 'shorter ones'}{_fewer(rows)}{_narrower(name, kept)}, use a model "
        f"whose attention has a window, or a machine with more memory"
    )


def _prompts(rows: int, copies: int) -> str:
    said = "a prompt" if rows == 1 else f"{rows:,} prompts"
    return said if copies == 1 else f"{copies:,} continuations of {said}"


def _fewer(rows: int) -> str:
    return "" if rows == 1 else " or fewer prompts at a time"


def _narrower(dtype: str, kept: str | None) -> str:
    wide = ", load the model in bfloat16" if dtype in ("float32", "float64") and kept is None else ""
    return wide if kept is not None else f'{wide}, keep them in 8 bits (quantize_cache="int8")'
