"""Any anyformer model under lm-eval. It has no way to find a model type by itself, so its command line is started here,
where `anyformer` is one that it knows:

    python -m anyformer.inspection.evaluation.harness --model anyformer --model_args path=MODEL --tasks TASKS
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lm_eval import evaluator, utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from anyformer.data import NO_TARGET
from anyformer.errors import InputError
from anyformer.generation import Settings, left_padded
from anyformer.inspection.evaluation.answering import LONGEST_ANSWER, SIDE_BY_SIDE
from anyformer.inspection.evaluation.asking import evaluating, longest, reader, side_by_side
from anyformer.model import Transformer, load
from anyformer.model.heads import LARGEST_LOGITS
from anyformer.parts.masks import Tokens
from anyformer.training.objectives import SequenceToSequence

#: (the texts, the context's ids, the continuation's), as lm-eval hands them over.
Request = tuple[Any, list[int], list[int]]


class Harness(TemplateLM):
    """A model as lm-eval asks it: a `Transformer`, or the `path` of one (anything that `load` takes). The encoder of an
    encoder-decoder reads the context.

    `max_length` is how many tokens it reads at a time (what the model reads, at most 2,048, unless given). Batches are
    made by tokens, so lm-eval's `batch_size` is passed over.
    """

    def __init__(
        self,
        path: str | Transformer,
        dtype: str | None = None,
        device: str | None = None,
        max_length: int | str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        # Its command line says cuda where nothing is said, whatever there is.
        device = "auto" if device is None or (device.startswith("cuda") and not torch.cuda.is_available()) else device
        self.model = load(path, dtype, device) if isinstance(path, str) else path
        self.tokens = reader(self.model, "seq2seq")
        if self.tokens.eos is None:
            raise InputError("lm-eval needs a tokenizer with an end-of-text token, and this model's has none")
        self.asked = SequenceToSequence(self.model)
        self.backend = "seq2seq" if self.model.encoder is not None else "causal"
        self.max_length = int(max_length) if max_length else longest(self.model.spec)
        self._device = self.model.device

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        assert self.tokens.eos is not None
        return self.tokens.eos

    @property
    def prefix_token_id(self) -> int:
        """The id that stands before a text."""
        known = (self.model.generation.get("bos_token_id"), self.tokens.bos, self.tokens.eos)
        return next(token for token in known if token is not None)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text, between the tokens that the model expects around one unless it begins with the first."""
        if add_special_tokens is None:
            begin = self.tokens.decode([self.prefix_token_id], skip_special=False)
            add_special_tokens = not (begin and string.startswith(begin))
        return self.tokens.encode(string, special=add_special_tokens)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        sizes = [len(given) + len(wanted) for given, wanted in pairs]
        order = sorted(range(len(pairs)), key=lambda index: -sizes[index])
        found: dict[int, tuple[float, bool]] = {}
        with evaluating(self.model), tqdm(total=len(pairs), disable=disable_tqdm) as bar:
            for batch in side_by_side([sizes[index] for index in order]):
                together = [order[each] for each in batch]
                found |= zip(together, self._likelihoods([pairs[index] for index in together]))
                bar.update(len(batch))
        return [found[index] for index in range(len(pairs))]

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Both, the context without what the model could not read at its beginning."""
        if len(continuation) > self.max_length:
            raise InputError(
                f"a continuation of {len(continuation)} tokens is longer than max_length={self.max_length}"
            )
        room = self.max_length if self.backend == "seq2seq" else self.max_length + 1 - len(continuation)
        return context[-room:], continuation

    def _likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Of each pair, log P(wanted | given) in nats, and whether greedy would say what is wanted."""
        inputs = self.asked.conditional(pairs).to(self.model.device).inputs
        targets = inputs.pop("targets")
        hidden = self.model(**inputs, last=True).hidden[targets != NO_TARGET]
        wanted = targets[targets != NO_TARGET]
        assert self.model.head is not None
        shares, greedy = [], []
        for rows, asked in zip(*(each.split(max(1, LARGEST_LOGITS // self._vocabulary)) for each in (hidden, wanted))):
            logits = self.model.head(rows, Tokens(len(rows), start=0)).float()
            shares.append(logits.log_softmax(-1).gather(1, asked[:, None])[:, 0])
            greedy.append(logits.argmax(-1) == asked)
        lengths = [len(each) for _, each in pairs]
        found = zip(torch.cat(shares).split(lengths), torch.cat(greedy).split(lengths))
        return [(share.sum().item(), bool(same.all())) for share, same in found]

    @property
    def _vocabulary(self) -> int:
        return self.model.spec.output.embeddings.vocabulary

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log P of each text, in nats, read in windows of `max_length` tokens that do not overlap."""
        windows: list[Request] = []
        counts = []
        for request in requests:
            cut = utils.get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            new = [(None, *utils.make_disjoint_window(window)) for window in cut]
            windows += new
            counts.append(len(new))
        shares = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        return [sum(next(shares)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model says after each context, up to the first of the request's stop strings."""
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        found: dict[int, str] = {}
        with evaluating(self.model), tqdm(total=len(requests), disable=disable_tqdm) as bar:
            for indices in alike.values():
                settings = self._settings(requests[indices[0]].args[1])
                room = self.max_length - (settings.max_new_tokens if self.backend == "causal" else 0)
                if room < 1:
                    raise InputError(
                        f"{settings.max_new_tokens} new tokens leave no room for a prompt in {self.max_length} tokens"
                    )
                prompts = {index: self.tok_encode(requests[index].args[0])[-room:] for index in indices}
                indices.sort(key=lambda index: len(prompts[index]))
                for batch in side_by_side([len(prompts[index]) for index in indices], SIDE_BY_SIDE):
                    together = [indices[each] for each in batch]
                    found |= zip(together, self._answers([prompts[index] for index in together], settings))
                    bar.update(len(batch))
        return [found[index] for index in range(len(requests))]

    def _settings(self, given: Mapping[str, Any]) -> Settings:
        """How to decode, by transformers' names for it; the strings that end an answer among them."""
        given = dict(normalize_gen_kwargs(dict(given), LONGEST_ANSWER))
        until = [each for each in handle_stop_sequences(given.pop("until", None), eos=None) if each]
        known = {"eos_token_id": self.tokens.eos, **self.model.generation, **given}
        found = Settings.of(known, max_new_tokens=given["max_gen_toks"], stop=until)
        return found.within(self.model.vocabulary)

    def _answers(self, prompts: Sequence[list[int]], settings: Settings) -> list[str]:
        """Texts that follow prompts."""
        ids, valid = left_padded(prompts, settings.filler, self.model.device)
        return [answer.text or "" for answer in self.model.answers(ids, valid=valid, **settings.model_dump())]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text, by the model's own template."""
        return self.tokens.chat(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's own template."""
        return self.tokens.chat_template

    @property
    def tokenizer_name(self) -> str:
        """Where the tokenizer is from."""
        return str(self.model.origin or "anyformer").replace("/", "__")


register_model("anyformer")(Harness)


def run_tasks(
    model: Transformer,
    tasks: Sequence[str],
    *,
    directory: str | None = None,
    shots: int | None = None,
    limit: int | None = None,
) -> dict[str, dict[str, float]]:
    """What lm-eval measures of a model on tasks, those that YAML files below `directory` define included: by task, and
    by what is measured. Raises `InputError` for a task that it does not know."""
    how: dict[str, Any] = {
        "num_fewshot": shots,
        "limit": limit,
        "task_manager": _manager(tasks, directory),
        "log_samples": False,
    }
    found: Any = evaluator.simple_evaluate(Harness(model), tasks=list(tasks), **how)
    return {
        task: {name.removesuffix(",none"): value for name, value in figures.items() if isinstance(value, float)}
        for task, figures in found["results"].items()
    }


def _manager(tasks: Sequence[str], directory: str | None) -> TaskManager:
    """What knows these tasks."""
    if directory is not None:
        # To list the thousands that lm-eval brings along takes it most of a minute: not where they are not asked for.
        own = TaskManager(include_path=directory, include_defaults=False)
        if all(own.match_tasks([task]) for task in tasks):
            return own
    manager = TaskManager(include_path=directory)
    for task in tasks:
        if not manager.match_tasks([task]):
            raise InputError(f"lm-eval knows no task '{task}'; name a folder of YAML files with --task-folder")
    return manager


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
