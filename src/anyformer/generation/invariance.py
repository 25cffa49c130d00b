"""Batch-invariant decoding: a sequence gets, to the bit, what it gets alone, whatever shares its batch.

Otherwise that holds outside ties: the last bits of a sum depend on how many rows a product has, and on how many keys
attention is shown, hidden ones included (He 2025, "Defeating Nondeterminism in LLM Inference"). Here

    prompts  are read one by one, without padding, in pieces that their own length decides (`decoding.begin`)
    steps    are taken side by side only by rows that the model promises to tell apart (`Decoder.rows_together`): of
             the native kernels, whose sums run in one order however many rows there are, and while texts are short.
             All others go alone, as do those that speculate or search by contrast
    draws    are made row by row (`sampling.next_token`)

It costs what reading prompts together would have saved; of rows that go alone, what steps together would have
(`benchmarks/invariance.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from anyformer.generation.decoding import Decoder, Step, most_new
from anyformer.generation.prompts import Prompts
from anyformer.generation.settings import Settings


def groups(model: Decoder, settings: Settings, prompts: Prompts, *, alone: bool = False) -> list[list[int]]:
    """Which rows take their steps side by side, all of them to their full length; a search is as many as it has beams.
    Those that could not are a group each; all of them, if they are to go `alone`."""
    found: list[list[int]] = []
    beside: dict[tuple[int, int], list[int]] = {}
    for row, (prompt, source) in enumerate(zip(prompts.rows(), prompts.sources())):
        room = most_new(model, len(prompt), settings)
        size = 1 if alone else model.rows_together(max(len(prompt) + room, len(source))) // settings.beams
        if size <= 1:
            found.append([row])
        else:
            beside.setdefault((size, room), []).append(row)
    for (size, _), rows in beside.items():
        found += [rows[first : first + size] for first in range(0, len(rows), size)]
    return found


def of_one_room(model: Decoder, settings: Settings, prompts: Prompts) -> list[list[int]]:
    """The rows in groups that have room for equally many tokens: of one batch, where learned positions or
    `max_new_tokens` end all of its texts at the same step."""
    if model.positions is None:
        return [[*range(len(prompts))]]
    found: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts.rows()):
        found.setdefault(most_new(model, len(prompt), settings), []).append(row)
    return [*found.values()]


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
