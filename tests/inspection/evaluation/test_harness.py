"""lm-eval over a model here, and over the same weights in transformers: the same figures."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from anyformer import families, text
from anyformer.errors import InputError
from anyformer.inspection.evaluation import harness
from anyformer.inspection.evaluation.harness import Harness, run_tasks
from anyformer.model import Transformer, build

pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = ["the cat sat on the mat and the dog ran to the cat", "a red bird sang in a green tree", "two and two are four"]
CHOICE = {
    "task": "odd_choice",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "the {{question}}",
    "doc_to_target": "{{answer}}",
    "doc_to_choice": "{{choices}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}


@pytest.fixture(scope="module", params=["llama", "t5"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Harness, Any]:
    """The same weights here and in transformers, each under lm-eval."""
    from lm_eval.models.huggingface import HFLM

    directory = saved(request.param, tmp_path_factory.mktemp(request.param))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = HFLM(pretrained=str(directory), device="cpu", dtype="float32", batch_size=3, max_length=24)
    return Harness(str(directory), device="cpu", max_length=24), theirs


def saved(family: str, directory: Path) -> Path:
    """A checkpoint with large random weights, so that its answers differ, and a vocabulary of its own."""
    tokenizer = text.train_bpe(iter(TEXTS * 20), 290)
    described = families.named(family)("tiny", vocab_size=tokenizer.vocabulary_size)
    model = build(described.replace(initialization=described.initialization.replace(std=0.3)), seed=1)
    model.tokenizer, model.family = tokenizer, family
    model.generation = {"eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.eos}
    if model.encoder is not None:
        model.generation["decoder_start_token_id"] = tokenizer.eos
    model.save(directory)
    return directory


def instances(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    """Requests as a task makes them."""
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


def test_likelihoods_are_those_of_the_reference(both: tuple[Harness, Any]) -> None:
    """Contexts short, empty, ending in a space and longer than the model reads; and whether greedy agrees."""
    ours, theirs = both
    asked = [("the cat", " sat on"), ("", "a red bird"), ("two and ", "two"), (" ".join(TEXTS * 3), " four cats")]
    asked += [(each, f" {word}") for each in TEXTS for word in ("dog", "tree and tree")]
    found, wanted = (lm.loglikelihood(instances("loglikelihood", *asked), disable_tqdm=True) for lm in both)
    assert [share for share, _ in found] == pytest.approx([share for share, _ in wanted], rel=1e-4)
    assert [same for _, same in found] == [same for _, same in wanted]
    greedy = ours.generate_until(instances("generate_until", ("the cat", {"max_gen_toks": 1})), disable_tqdm=True)[0]
    if ours.backend == "causal":
        said = ours.loglikelihood(instances("loglikelihood", ("the cat", greedy)), disable_tqdm=True)
        assert said[0][1] == theirs.loglikelihood(instances("loglikelihood", ("the cat", greedy)))[0][1]


def test_rolling_likelihoods_are_those_of_the_reference(both: tuple[Harness, Any]) -> None:
    """Texts of less than a window, and of several."""
    asked = instances("loglikelihood_rolling", ("a",), (TEXTS[0],), (" ".join(TEXTS * 4),))
    found, wanted = (lm.loglikelihood_rolling(asked, disable_tqdm=True) for lm in both)
    assert found == pytest.approx(wanted, rel=1e-4)


def test_answers_are_those_of_the_reference(both: tuple[Harness, Any]) -> None:
    """Greedy up to a stop string, up to a number of tokens, and by beams; in batches of ragged prompts."""
    prompts = ["the cat", *TEXTS]
    free = {"until": [], "max_gen_toks": 9, "do_sample": False}
    said = both[1].generate_until(instances("generate_until", *[(each, free) for each in prompts]), disable_tqdm=True)
    stops = {**free, "until": [said[0][3:5], "cat"]}
    beams = {**free, "num_beams": 3}
    hows = (free, stops, beams) if both[0].backend == "causal" else (free, stops)
    requests = instances("generate_until", *[(each, how) for each in prompts for how in hows])
    found, wanted = (lm.generate_until(requests, disable_tqdm=True) for lm in both)
    if both[0].backend == "seq2seq":
        # There the reference lets a decoder write as many tokens more as its encoder has read.
        wanted = [whole[: len(part)] for whole, part in zip(wanted, found, strict=True)]
    assert found == wanted
    assert len(set(found)) > 2


def test_a_task_of_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own loop over tasks in YAML, on a model here and on the reference: the same figures. A task that there
    is not is named."""
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": each[:9], "choices": [" dog", " tree", each[9:]], "answer": i % 3} for i, each in enumerate(TEXTS)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    said = {**CHOICE, "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
    (tmp_path / "odd_choice.yaml").write_text(json.dumps(said), encoding="utf-8")
    directory = saved("llama", tmp_path / "model")
    ours = Harness(str(directory), device="cpu")
    found = run_tasks(ours.model, ["odd_choice"], directory=str(tmp_path))
    theirs = HFLM(pretrained=str(directory), device="cpu", dtype="float32")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    wanted: Any = simple_evaluate(theirs, tasks=["odd_choice"], task_manager=manager, log_samples=False)
    for name in ("acc", "acc_norm", "acc_stderr"):
        assert found["odd_choice"][name] == pytest.approx(wanted["results"]["odd_choice"][f"{name},none"])
    # Without the thousands that it brings along, which take it most of a minute.
    monkeypatch.setattr(harness, "TaskManager", partial(TaskManager, include_defaults=False))
    with pytest.raises(InputError, match="lm-eval knows no task 'odd_choise'; name a folder of YAML files"):
        run_tasks(ours.model, ["odd_choise"], directory=str(tmp_path))


def test_its_command_line_knows_the_model_type(tmp_path: Path) -> None:
    """lm-eval's registry gives the adapter for its name, and what its command line hands over builds it: a device that
    it says unasked too."""
    from lm_eval.api.registry import get_model

    arguments = {"path": str(saved("llama", tmp_path))}
    made = get_model("anyformer").create_from_arg_obj(
        arguments, {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}
    )
    assert isinstance(made, Harness) and made.device == made.model.device


def test_what_lm_eval_cannot_ask_is_said() -> None:
    """A model that writes nothing, a continuation that does not fit."""
    encoder: Transformer = build(families.bert("tiny"))  # type: ignore[attr-defined]
    encoder.tokenizer = text.byte_level()
    with pytest.raises(ValueError, match="head"):
        Harness(encoder)
    decoder = build(families.llama("tiny", vocab_size=257), seed=0)  # type: ignore[attr-defined]
    decoder.tokenizer = text.byte_level()
    with pytest.raises(InputError, match="a continuation of 30 tokens is longer than max_length=8"):
        Harness(decoder, max_length=8).loglikelihood(instances("loglikelihood", ("a", "b" * 30)), disable_tqdm=True)
    with pytest.raises(InputError, match="9 new tokens leave no room for a prompt in 8 tokens"):
        Harness(decoder, max_length=8).generate_until(instances("generate_until", ("a", {"max_gen_toks": 9})))
    assert torch.is_inference_mode_enabled() is False
