"""One recipe in one process, in two and in four: the same losses, the same weights, whatever is divided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import anyformer as af
from anyformer.errors import TrainingError
from anyformer.training import read_metrics, train
from anyformer.training.recipe import Scale
from anyformer.training.scale.sizes import sizes_for

Recipe = dict[str, Any]
STEPS = 6
#: Families whose parts divide each in their own way: two steps in two processes.
ODD: list[tuple[str, dict[str, int], dict[str, Any]]] = [
    ("bloom", {"context": 2}, {"sequence_length": 33, "batch_tokens": 132, "micro_batch_tokens": 66}),
    ("gpt_oss", {"context": 2}, {}),
    ("t5", {"tensor": 2}, {"objective": "spans", "optimizer": "muon"}),
    ("bert", {"data": 2}, {"objective": "masked", "optimizer": "muon"}),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def recipe(texts: Path, place: Path, small: Any) -> Any:
    """Windows of several documents each, in micro-batches that any number of processes can share."""

    def make(
        name: str,
        scale: dict[str, int] | None = None,
        *,
        mixture: bool = False,
        preset: str = "",
        samples: int = 0,
        **training: Any,
    ) -> Recipe:
        spec = small()
        if mixture:
            experts = {"kind": "mixture_of_experts", "experts": 4, "top_k": 2, "hidden": 24, "balance": 0.01}
            spec["decoder"]["pattern"][0]["branches"][1]["mixer"] = experts
        settings = {"steps": STEPS, "batch_tokens": 256, "micro_batch_tokens": 64, "sequence_length": 32}
        often = {"checkpoint_every": STEPS, "validate_every": 3}
        return {
            "run": {"directory": str(place / name), "seed": 5, "watch": [], "samples": samples, "sample_every": STEPS},
            "model": {"preset": f"{preset}:tiny"} if preset else {"spec": spec},
            "data": {"train": str(texts)},
            "training": {**settings, **often, "learning_rate": 1e-2, **training},
            "scale": scale or {},
        }

    return make


@pytest.fixture(scope="module")
def adapting(recipe: Any, place: Path) -> Any:
    """A recipe that adapts the model of the run `alone`."""

    def make(name: str, scale: dict[str, int] | None = None, **training: Any) -> Recipe:
        made = recipe(name, scale, steps=2, optimizer="muon", **training)
        return {**made, "model": {"from": str(place / "alone")}, "lora": {"rank": 2, "targets": "all"}}

    return make


@pytest.fixture(scope="module")
def runs(recipe: Any, adapting: Any, place: Path) -> Path:
    """All runs of this file: what is divided, and one that is begun by one process, goes on in two, then in four (as
    two halves of heads by two shards), which are killed, and ends in one."""
    narrow = {"precision": "bfloat16", "steps": 3}
    for job in (
        recipe("alone", samples=2),
        recipe("alone-experts", mixture=True),
        recipe("alone-average", ema=0.9),
        recipe("alone-narrow", mixture=True, **narrow),
        adapting("alone-adapted"),
    ):
        train(job, progress=False)
    chain, wandering = recipe("chain", ema=0.9, checkpoint_every=2), {"resume": str(place / "chain")}
    ranks.run({"recipe": chain, "interrupt": (0, 2)}, 0)
    two = [
        recipe("data", {"data": 2}, samples=2),
        recipe("tensor", {"tensor": 2}, samples=2),
        adapting("adapted", {"shard": 2}),
        recipe("expert", {"expert": 2}, mixture=True, checkpoint_activations=True),
        recipe("context", {"context": 2}, samples=2, checkpoint_activations=True),
        recipe("narrow", {"expert": 2}, mixture=True, checkpoint_activations=True, **narrow),
    ]
    for family, scale, settings in ODD:
        short = {"steps": 2, "dropout": 0.0, **settings}
        train(recipe(f"{family}-alone", preset=family, **short), progress=False)
        two.append(recipe(family, scale, preset=family, **short))
    jobs = [{"wait": str(place)}, *({"recipe": job} for job in two), {**wandering, "interrupt": (1, 4)}]
    ranks.start(2, jobs, place)
    experts = recipe("expert-shard", {"expert": 2}, mixture=True, steps=2)
    begin = [
        recipe("begin-fresh", {"tensor": 2, "shard": 2}, preset="llama"),
        recipe("begin-experts", {"expert": 2, "data": 2}, preset="mixtral"),
        adapting("begin-adapted", {"shard": 4}),
    ]
    divided = {**wandering, "overrides": ["scale.tensor=2"], "kill": 6}
    ranks.start(4, [*({"begin": job} for job in begin), {"recipe": experts}, divided], place, killed=True)
    return place


def assert_same(runs: Path, name: str, reference: str) -> None:
    """Losses and norms of every step within 1e-6, validations too, and the final weights close."""
    rows, expected = (read_metrics(runs / run / "metrics.jsonl") for run in (name, reference))
    for row, wanted in zip(rows, expected, strict=True):
        assert row.keys() == wanted.keys()
        for key in row.keys() & {"loss", "gradient_norm", "validation_loss"}:
            assert row[key] == pytest.approx(wanted[key], rel=1e-6), (row["step"], key)
    found, wanted = (load_file(runs / run / "model.safetensors") for run in (name, reference))
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[key], wanted[key], rtol=1e-4, atol=1e-5) for key in wanted)


@pytest.mark.parametrize(
    ("name", "reference"),
    [("data", "alone"), ("tensor", "alone"), ("context", "alone"), ("expert", "alone-experts")],
)
def test_two_processes_train_as_one_does(runs: Path, name: str, reference: str) -> None:
    """Replicas, halves of heads and widths, halves of sequences of packed documents, and experts on two ranks, with
    their balance, the latter two with layers computed again: all see the samples of one process, in its order."""
    assert_same(runs, name, reference)


@pytest.mark.parametrize("family", [family for family, _, _ in ODD])
def test_parts_of_every_kind_divide(runs: Path, family: str) -> None:
    """ALiBi, and sequences of odd lengths; sinks, windows and experts with their balance in stretches of sequences;
    relative buckets, which all layers share, in halves of heads; tokens hidden at random, the same on any rank."""
    rows, expected = (read_metrics(runs / run / "metrics.jsonl") for run in (family, f"{family}-alone"))
    for key in ("loss", "validation_loss"):
        found, wanted = ([row[key] for row in each if key in row] for each in (rows, expected))
        assert found == pytest.approx(wanted, rel=1e-6) and found


def test_in_bfloat16_many_processes_are_as_near_as_its_rounding(runs: Path) -> None:
    """Layers that are gathered as bfloat16 give the losses of one process, but for the rounding of their norms."""
    rows, expected = (read_metrics(runs / run / "metrics.jsonl") for run in ("narrow", "alone-narrow"))
    for key in ("loss", "gradient_norm"):
        assert [row[key] for row in rows] == pytest.approx([row[key] for row in expected], rel=3e-3)


@pytest.mark.parametrize("name", ["data", "tensor", "context"])
def test_samples_of_many_processes_are_those_of_one(runs: Path, name: str) -> None:
    """All of them write the same text together, and the first one puts it down."""
    texts = [(runs / run / "samples.jsonl").read_text() for run in (name, "alone")]
    assert texts[0] == texts[1] and len(json.loads(texts[0])["samples"]) == 2


def test_the_report_of_many_processes_says_what_was_trained(runs: Path) -> None:
    """Their checkpoints do not: the model that the run ends with does, and is there before the report."""
    assert "<h2>Model</h2>" in (runs / "data" / "report.html").read_text()


def test_two_processes_adapt_as_one_does(runs: Path) -> None:
    """Adapters, divided over shards as the model is, learn the same; the adapter by itself, a checkpoint with nothing
    but what learns, and the merged model are those of one process."""
    assert_same(runs, "adapted", "alone-adapted")
    found, wanted = (
        load_file(runs / run / "adapter" / "adapter_model.safetensors") for run in ("adapted", "alone-adapted")
    )
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[key], wanted[key], rtol=1e-4, atol=1e-5) for key in wanted)
    shards = runs / "adapted" / "checkpoints" / "step-00000002" / "shards"
    with safe_open(shards / "shard-00002-model-00001-of-00001.safetensors", "pt") as own:
        assert all(".lora_" in name for name in own.keys())  # noqa: SIM118


@pytest.mark.parametrize("name", ["begin-fresh", "begin-experts", "begin-adapted"])
def test_every_process_makes_its_own_part_alone(runs: Path, name: str) -> None:
    """Drawn anew or read from a checkpoint, in halves and shards, the numbers are those of one process to the bit;
    while they are made, each rank holds no more than its share and one parameter."""
    for rank in range(4):
        found = json.loads((runs / name / f"begin-{rank}.json").read_text())
        assert found["same"]
        assert found["most"] < (found["share"] + found["largest"]) * 1.05 + 4096


def test_the_first_process_may_take_longer_than_a_collective(runs: Path) -> None:
    """A corpus may be tokenised for hours by the first: the others are there when it is done."""
    assert sorted(path.name for path in runs.glob("waited-*")) == ["waited-0", "waited-1"]


def test_experts_and_the_rest_are_divided_at_once(runs: Path) -> None:
    """Four processes, experts on two of them and parameters in two shards, begin as one process does."""
    rows, expected = (read_metrics(runs / run / "metrics.jsonl") for run in ("expert-shard", "alone-experts"))
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected[:2]], rel=1e-6)


def test_a_run_moves_between_numbers_of_processes(runs: Path) -> None:
    """From one to two (told to stop by a signal that one of them got), to four with divided heads, killed in a step
    after their checkpoint, and back to one: the run of one process that was never stopped, average of weights too."""
    whole = sorted(path.name for path in (runs / "chain" / "checkpoints").iterdir())
    assert whole == ["step-00000002", "step-00000004"]
    train(resume=runs / "chain", progress=False)
    assert_same(runs, "chain", "alone-average")
    assert af.load(runs / "chain").tokenizer is not None


def test_many_processes_write_tensors_and_counters_and_nothing_else(runs: Path) -> None:
    """A file of tensors a rank, each tensor a part of it; sums of them all."""
    newest = runs / "data" / "checkpoints" / f"step-{STEPS:08d}"
    files = {path.relative_to(newest).as_posix() for path in newest.rglob("*") if path.is_file()}
    shards = {f"shards/shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)}
    assert files == {*shards, "state.json", "manifest.json"}
    assert json.loads((newest / "manifest.json").read_text())["sha256"].keys() == files - {"manifest.json"}
    halves = runs / "tensor" / "checkpoints" / f"step-{STEPS:08d}"
    with safe_open(halves / "shards" / "shard-00001-model-00001-of-00001.safetensors", "pt") as own:
        assert own.get_slice("model.decoder.layers.0.attention.query.weight").get_shape() == [8, 16]


@pytest.mark.parametrize(
    ("scale", "processes", "message"),
    [
        ({"tensor": 2}, 1, r"scale.tensor=2 takes a multiple of 2 processes, and there is one; run: torchrun --nproc"),
        ({"shard": 2, "data": 2}, 6, r"scale.data=2 x scale.shard=2 takes 4 processes, and there are 6"),
        ({"context": 3}, 4, "a multiple of 3 processes, and there are 4"),
    ],
)
def test_processes_that_do_not_fit_are_refused(scale: dict[str, int], processes: int, message: str) -> None:
    """One sentence says how many it takes, and how to start them."""
    with pytest.raises(TrainingError, match=message):
        sizes_for(Scale(**scale), processes)


def test_what_is_left_out_takes_the_processes_that_are_left() -> None:
    """Shards first; replicas where the shards are said."""
    assert sizes_for(Scale(tensor=2), 8) == {"data": 1, "shard": 4, "context": 1, "expert": 1, "tensor": 2}
    assert sizes_for(Scale(shard=2), 8)["data"] == 4
    assert set(sizes_for(Scale(), 1).values()) == {1}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensor": 4}, "scale.tensor=4 does not divide the 2 kv_heads of the model"),
        ({"tensor": 2, "context": 4}, "scale.tensor x scale.context=8 does not divide the 4 heads"),
        ({"expert": 3}, "scale.expert=3 does not divide the 4 experts"),
        ({"shard": 16}, "holds 8 windows .* fewer than the 16 processes"),
    ],
)
def test_models_that_do_not_divide_are_refused(recipe: Any, sizes: dict[str, int], message: str) -> None:
    """One sentence, before anything long begins."""
    from anyformer.training.prepare import described
    from anyformer.training.recipe import read_recipe
    from anyformer.training.scale.sizes import ALONE, check

    chosen = read_recipe(recipe("refused", mixture="expert" in sizes))
    with pytest.raises(TrainingError, match=message):
        check(chosen, described(chosen), {**ALONE, **sizes})


def test_a_divided_recipe_without_torchrun_says_what_to_run(recipe: Any, place: Path) -> None:
    """And leaves nothing behind."""
    with pytest.raises(TrainingError, match=r"torchrun --nproc-per-node 2 -m anyformer train RECIPE"):
        train(recipe("without", {"tensor": 2}), progress=False)
    assert not (place / "without").exists()
