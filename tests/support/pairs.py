"""One model twice, here and in transformers, and how far apart the two are in each thing that parity is about."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import odd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import anyformer as af
from anyformer import families
from anyformer.model import Transformer
from anyformer.model.heads import IGNORED

#: Ids below this are left to special tokens, which some models see specially.
FIRST = 5
LENGTHS = (11, 17, 6)


@dataclass
class Pair:
    """One model twice: transformers' (saved in `directory` by itself) and ours, loaded from there."""

    theirs: Any
    ours: Transformer
    directory: Path
    pad: int

    @property
    def shape(self) -> str:
        return self.ours.spec.shape

    @property
    def head(self) -> str:
        return self.ours.spec.head.kind

    def ids(self, rows: int, length: int, seed: int = 0) -> Tensor:
        """Random ids [rows, length]."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(FIRST, self.ours.spec.output.embeddings.vocabulary, (rows, length), generator=generator)

    def ragged(self, left: bool = False) -> tuple[Tensor, Tensor]:
        """A padded batch of rows of `LENGTHS`, and where it is valid. On the right for an encoder that adds positions:
        transformers counts padding there too, so that on the left it is another text."""
        encoder = self.ours.spec.encoder
        left = left and (encoder is None or encoder.embeddings.position is None)
        ids, index = self.ids(len(LENGTHS), max(LENGTHS)), torch.arange(max(LENGTHS))
        lengths = torch.tensor(LENGTHS)[:, None]
        valid = index >= max(LENGTHS) - lengths if left else index < lengths
        return ids.masked_fill(~valid, self.pad), valid

    def reference(self, ids: Tensor, valid: Tensor, **inputs: Any) -> Tensor:
        """What transformers gives: logits, or hidden states where there is no head."""
        if "position_ids" in signature(self.theirs.forward).parameters and self.shape == "decoder":
            inputs["position_ids"] = (valid.long().cumsum(1) - 1).clamp(min=0)
        out = self.theirs(input_ids=ids, attention_mask=valid.long(), **inputs)
        for name in ("prediction_logits", "logits", "last_hidden_state"):
            if (found := getattr(out, name, None)) is not None:
                return found
        raise AssertionError("the reference gave nothing")

    def both(self, left: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """(transformers' output, ours, where they count) for a ragged batch."""
        ids, valid = self.ragged(left)
        if self.shape == "encoder-decoder":
            tokens = self.ids(len(ids), 9, seed=1)
            theirs = self.reference(ids, valid, decoder_input_ids=tokens)
            ours = self.ours(tokens, source=ids, source_valid=valid)
            found = ours.hidden if self.head == "embedding" else ours.logits
            return theirs, found, torch.ones_like(tokens, dtype=torch.bool)
        theirs, ours = self.reference(ids, valid), self.ours(ids, valid=valid)
        found = ours.hidden if self.head == "embedding" else ours.logits
        return theirs, found, torch.ones(len(ids), dtype=torch.bool) if found.dim() == 2 else valid


def make(family: str, architecture: str, seed: int, directory: Path) -> Pair:
    """An odd random model of transformers' own, saved by it in `directory` and loaded from there."""
    chosen = families.named(family)
    spec = odd.odd_spec(chosen, seed, architecture)
    theirs = odd.reference_model(chosen, spec, architecture, seed)
    if theirs.can_generate():
        theirs.generation_config.eos_token_id = None
        theirs.generation_config.pad_token_id = 0
        theirs.generation_config.forced_eos_token_id = None
        if theirs.config.is_encoder_decoder:
            theirs.config.decoder_start_token_id = theirs.generation_config.decoder_start_token_id = 0
    theirs.config.eos_token_id = None
    theirs.save_pretrained(directory)
    ours = af.load(directory, device="cpu")
    assert ours.spec == spec
    return Pair(theirs, ours, directory, theirs.config.pad_token_id or 0)


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest reference."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def logits(pair: Pair, left: bool = False) -> float:
    """The distance of logits (or hidden states) of a ragged batch, padded on the right or on the left."""
    theirs, ours, valid = pair.both(left)
    assert theirs.shape == ours.shape
    return distance(ours[valid], theirs[valid])


def loss_and_gradients(pair: Pair) -> tuple[float, float]:
    """Relative differences of the loss of random targets, and of the norm of its gradient over all parameters."""
    pair.theirs.zero_grad()
    pair.ours.zero_grad()
    theirs, ours, valid = pair.both()
    if pair.head == "embedding":
        wanted = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(0))
        losses = [((out - wanted)[valid] ** 2).mean() for out in (theirs, ours)]
    else:
        shape = (pair.theirs.config.vocab_size, *theirs.shape[:-1])
        choices = torch.randint(0, theirs.shape[-1], shape[1:], generator=torch.Generator().manual_seed(0))
        targets = choices.masked_fill(~valid, IGNORED)
        losses = [F.cross_entropy(theirs.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)]
        ids, ids_valid = pair.ragged()
        if pair.shape == "encoder-decoder":
            out = pair.ours(pair.ids(len(ids), 9, seed=1), source=ids, source_valid=ids_valid, targets=targets)
        else:
            out = pair.ours(ids, valid=ids_valid, targets=targets)
        losses.append(out.loss)
        assert int(out.target_count) == int(valid.sum())
    norms = []
    for loss, model in zip(losses, (pair.theirs, pair.ours)):
        loss.backward()
        squares = [p.grad.double().pow(2).sum() for p in model.parameters() if p.grad is not None]
        norms.append(torch.stack(squares).sum().sqrt())
    loss, norm = ([value.item() for value in values] for values in (losses, norms))
    return abs(loss[1] / loss[0] - 1), abs(norm[1] / norm[0] - 1)


@torch.no_grad()
def cached_logits(pair: Pair) -> float:
    """The distance of our logits, fed 64 tokens one by one after prompts of different lengths, from transformers'
    uncached ones."""
    ids, valid = pair.ragged(left=True)
    steps = pair.ids(len(ids), 64, seed=2)
    cache = pair.ours.new_cache(len(ids))
    if pair.shape == "encoder-decoder":
        theirs = pair.reference(ids, valid, decoder_input_ids=steps)
        inputs = [{"source": ids, "source_valid": valid}, *[{}] * 63]
        ours = [
            pair.ours(steps[:, step : step + 1], cache=cache, **more).logits for step, more in zip(range(64), inputs)
        ]
    else:
        whole = torch.cat([valid, torch.ones_like(steps, dtype=torch.bool)], 1)
        theirs = pair.reference(torch.cat([ids, steps], 1), whole)[:, ids.shape[1] :]
        pair.ours(ids, valid=valid, cache=cache)
        ours = [pair.ours(steps[:, step : step + 1], cache=cache).logits for step in range(64)]
    return distance(torch.cat(ours, 1), theirs)


@torch.no_grad()
def greedy_tokens(pair: Pair) -> bool:
    """Whether greedy decoding of a ragged batch writes the same tokens, ties of the two best logits aside."""
    ids, valid = pair.ragged(left=True)
    # Without its cache, which miscounts the layers of a decoder that is deeper than its encoder.
    settings = {"do_sample": False, "num_beams": 1, "max_new_tokens": 24, "min_new_tokens": 24, "use_cache": False}
    theirs = pair.theirs.generate(input_ids=ids, attention_mask=valid.long(), **settings)[:, -24:]
    ours = pair.ours.generate(ids, valid=valid, max_new_tokens=24, eos=())
    assert ours.shape == theirs.shape
    return all(
        torch.equal(one, other) or tied(pair, ids[row][valid[row]], one, other)
        for row, (one, other) in enumerate(zip(ours, theirs))
    )


def tied(pair: Pair, prompt: Tensor, one: Tensor, other: Tensor) -> bool:
    """Whether the first token in which two continuations differ was a tie of the two best logits."""
    at = int((one != other).nonzero()[0])
    if pair.shape == "encoder-decoder":
        begun = torch.cat([torch.zeros(1, dtype=torch.long), one[:at]])[None]
        logits = pair.ours(begun, source=prompt[None]).logits[0, -1]
    else:
        logits = pair.ours(torch.cat([prompt, one[:at]])[None]).logits[0, -1]
    best = logits.topk(2).values
    return float((best[0] - best[1]) / logits.abs().max()) < 1e-5


def tensors_both_ways(pair: Pair, directory: Path) -> bool:
    """Whether what transformers saved and we save again is the same to the byte, and loads in transformers whole."""
    pair.ours.save(directory)
    first, second = (load_file(home / "model.safetensors") for home in (pair.directory, directory))
    same = first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )
    model, told = type(pair.theirs).from_pretrained(directory, output_loading_info=True)
    whole = not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again = model.state_dict()
    return same and whole and all(torch.equal(tensor, again[name]) for name, tensor in pair.theirs.state_dict().items())
