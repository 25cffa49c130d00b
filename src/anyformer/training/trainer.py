"""The trainer: what a step does, a validation, and a checkpoint.

    batch of step s -> micro-batches -> gradients, normalised by the step's targets -> clipped -> one update

Everything that happens in step s follows from the recipe, the weights and moments, and s itself: there is no other
state, so there is nothing else to save.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyformer.data import Loader, spread
from anyformer.model import Transformer
from anyformer.planning import forward_flops
from anyformer.training.averaging import Average
from anyformer.training.compiling import compile_regions
from anyformer.training.lora import Adapted
from anyformer.training.objectives import OBJECTIVES, Batch
from anyformer.training.optimizers import load_moments, moments, optimizers, set_learning_rate
from anyformer.training.prepare import Text, starting_model
from anyformer.training.recipe import Recipe
from anyformer.training.scale.ranks import Alone
from anyformer.training.scale.snapshots import saved_tensors


@dataclass(frozen=True)
class Update:
    """What one step came to: its loss (nats a target), the norm of its gradient before clipping, was it skipped."""

    loss: float
    gradient_norm: float
    skipped: bool


class Trainer:
    """A model with its optimizers, on its text: what a single step, a validation and a checkpoint do. A model of many
    `ranks` lies over them already."""

    def __init__(self, recipe: Recipe, model: Transformer, text: Text, ranks: Alone | None = None) -> None:
        settings = recipe.training
        self.settings, self.seed = settings, recipe.run.seed
        self.ranks = ranks = ranks if ranks is not None else Alone()
        self.objective = OBJECTIVES[settings.objective](model)
        self.model = model.train()
        assert model.head is not None
        model.head.label_smoothing, model.head.z_loss = settings.label_smoothing, settings.z_loss
        model.checkpoint_activations(settings.checkpoint_activations)
        self.device = model.device
        self.objective.begin(settings, lambda: starting_model(recipe, text.tokenizer, text.labels, ranks))
        compile_regions(model, settings.compile, self.device)
        self.optimizers = optimizers(settings.optimizer, model, settings.weight_decay)
        self.average = Average(model, settings.ema) if settings.ema else None
        self.micro_tokens = settings.micro_batch_tokens or settings.batch_tokens // ranks.rows
        self.loader = Loader(
            self.objective.examples(text.train, settings.sequence_length), settings.batch_tokens, self.seed
        )
        self.text = text
        self.held_out = self.objective.examples(text.validation, settings.sequence_length)

    @property
    def flops(self) -> int:
        """FLOPs of a step, forward and backward (which multiplies twice as much, and once where weights do not learn),
        of examples of the mean length."""
        passes = 2 if isinstance(self.model, Adapted) else 3
        tokens, source = self.objective.lengths(self.loader.examples)
        flops = forward_flops(self.model.spec, round(tokens), source=None if source is None else round(source))
        return round(passes * self.settings.batch_tokens / self.loader.sizes.mean() * sum(flops.values()))

    def update(self, step: int, rate: float) -> Update:
        """Train on the batch of step `step` with learning rate `rate`. A loss or gradient that is not finite leaves
        weights and moments as they were."""
        torch.manual_seed(self.ranks.seed(_seed(self.seed, step)))
        loss = self.gradients(self.loader.batch(step), np.random.default_rng((self.seed, step)))
        norm = self.ranks.clip(self.model, self.settings.clip or math.inf)
        skipped = not (math.isfinite(loss) and math.isfinite(norm))
        if not skipped:
            set_learning_rate(self.optimizers, rate)
            for optimizer in self.optimizers:
                optimizer.step()
            if self.average is not None:
                self.average.update(step)
        self.model.zero_grad(set_to_none=True)
        return Update(loss, norm, skipped)

    def gradients(self, examples: Sequence[Any], generator: np.random.Generator) -> float:
        """Leave the gradient of the mean loss over all targets of `examples` in the parameters; return that loss."""
        batches = list(self._batches(examples, generator))
        targets = max(1, self.ranks.sum(sum(batch.target_count for batch in batches)))
        total = torch.zeros((), device=self.device)
        for index, batch in enumerate(batches):
            self.ranks.begin(index, len(batches))
            with self._precision():
                loss, added = self.objective.loss(self.model, batch.to(self.device))
            ((loss + added) / targets).backward()
            total += loss.detach() / targets
        return self.ranks.sum(total.item())

    def validate(self) -> dict[str, float]:
        """What the objective measures on held-out text, a mean over its targets: the loss (nats), and the share of
        right answers where there are such; and in bits a byte of UTF-8, where the loss is the text's own."""
        sizes = self.held_out.sizes
        wanted = max(1, int(self.settings.validate_tokens / sizes.mean()))
        examples = [self.held_out[index] for index in spread(len(sizes), wanted)]
        totals: dict[str, float] = defaultdict(float)
        targets = 0
        self.model.eval()
        with self.result(), torch.no_grad(), self._precision():
            for batch in self._batches(examples, np.random.default_rng(self.seed)):
                for name, total in self.objective.measure(self.model, batch.to(self.device)).items():
                    totals[name] += total.item()
                targets += batch.target_count
        self.model.train()
        self.ranks.settle()
        targets = max(1, self.ranks.sum(targets))
        found = {f"validation_{name}": self.ranks.sum(total) / targets for name, total in totals.items()}
        if self.objective.is_likelihood and found:
            targets_per_byte = self.text.validation.targets / self.text.validation.bytes
            found["validation_bits_per_byte"] = found["validation_loss"] * targets_per_byte / math.log(2)
        return found

    def result(self) -> AbstractContextManager[Any]:
        """Within, the model has the weights that the run gives: their average, where the recipe asks for one."""
        return nullcontext() if self.average is None else self.average.in_place()

    def save(self, directory: Path) -> None:
        """Write the model as the run gives it, a checkpoint like any other; an adapter also alone, in `adapter/`."""
        with self.result():
            if isinstance(self.model, Adapted):
                self.ranks.save(self.model, directory / "adapter")
                self.model.merge()
            self.ranks.save(self.model, directory)

    def write(self, directory: Path) -> None:
        """Write the model, its average and the moments into a directory."""
        averages = {} if self.average is None else {"average": self.average.averages}
        self.ranks.write(directory, self.model, {**averages, "optimizer": moments(self.optimizers, self.model)})

    def read(self, directory: Path) -> None:
        """Take up what `write` wrote, in this many processes or another number; the model itself only where they were
        many, for else it is a checkpoint like any other, which was loaded."""
        found = saved_tensors(directory, self.model)
        if self.average is not None:
            self.average.load(found["average"])
        load_moments(self.optimizers, self.model, found["optimizer"])

    def _batches(self, examples: Sequence[Any], generator: np.random.Generator) -> Iterator[Batch]:
        """The micro-batches of this rank. Those that only fill up, so that all ranks have as many, have no targets."""
        parts = list(in_parts(examples, self.micro_tokens))
        begins = accumulate(map(len, parts[:-1]), initial=0)
        for (part, begin), counts in self.ranks.share(list(zip(parts, begins))):
            batch = self.objective.batch(part, _from_child(generator, begin))
            if batch.target_count or self.ranks.rows > 1:
                yield batch if counts else replace(batch, target_count=0)

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16")


def in_parts(examples: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    """Examples in their order, as many at a time as have no more than `most` tokens, at least one."""
    begin = tokens = 0
    for index, example in enumerate(examples):
        if index > begin and tokens + example.size > most:
            yield examples[begin:index]
            begin, tokens = index, 0
        tokens += example.size
    if begin < len(examples):
        yield examples[begin:]


def _from_child(generator: np.random.Generator, begin: int) -> np.random.Generator:
    """A generator whose next child is child `begin` of another, which stays as it is."""
    known = generator.bit_generator.seed_seq
    assert isinstance(known, np.random.SeedSequence)
    return np.random.default_rng(
        np.random.SeedSequence(known.entropy, spawn_key=known.spawn_key, n_children_spawned=begin)
    )


def _seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])
