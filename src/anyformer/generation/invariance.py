"""Batch-invariant decoding: a sequence gets, to the bit, what it gets alone, whatever shares its batch.

Otherwise that holds outside ties: the last bits of a sum depend on how many rows a product has, and on how many keys
attention is shown, hidden ones included (He 2025, "Defeating Nondeterminism in LLM Inference"). Here

    prompts  are read one by one, without padding, in pieces that their own length decides (`decoding.begin`)
    steps    are taken side by side only by rows that the model promises to tell apart (`Decoder.rows_together`): of
             the native kernels, whose sums run in one order however many rows there are, and while texts are short.
             All others go alone, as do those that speculate or search by contrast
    draws    are made row by row (`sampling.next_token`)

It costs what reading prompts together would have saved; of rows that go alone, what steps together would have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anyformer.generation.decoding import Decoder, Step, left_padded, unpadded
from anyformer.generation.settings import Settings

#: What decoding begins with: `prompt` [B, T], `source` [B, S], and of each which is `valid`.
Begun = Mapping[str, Tensor | None]


def groups(model: Decoder, settings: Settings, begun: Begun, *, alone: bool = False) -> list[list[int]]:
    """Which rows take their steps side by side, all of them to their full length; a search is as many as it has beams.
    Those that could not are a group each; all of them, if they are to go `alone`."""
    prompts, sources = _rows(begun)
    found: list[list[int]] = []
    beside: dict[tuple[int, bool], list[int]] = {}
    for row, (prompt, source) in enumerate(zip(prompts, sources)):
        end = len(prompt) + settings.max_new_tokens
        size = 1 if alone else model.rows_together(max(end, len(source))) // settings.beams
        # What a text may say last, and first, hangs on the whole batch.
        if size <= 1 or (model.positions is not None and end > model.positions + 1):
            found.append([row])
        else:
            beside.setdefault((size, len(prompt) == 1), []).append(row)
    for (size, _), rows in beside.items():
        found += [rows[first : first + size] for first in range(0, len(rows), size)]
    return found


def of_rows(begun: Begun, rows: Sequence[int]) -> dict[str, Any]:
    """What these rows begin with, without padding that others of the batch asked for."""
    prompts, sources = ([its[row] for row in rows] for its in _rows(begun))
    device = _prompt(begun).device
    prompt, valid = left_padded(prompts, 0, device)
    if begun.get("source") is None:
        return {"prompt": prompt, "valid": valid}
    source, source_valid = left_padded(sources, 0, device)
    return {"prompt": prompt, "valid": valid, "source": source, "source_valid": source_valid}


def side_by_side(runs: Sequence[Iterator[Step]], groups: Sequence[Sequence[int]], filler: int) -> Iterator[Step]:
    """The steps of all groups as one batch's, its rows in order; `filler` where a group has ended, and the last logits
    there were."""
    steps: list[Step] = [next(run) for run in runs]
    order = torch.tensor([row for rows in groups for row in rows], device=steps[0].ids_B.device).argsort()
    over: set[int] = set()
    while len(over) < len(order):
        ids, logits = torch.cat([step.ids_B for step in steps]), torch.cat([step.logits_BV for step in steps])
        yield Step(ids[order], logits[order], frozenset(over))
        for index, (run, rows) in enumerate(zip(runs, groups)):
            following = next(run, None)
            if following is None:
                over.update(rows)
                following = Step(torch.full_like(steps[index].ids_B, filler), steps[index].logits_BV)
            steps[index] = following


def _rows(begun: Begun) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and sources (of nothing, where there are none) without padding."""
    prompt, source = _prompt(begun), begun.get("source")
    sources = [[] for _ in prompt] if source is None else unpadded(source, begun.get("source_valid"))
    return unpadded(prompt, begun.get("valid")), sources


def _prompt(begun: Begun) -> Tensor:
    prompt = begun["prompt"]
    assert prompt is not None
    return prompt
