"""The decoding loop: prompts in, one token a row and step out, everything on the cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from anyformer.errors import InputError
from anyformer.generation.fitting import must_fit, must_read
from anyformer.generation.penalties import Said
from anyformer.generation.prompts import Prompts
from anyformer.generation.sampling import Draws, next_token
from anyformer.generation.settings import Settings
from anyformer.parts.cache import Cache
from anyformer.planning.pieces import piece
from anyformer.spec import Transformer

#: How many steps a type of device may be told before it has to say whether the text has ended: enough that it never
#: waits for the next.
BEHIND = {"cuda": 2}


@runtime_checkable
class Decoder(Protocol):
    """What the loop needs of a model."""

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        margin: int = 0,
        quantize: Literal["int8"] | None = None,
    ) -> Cache: ...

    def next_logits(
        self,
        tokens: Tensor,
        cache: Cache,
        *,
        valid: Tensor | None = None,
        source: Tensor | None = None,
        source_valid: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, V] after the last of the tokens [B, T], which the cache then holds."""
        ...

    @property
    def spec(self) -> Transformer:
        """What it is, of which sizes are counted."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What its numbers are, those of a cache too."""
        ...

    def rows_together(self, length: int) -> int:
        """How many rows of at most `length` tokens may take a step of one token each side by side, and each get the
        bits that it gets alone; 1 where nothing is known of that."""
        ...

    @property
    def positions(self) -> int | None:
        """How many positions the decoder has learned; None where any position will do."""
        ...

    @property
    def sees_prefix(self) -> bool:
        """Whether each token of a prompt sees all of it, also what stands behind."""
        ...


class Constraint(Protocol):
    """What the rows of a batch may say."""

    def allowed(self, logits_BV: Tensor) -> Tensor:
        """The logits, -inf where a row must not go on so; before a token is chosen."""
        ...

    def advance(self, ids_B: Tensor) -> None:
        """Take in what was chosen; in rows that have ended, that is `filler`."""
        ...

    def reorder(self, rows: Sequence[int]) -> None:
        """Let row i continue what row rows[i] has said."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """What a step has chosen for each row, `filler` after an end, and what the model had said of it: the logits before
    anything was done to them. Rows that are `over` had no room for more, and may have said no end token."""

    ids_B: Tensor
    logits_BV: Tensor
    over: frozenset[int] = frozenset()


def _asked(truth: Tensor) -> Callable[[], bool]:
    """The truth, asked for now, to be waited for when it is called for: not for what a GPU is told in between."""
    if truth.device.type != "cuda":
        return lambda: bool(truth)
    here = truth.to("cpu", non_blocking=True)
    there = torch.cuda.current_stream(truth.device).record_event()

    def answer() -> bool:
        there.synchronize()
        return bool(here)

    return answer


class Ends:
    """Which rows have ended."""

    def __init__(self, settings: Settings, rows: int, device: torch.device) -> None:
        self.settings = settings
        self._eos = torch.tensor(settings.eos, device=device)
        self._ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self._asked: deque[Callable[[], bool]] = deque()

    def filled(self, ids_B: Tensor) -> Tensor:
        """The ids chosen, `filler` in rows that have ended before; and take in which of them end."""
        if not self.settings.eos:
            return ids_B
        ids_B = torch.where(self._ended, self.settings.filler, ids_B)
        self._ended = self._ended | torch.isin(ids_B, self._eos)
        return ids_B

    def all(self) -> bool:
        """Whether every row has ended; on a device that runs `BEHIND` the host, so many steps ago: those that it has
        been told since are only filled. Nothing else in a step waits for the device."""
        if not self.settings.eos:
            return False
        self._asked.append(_asked(self._ended.all()))
        return len(self._asked) > BEHIND.get(self._ended.device.type, 0) and self._asked.popleft()()


@torch.no_grad()
def choices(
    model: Decoder,
    prompts: Prompts,
    settings: Settings,
    *,
    cache: Cache | None = None,
    constraint: Constraint | None = None,
    draws: int = 1,
) -> Iterator[Step]:
    """Yield what each step chooses, until all rows have ended or `max_new_tokens` are there.

    `cache` continues an earlier conversation: the prompts are then only what is new, beginning with the id that was
    yielded last, which no call has read yet. Each prompt is read once, and continued `draws` times, row after row. Of
    the settings, those of beam search and contrastive search are passed over. Raises `InputError` where a prompt alone
    is longer than the positions that the model has learned.
    """
    prompts, device = prompts.checked(), prompts.device
    rows, length = len(prompts) * draws, prompts.ids.shape[1]
    before = 0 if cache is None else cache.length
    most = most_new(model, before + length, settings)
    numbers = Draws(settings.seed, rows, device) if settings.temperature > 0 else None
    said, ends = Said(settings, prompts), Ends(settings, rows, device)
    cache, logits = begin(model, prompts, settings, cache, copies=draws)
    if draws > 1:
        each = torch.arange(len(prompts), device=device).repeat_interleave(draws)
        cache.reorder(each)
        said.reorder(each)
        logits = logits[each]
    for step in range(most):
        scores = said.adjusted(logits)
        scores = scores if constraint is None else constraint.allowed(scores)
        said.must_go_on(scores, constraint is not None)
        ids = next_token(scores, settings, numbers)
        ids = ends.filled(said.forced(ids, first=before + step == 0, last=step == most - 1))
        yield Step(ids, logits)
        if step == most - 1 or ends.all():
            return
        said.add(ids)
        if constraint is not None:
            constraint.advance(ids)
        logits = model.next_logits(ids[:, None], cache)


def steps(
    model: Decoder,
    prompts: Prompts,
    settings: Settings,
    *,
    cache: Cache | None = None,
    constraint: Constraint | None = None,
) -> Iterator[Tensor]:
    """Yield the next id of each row, [B]: the ids of `choices`."""
    return (step.ids_B for step in choices(model, prompts, settings, cache=cache, constraint=constraint))


def most_new(model: Decoder, length: int, settings: Settings, name: str = "model") -> int:
    """How many tokens may follow `length` of them. Raises `InputError` where these are too many themselves."""
    if model.positions is None:
        return settings.max_new_tokens
    if length > model.positions:
        raise InputError(
            f"the prompt has {length} tokens, but the {name} has learned {model.positions} positions; shorten it"
        )
    # The last position still predicts one token more.
    return min(settings.max_new_tokens, model.positions - length + 1)


def begin(
    model: Decoder, prompts: Prompts, settings: Settings, cache: Cache | None = None, *, copies: int = 1
) -> tuple[Cache, Tensor]:
    """A cache that has read the prompts, a new one unless it is given, and the logits [B, V] after them; so many
    `copies` of each will be continued. Where rows must not depend on each other (`batch_invariant`), each prompt is
    read by itself, equal ones once."""
    more = settings.max_new_tokens - 1
    if cache is not None or not settings.batch_invariant:
        cache = model.new_cache(len(prompts), quantize=settings.quantize_cache) if cache is None else cache
        return cache, read(model, prompts, cache, more=more, copies=copies)
    found: dict[str, tuple[Cache, Tensor]] = {}
    rows = []
    for row, its in enumerate(zip(prompts.rows(), prompts.sources())):
        if str(its) not in found:
            alone = model.new_cache(1, quantize=settings.quantize_cache)
            found[str(its)] = alone, read(model, prompts.of_rows([row]), alone, more=more, copies=copies)
        rows.append(found[str(its)])
    if len(rows) == 1:
        return rows[0]
    cache = model.new_cache(len(rows), quantize=settings.quantize_cache)
    cache.join([alone for alone, _ in rows])
    return cache, torch.cat([logits for _, logits in rows])


def read(model: Decoder, prompts: Prompts, cache: Cache, *, more: int = 0, copies: int = 1) -> Tensor:
    """Read prompts in pieces, or whole where their tokens see what stands behind them; logits [B, V] after the last
    token. `more` and `copies` are those of `pieces`."""
    logits = None
    for part in pieces(model, prompts, cache, more, copies):
        logits = model.next_logits(
            part.ids, cache, valid=part.valid, source=part.source, source_valid=part.source_valid
        )
    assert logits is not None
    must_be_numbers(logits)
    return logits


def must_be_numbers(logits: Tensor) -> None:
    """Raises `InputError` for logits of which no token could be chosen. A model that is broken, or too large for its
    type, mostly is from its first token on, so that those after the prompt are looked at and no others."""
    if not bool(logits.amax().isfinite()):
        raise InputError(
            f"what the model makes of the prompt is no number (NaN or infinite, in {logits.dtype}); load it in float32 "
            f"or bfloat16 if that is narrower, else its weights are broken"
        )


def pieces(model: Decoder, prompts: Prompts, cache: Cache, more: int = 0, copies: int = 1) -> Iterator[Prompts]:
    """The pieces in which prompts are read into a cache, the first with their source: so small that reading one takes a
    bounded amount of memory. Up to `more` tokens will follow, in so many `copies` of each row. Raises `InputError`
    where the cache would not fit the memory there is."""
    rows, length = prompts.ids.shape
    must_fit(model.spec, model.dtype, rows, length, cache, more, copies)
    source, source_valid = prompts.source, prompts.source_valid
    if source is not None and model.spec.encoder is not None:
        must_read(model.spec.encoder, source.device, rows, source.shape[-1])
    if model.sees_prefix:
        must_read(model.spec.output, prompts.device, rows, length)
    start = 0
    while start < length:
        size = length if model.sees_prefix else piece(model.spec, rows, cache.length)
        part = slice(start, start + size)
        valid = None if prompts.valid is None else prompts.valid[:, part]
        yield Prompts(prompts.ids[:, part], valid, source, source_valid)
        source = source_valid = None
        start += size


def until_end(row: Sequence[int], eos: Sequence[int]) -> list[int]:
    """What stands before the first end token."""
    return list(takewhile(lambda token: token not in eos, row))
