"""The Transformer: one class for encoders, decoders and encoder-decoders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import torch
from torch import Tensor, nn

from anyformer import spec
from anyformer.errors import InputError
from anyformer.generation import (
    Answer,
    Prompts,
    Settings,
    Speculation,
    Tally,
    answers,
    decode,
    stream,
    until_end,
    with_marks,
)
from anyformer.model import embedding, prompting
from anyformer.model.draft import check_draft
from anyformer.model.heads import build_head
from anyformer.model.inputs import check_cached, check_fits, check_ids, prefix_of, tokens_of
from anyformer.model.stack import Stack
from anyformer.model.together import rows_together
from anyformer.parts.cache import Cache
from anyformer.parts.context import Context
from anyformer.parts.masks import Lengths, Tokens
from anyformer.parts.quantized import numbers_of, share

if TYPE_CHECKING:
    from anyformer.checkpoints import Carried
    from anyformer.model.quantizing import Quantization
    from anyformer.text import Tokenizer


@dataclass(frozen=True)
class Output:
    """What a forward pass gives.

    hidden          [B, T, D] after the final norm
    logits          [B, T, V], [B, T, labels] or [B, labels]; None with targets, or where the head has none
    loss            mean cross-entropy of the targets, nats, float32; None without targets
    target_count    how many targets that mean is over
    auxiliary_loss  what layers add to the loss (experts' balance); 0 where none does
    """

    hidden: Tensor
    logits: Tensor | None = None
    loss: Tensor | None = None
    target_count: Tensor | None = None
    auxiliary_loss: Tensor | float = 0.0


class Transformer(nn.Module):
    """A model built from its spec.

    .spec        what it is
    .tokenizer   its tokenizer, or None
    .generation  generation defaults, as `generation_config.json` names them
    .family      the name of the family it was loaded from, or None
    .carried     what its checkpoint held beyond the model, for `save` to write back
    .origin      where it was read, a path or `org/name@commit`, or None
    .quantization  what became of its matrices if they are in blocks (`load(..., quantize=)`), or None
    """

    def __init__(self, description: spec.Transformer) -> None:
        super().__init__()
        self.spec = description
        self.tokenizer: Tokenizer | None = None
        self.generation: dict[str, Any] = {}
        self.family: str | None = None
        self.carried: Carried | None = None
        self.origin: str | None = None
        self.quantization: Quantization | None = None
        encoder, decoder = description.encoder, description.decoder
        self.encoder = Stack(encoder) if encoder is not None else None
        source_dim = encoder.dim if encoder is not None else None
        self.decoder = Stack(decoder, source_dim) if decoder is not None else None
        self.head = build_head(description)
        self.sees_prefix = any(mixer.visibility == "prefix" for mixer in description.output.attentions())
        self.tie()

    def tie(self) -> None:
        """Make parameters that the spec calls one into one."""
        if self.spec.shared_embedding:
            assert self.encoder is not None and self.decoder is not None
            share(self.decoder.embeddings.tokens, self.encoder.embeddings.tokens)
        if getattr(self.spec.head, "tied", False):
            assert self.head is not None
            share(self.head.output, self.output_stack.embeddings.tokens)

    @property
    def output_stack(self) -> Stack:
        """The stack whose hidden states the head reads."""
        stack = self.decoder if self.decoder is not None else self.encoder
        assert stack is not None
        return stack

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return numbers_of(self.output_stack.embeddings.tokens).device

    @property
    def dtype(self) -> torch.dtype:
        """What the parameters are; of a quantised model, those that are no blocks."""
        return numbers_of(self.output_stack.embeddings.tokens).dtype

    def train(self, mode: bool = True) -> Self:
        """As torch's. Raises `InputError` for a quantised model, whose blocks do not learn."""
        if mode and self.quantization is not None:
            raise InputError("a quantised model does not learn; load it without quantize= to train it")
        return super().train(mode)

    def checkpoint_activations(self, on: bool = True) -> None:
        """Keep of each layer only its input for the backward pass, which then computes it again (see `Stack`)."""
        for stack in (self.encoder, self.decoder):
            if stack is not None:
                stack.checkpoint_activations = on

    @property
    def vocabulary(self) -> int:
        """How many tokens the output stack knows."""
        return self.spec.output.embeddings.vocabulary

    @property
    def positions(self) -> int | None:
        """How many positions the output stack has learned; None where any position will do."""
        position = self.spec.output.embeddings.position
        return position.size if isinstance(position, spec.Learned) else None

    def rows_together(self, length: int) -> int:
        """How many rows of at most `length` tokens may take a step of one token each side by side, and each get the
        bits that it gets alone (`model/together.py`); 1 where nothing is known of that."""
        return rows_together(self, length)

    def forward(
        self,
        tokens: Tensor,
        *,
        source: Tensor | None = None,
        valid: Tensor | None = None,
        source_valid: Tensor | None = None,
        documents: Lengths | Tensor | None = None,
        source_documents: Lengths | Tensor | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        prefix: Tensor | Lengths | None = None,
        cache: Cache | None = None,
        targets: Tensor | None = None,
        last: bool = False,
    ) -> Output:
        """One pass. tokens [B, T] are the decoder's where there is one, else the encoder's.

        source        [B, S] ids for the encoder of an encoder-decoder; with a cache, at the first call only
        valid         [B, T] bool, False for padding (left, right, anywhere); source_valid [B, S] likewise
        documents     lengths of the documents packed into each row, e.g. ((100, 28), (128,)); or ids [B, T]. Positions
                      start again in each, and none sees another. Lengths are known to the host, and cost no dense mask
        positions     [B, T], where they are not counted from 0 (or from where the cache is)
        segments      [B, T] token types
        prefix        [B] how many first positions are visible to all, for visibility "prefix"; with a cache, the first
                      call holds them all. With documents given by their lengths, a number for each, likewise
        cache         from `new_cache`; takes in these tokens. The pass then has no gradients
        targets       [B, T] (or [B]) ids wanted at each position, -100 for none: gives `loss` instead of `logits`
        last          logits of the last position only, [B, 1, V]

        Raises `InputError` for ids outside the vocabulary, positions beyond those learned, and inputs that do not fit
        the shape of the model.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            check_ids(tokens)
            check_fits("segments", segments, tokens.shape)
            prefix = prefix_of(prefix, tokens, documents)
            asked = tokens.shape[1]
            if cache is not None:
                check_cached(cache, tokens, valid, documents, positions, segments)
                assert prefix is None or isinstance(prefix, Tensor)
                queries = cache.queries(tokens.shape[1], valid, prefix)
                if cache.outdated(tokens.shape[1]):
                    tokens, valid = cache.retell(tokens, valid)
                    queries = cache.queries(tokens.shape[1], valid, prefix)
            else:
                queries = tokens_of(tokens, valid, documents, positions, prefix)
            if source is not None and len(source) != len(tokens):
                raise InputError(f"the source has {len(source)} rows, but the tokens have {len(tokens)}")
            encoded, source_tokens, auxiliary = self._source(source, source_valid, source_documents, cache)
            context = Context(queries, source=encoded, source_tokens=source_tokens, cache=cache)
            context.auxiliary += auxiliary
            hidden = self.output_stack(tokens, context, segments)
            if cache is not None:
                cache.source = source_tokens
                cache.advance(queries)
                cache.remember(tokens, valid)
                # Where the cache was told everything again, what was asked for stands at the end.
                hidden, queries = hidden[:, -asked:], queries[-asked:]
            balance = sum(context.auxiliary) if context.auxiliary else 0.0
            if self.head is None:
                return Output(hidden, auxiliary_loss=balance)
            if targets is not None:
                total, count = self.head.loss(hidden, queries, targets)
                return Output(hidden, None, total / count.clamp(min=1), count, balance)
            return Output(hidden, self.head(hidden[:, -1:] if last else hidden, queries), auxiliary_loss=balance)

    def _source(
        self, source: Tensor | None, valid: Tensor | None, documents: Lengths | Tensor | None, cache: Cache | None
    ) -> tuple[Tensor | None, Tokens | None, list[Tensor]]:
        """The encoder's hidden states and their tokens, from the cache after its first call; what layers hand up."""
        if self.encoder is None or self.decoder is None:
            if source is not None:
                raise InputError(f"this model is {_a(self.spec.shape)}; only an encoder-decoder takes a source")
            return None, None, []
        if source is None:
            if cache is None or cache.source is None:
                raise InputError("an encoder-decoder needs source= (with a cache, at its first call)")
            return None, cache.source, []
        if cache is not None and cache.source is not None:
            raise InputError("the cache already holds a source; make a new cache for a new one")
        tokens = tokens_of(source, valid, documents, None, None)
        context = Context(tokens)
        return self.encoder(source, context), tokens, context.auxiliary

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
        return self.next_states(tokens, cache, valid=valid, source=source, source_valid=source_valid)[0]

    def next_states(
        self,
        tokens: Tensor,
        cache: Cache,
        *,
        valid: Tensor | None = None,
        source: Tensor | None = None,
        source_valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `next_logits`, and the hidden states [B, T, D] of all the tokens."""
        if not isinstance(self.spec.head, spec.LanguageModelHead):
            raise InputError(f"this model ends in a {self.spec.head.kind} head; only a language model generates")
        prefix = None
        if self.sees_prefix and not cache.length:
            # A prompt is seen in both directions, as the prefix of what is to come.
            prefix = tokens.new_full((len(tokens),), tokens.shape[1]) if valid is None else valid.sum(1)
        out = self(tokens, cache=cache, valid=valid, source=source, source_valid=source_valid, prefix=prefix, last=True)
        assert out.logits is not None
        return out.logits[:, -1], out.hidden

    def each_logits(self, tokens: Tensor, cache: Cache, *, valid: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] after each of the tokens [B, T], which the cache then holds."""
        logits = self(tokens, cache=cache, valid=valid).logits
        assert logits is not None
        return logits

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        margin: int = 0,
        quantize: Literal["int8"] | None = None,
    ) -> Cache:
        """A cache for `batch_size` rows: it grows as needed, or holds `capacity` tokens; a sliding window's is a ring
        of the window's size either way, and of as many slots more as `truncate` may take back (`margin`). With
        `quantize="int8"` it keeps keys and values in 8 bits, in about half the bytes of bfloat16
        (`parts/kernels/int8_rows.py`). Raises `InputError` for a model that cannot decode step by step."""
        if quantize not in (None, "int8"):
            raise InputError(f"a cache is quantised to int8, not to {quantize!r}; or leave quantize out")
        if self.decoder is None:
            raise InputError("an encoder sees all tokens at once and needs no cache; call the model without one")
        for mixer in self.spec.output.attentions():
            if mixer.source == "self" and mixer.visibility == "full":
                raise InputError("this decoder's attention is not causal, so no token can be computed before the next")
        stretches, int8 = self.decoder.stretches(), quantize == "int8"
        return Cache(self.decoder.horizons(), batch_size, self.device, capacity, stretches, margin, int8)

    @overload
    def generate(self, prompts: Sequence[str], **settings: Any) -> list[str]: ...
    @overload
    def generate(self, prompts: Tensor, *, valid: Tensor | None = None, **settings: Any) -> Tensor: ...
    def generate(
        self,
        prompts: Sequence[str] | Tensor,
        *,
        valid: Tensor | None = None,
        draft: Transformer | None = None,
        tally: Tally | None = None,
        **settings: Any,
    ) -> list[str] | Tensor:
        """Continue prompts (with an encoder: answer sources).

        Texts in, texts out: list[str] of what is new. Or ids [B, T] in (`valid` [B, T] marks padding), new ids [B, N]
        out, without prompt and start token, padded after the end. Settings are those of
        `anyformer.generation.Settings` (`max_new_tokens`, `temperature`, `beams`, `seed` ...); given ones win over the
        checkpoint's own. With `answers`, those of a prompt follow each other: B · answers rows.

        A `draft`, a smaller model of the same vocabulary, or `prompt_lookup` proposes tokens that this one checks: the
        answers are its own, and come faster where much of what is proposed is accepted, which a `tally` counts.
        """
        chosen = self.settings(**settings)
        speculation = self._speculation(draft, tally, chosen)
        if isinstance(prompts, Tensor):
            return self._generate(prompts.to(self.device), valid, chosen, speculation)[0]
        ids, valid = prompting.batch(self, prompts, chosen, valid)
        if not prompts:
            return []
        tokenizer = prompting.tokenizer_of(self)
        if chosen.beams > 1 or chosen.stop:
            steps = stream(self, self.beginning(ids, valid, chosen), chosen, tokenizer, speculation=speculation)
            return ["".join(row) for row in zip(*steps)]
        new, lengths = self._generate(ids, valid, chosen, speculation)
        rows = [row[:length] for row, length in zip(new.tolist(), lengths)]
        return [tokenizer.decode(until_end(row, chosen.eos)) for row in rows]

    def answers(
        self,
        prompts: Sequence[str] | Tensor,
        *,
        valid: Tensor | None = None,
        draft: Transformer | None = None,
        tally: Tally | None = None,
        **settings: Any,
    ) -> list[Answer]:
        """As `generate`, but all there is to say of each answer: text, tokens with their log-probabilities (and, with
        `logprobs`, those of the likeliest at each place), score, and why it ends. Where beam search finds fewer than
        `answers`, the others are empty."""
        chosen = self.settings(**settings)
        speculation = self._speculation(draft, tally, chosen)
        if isinstance(prompts, Tensor):
            return self._answers(prompts.to(self.device), valid, chosen, speculation)
        ids, valid = prompting.batch(self, prompts, chosen, valid)
        return self._answers(ids, valid, chosen, speculation) if prompts else []

    def settings(self, **given: Any) -> Settings:
        """The settings of `generate`: those given, over the checkpoint's own. Raises `InputError` for one that cannot
        be used."""
        chosen = Settings.of(self.generation, **given).within(self.vocabulary, given)
        if not chosen.stop:
            return chosen
        if self.tokenizer is None:
            raise InputError("a stop string ends a text, and this model has no tokenizer; set model.tokenizer")
        return with_marks(chosen, self.tokenizer)

    def encode_prompts(self, prompts: Sequence[str], settings: Settings) -> list[list[int]]:
        """Ids of each prompt as the model expects them: an empty one is the beginning-of-text token."""
        return prompting.encode(self, prompts, settings)

    def _generate(
        self, ids: Tensor, valid: Tensor | None, settings: Settings, speculation: Speculation
    ) -> tuple[Tensor, list[int]]:
        """New ids [B, N], and how many of each row's were said before there was no room for more."""
        if settings.beams > 1 or settings.stop:
            rows = [answer.ids for answer in self._answers(ids, valid, settings, speculation)]
            longest = max(map(len, rows), default=0)
            filled = [row + [settings.filler] * (longest - len(row)) for row in rows]
            return torch.tensor(filled, dtype=torch.long, device=self.device), [len(row) for row in rows]
        prompts = self.beginning(ids, valid, settings)
        steps = decode(self, prompts, settings, self.tokenizer, speculation=speculation)
        said, over = zip(*((step.ids_B, step.over) for step in steps))
        return torch.stack(said, 1), [sum(row not in its for its in over) for row in range(len(said[0]))]

    def _answers(self, ids: Tensor, valid: Tensor | None, settings: Settings, speculation: Speculation) -> list[Answer]:
        return answers(self, self.beginning(ids, valid, settings), settings, self.tokenizer, speculation)

    def _speculation(self, draft: Transformer | None, tally: Tally | None, settings: Settings) -> Speculation:
        """What decoding is told of speculation. Raises `InputError` for a draft that does not fit."""
        if draft is not None and not isinstance(draft, Transformer):
            raise InputError(f"a draft is a model, not {_a(type(draft).__name__)}; load it: draft=af.load(...)")
        if draft is not None:
            check_draft(self, draft, settings)
        return Speculation(draft, tally)

    def beginning(self, ids: Tensor, valid: Tensor | None, settings: Settings) -> Prompts:
        """What decoding begins with: ids [B, T] themselves; or as the source, and a start token for the decoder."""
        return prompting.beginning(self, ids, valid, settings)

    @overload
    def stream(self, prompt: str | Sequence[int], cache: Cache | None = None, **settings: Any) -> Iterator[str]: ...
    @overload
    def stream(self, prompt: list[str], cache: Cache | None = None, **settings: Any) -> Iterator[list[str]]: ...
    def stream(
        self,
        prompt: str | Sequence[int] | list[str],
        cache: Cache | None = None,
        draft: Transformer | None = None,
        tally: Tally | None = None,
        **settings: Any,
    ) -> Iterator[str] | Iterator[list[str]]:
        """Continue one prompt (text, or ids) piece by piece, as tokens come; never splits a character, and never gives
        what may turn out to begin a stop string. With a `cache`, the prompt is only what is new since the call before.

        Several texts are continued side by side: each step gives a list, what is new of each, often nothing. Of several
        answers to one prompt alone it is the first. Beam search knows its first token only at the end, so it gives one
        piece; and it continues no cache."""
        if not isinstance(prompt, Sequence):
            raise InputError("stream takes a text, a list of texts, or the ids of one text as a list: ids.tolist()")
        chosen, tokenizer = self.settings(**settings), prompting.tokenizer_of(self)
        speculation = self._speculation(draft, tally, chosen)
        if prompt and not isinstance(prompt, str) and isinstance(prompt[0], str):
            ids, valid = prompting.batch(self, prompt, chosen)  # type: ignore[arg-type]
            prompts = self.beginning(ids, valid, chosen)
            return stream(self, prompts, chosen, tokenizer, cache=cache, speculation=speculation)
        chosen = chosen.model_copy(update={"answers": 1})
        row = self.encode_prompts([prompt], chosen)[0] if isinstance(prompt, str) else list(prompt)
        prompts = self.beginning(torch.tensor([row], device=self.device), None, chosen)
        pieces = stream(self, prompts, chosen, tokenizer, cache=cache, speculation=speculation)
        return (piece for (piece,) in pieces)

    def embed(self, texts: Sequence[str], batch_size: int = 32) -> Tensor:
        """One vector a text, [N, D] float32, pooled and normalised as the checkpoint says, else the mean over tokens.

        Texts longer than the positions that the model has learned are cut there.
        """
        return embedding.embed(self, texts, batch_size)

    def embed_ids(self, ids: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """What `embed` gives for texts that are ids [B, T] already, of which `valid` [B, T] are no padding: [B, D]."""
        return embedding.embed_ids(self, ids, valid)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write a checkpoint that other tools load: a Hugging Face directory where a family can express the spec, and
        spec.json always; or a GGUF file, where the name ends in .gguf. Nothing is left half-written.

        Raises `InputError` for a directory of a quantised model, whose blocks only a GGUF file can hold."""
        from anyformer.model.saving import save

        save(self, Path(directory))

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        message: str = "Upload a model of anyformer",
        license: str | None = None,
    ) -> str:
        """Put the checkpoint that `save` writes into the repository `org/name` of a hub, in one commit, with a model
        card where there is none yet. Gives `org/name@commit`, which `load` reads.

        The repository, and the branch `revision`, are made where there are none, `private` or as the hub's owner has
        it by default. `license` is the card's, by the hub's name for it (`apache-2.0`). Raises `CheckpointError`
        saying why the hub does not take it.
        """
        from anyformer.model.saving import push

        return push(self, repository, private=private, revision=revision, message=message, license=license)

    def describe(self, context: int | None = None) -> str:
        """The model as a person would draw it: stacks, blocks, parts, shapes, parameters, costs."""
        from anyformer.planning import describe

        return describe(self.spec, context)


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
