"""Adapters: what learns and what does not, the same numbers in peft as here, and whole runs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import odd
import pairs
import pytest
import torch
from pairs import Pair
from safetensors.torch import load_file

import anyformer as af
from anyformer import families
from anyformer.errors import TrainingError
from anyformer.model import Transformer
from anyformer.planning import forward_flops
from anyformer.training import read_metrics, read_recipe, train
from anyformer.training.lora import Lora, adapt, check, targets
from anyformer.training.optimizers import learning
from anyformer.training.scale.sizes import ALONE
from anyformer.training.scale.sizes import check as check_scale

peft = pytest.importorskip("peft")

EVERYTHING = Lora(rank=3, alpha=4.5, targets=("all",))
#: A class of every family, and the others of three: with a task's head, without any.
CLASSES = [
    *{family: (family, name) for family, name in reversed(odd.architectures())}.values(),
    *(pair for pair in odd.architectures() if pair[0] in ("bert", "gpt2", "distilbert")),
]
CLASSES = sorted(set(CLASSES))


def small(family: str = "llama", **attributes: Any) -> Transformer:
    model = af.build(families.named(family)("tiny", **attributes), seed=0).eval()
    model.family = family
    return model


@torch.no_grad()
def learned(model: Transformer) -> None:
    """As if what learns had learned something."""
    generator = torch.Generator().manual_seed(1)
    for parameter in learning(model).values():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(("family", "architecture"), CLASSES)
def test_peft_computes_the_same(family: str, architecture: str, tmp_path: Path) -> None:
    """Adapters of all linear layers (and a task's head), saved here, give the same logits in transformers with peft, on
    every family's own layout of its file; and so do the weights that they are merged into, here and on loading."""
    spec = odd.odd_spec(families.named(family), 1, architecture)
    model = af.build(spec, seed=1).eval()
    model.family, model.generation = family, {"pad_token_id": 0}
    model.save(tmp_path / "base")
    adapted = adapt(af.load(tmp_path / "base"), EVERYTHING, base=str(tmp_path / "base")).eval()
    learned(adapted)
    adapted.save(tmp_path / "adapter")
    theirs = getattr(odd.reference(), architecture).from_pretrained(tmp_path / "base")
    pad = theirs.config.pad_token_id or 0
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    assert pairs.logits(Pair(theirs, adapted, tmp_path, pad)) < 1e-5
    assert pairs.logits(Pair(theirs, af.load(tmp_path / "adapter"), tmp_path, pad)) < 1e-5
    assert pairs.logits(Pair(theirs, adapted.merge(), tmp_path, pad)) < 1e-5
    assert pairs.logits(Pair(theirs, model, tmp_path, pad)) > 1e-3, "the adapter changes something"


@pytest.mark.parametrize(
    ("family", "names"),
    [("gpt2", ["c_attn", "c_proj"]), ("llama", ["q_proj", "down_proj"]), ("bert", "all-linear"), ("t5", ["q", "wo"])],
)
def test_what_peft_trained_loads_here(family: str, names: Any, tmp_path: Path) -> None:
    """An adapter made by peft of a transformers model, with a dense change of a fused matrix among them, gives the
    same logits here."""
    small(family).save(tmp_path / "base")
    theirs = getattr(odd.reference(), next(iter(families.named(family).architectures)))
    theirs = theirs.from_pretrained(tmp_path / "base")
    pad = theirs.config.pad_token_id or 0
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=names, fan_in_fan_out=family == "gpt2")
    theirs = peft.get_peft_model(theirs, config).eval()
    learned(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = af.load(tmp_path / "base", adapter=tmp_path / "adapter")
    assert pairs.logits(Pair(theirs, ours, tmp_path, pad)) < 1e-5
    assert pairs.logits(Pair(theirs, af.load(tmp_path / "base"), tmp_path, pad)) > 1e-3


def test_only_changes_learn_and_at_first_change_nothing() -> None:
    """Two matrices a target learn, of the rank asked for; the output is the same to the bit; a seed decides A."""
    model = small()
    ids = torch.arange(12)[None]
    before = model(ids).logits
    adapted = adapt(small(), Lora(rank=4))
    assert torch.equal(adapted(ids).logits, before)
    wanted = {
        f"decoder.layers.{layer}.attention.{name}.lora_{half}.default.weight"
        for layer in range(model.spec.output.depth)
        for name in ("query", "value")
        for half in "AB"
    }
    assert learning(adapted).keys() == wanted
    assert all(4 in parameter.shape for parameter in learning(adapted).values())
    first = next(iter(wanted))
    A = first.replace("lora_B", "lora_A")
    same, other = (adapt(small(), Lora(rank=4), seed=seed).get_parameter(A) for seed in (0, 1))
    assert torch.equal(adapted.get_parameter(A), same) and not torch.equal(same, other)


def test_a_task_s_head_learns_whole() -> None:
    """The head of a classifier belongs to the task: it is no part of what stays as it is."""
    adapted = adapt(small("bert", architectures=["BertForSequenceClassification"]), Lora())
    heads = {"head.dense.weight", "head.dense.bias", "head.output.weight", "head.output.bias"}
    assert set(adapted.whole()) == heads
    assert not adapt(small("bert"), Lora()).whole()


def test_decoding_with_a_cache_has_the_changes() -> None:
    """Query, key and value are no longer one product, and cached steps give the logits of a single pass."""
    adapted = adapt(small(), EVERYTHING).eval()
    learned(adapted)
    ids = torch.arange(20)[None] % 50
    whole = adapted(ids).logits
    cache = adapted.new_cache(1)
    with torch.no_grad():
        steps = torch.cat([adapted(ids[:, index : index + 1], cache=cache).logits for index in range(20)], 1)
    assert (steps - whole).abs().max() < 1e-5 * whole.abs().max()
    adapted.merge()
    with torch.no_grad():
        merged = adapted(ids).logits
    assert (merged - whole).abs().max() < 1e-5 * whole.abs().max()


def test_changes_can_be_put_aside_and_made_part_of_the_weights(tmp_path: Path) -> None:
    """Without its changes the model computes what it did, to the bit, also after an error; merged, it is a plain model
    of the same parameters, which all learn, and is saved as one."""
    model, ids = small(), torch.arange(12)[None]
    before = model(ids).logits
    adapted = adapt(small(), EVERYTHING).eval()
    learned(adapted)
    changed = adapted(ids).logits
    with pytest.raises(KeyError), adapted.unchanged():
        assert torch.equal(adapted(ids).logits, before)
        raise KeyError
    assert torch.equal(adapted(ids).logits, changed) and not torch.equal(changed, before)
    merged = adapted.merge()
    assert type(merged) is Transformer and learning(merged).keys() == learning(model).keys()
    merged.save(tmp_path)
    assert torch.equal(af.load(tmp_path)(ids).logits, merged(ids).logits)


def test_what_was_saved_is_restored_to_the_bit(tmp_path: Path) -> None:
    """Another model, adapted from another seed, has all numbers of the saved one, however the file fuses them."""
    for family, architecture in (("gpt2", "GPT2ForSequenceClassification"), ("phi3", "Phi3ForCausalLM")):
        one = adapt(small(family, architectures=[architecture]), EVERYTHING)
        learned(one)
        one.save(tmp_path / family)
        other = adapt(small(family, architectures=[architecture]), EVERYTHING, seed=7)
        other.restore(tmp_path / family)
        saved, restored = learning(one), learning(other)
        assert all(torch.equal(parameter, restored[name]) for name, parameter in saved.items())


def test_targets_are_ends_of_names() -> None:
    """A name means every layer that ends in it, by whole steps; `all` leaves out embeddings, heads, and beside experts
    all but attention."""
    t5 = small("t5")
    crossing = targets(t5, Lora(targets=("cross_attention.query",)))
    assert crossing and all(name.endswith("cross_attention.query") for name in crossing)
    assert len(targets(t5, Lora(targets=("query",)))) == 3 * len(crossing)
    assert not any(name.startswith(("head", "encoder.embeddings")) for name in targets(t5, EVERYTHING))
    assert all("attention." in name for name in targets(small("mixtral"), EVERYTHING))


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("llama", Lora(targets=("query", "quary")), "no linear layer 'quary'.*it has query, key, value, output, gate"),
        ("llama", Lora(targets=("attention",)), "no linear layer 'attention'"),
        ("mixtral", Lora(targets=("gate",)), "only attention takes adapters"),
        ("llama", Lora(rank=129), r"lora\.rank=129 is larger than decoder\.layers\.0\.attention\.query allows, a matr"),
    ],
)
def test_what_cannot_be_adapted_is_said_at_once(family: str, settings: Lora, said: str) -> None:
    """Names that mean nothing, with those that there are, and ranks above full rank; from the spec alone."""
    with pytest.raises(TrainingError, match=said):
        check(families.named(family)("tiny"), settings, "")


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says what to install."""
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(TrainingError, match=r"pip install 'anyformer\[lora\]'"):
        adapt(small(), Lora())


Recipes = Callable[..., dict[str, Any]]


@pytest.fixture
def tuned(recipe: Recipes, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A recipe that adapts a small model which learned a little."""
    began = recipe("base", optimizer="muon", learning_rate=2e-2, steps=20)
    began["model"] = {"preset": "gpt2:tiny"}
    train(began, progress=False)

    def make(directory: str, **lora: Any) -> dict[str, Any]:
        settings = {"rank": 2, "targets": "all", "dropout": 0.1, **lora}
        return {**recipe(directory, optimizer="muon"), "model": {"from": str(tmp_path / "base")}, "lora": settings}

    return make


def test_a_run_leaves_the_adapter_and_the_whole_model(tuned: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """The run directory is a model like any other, with the adapter beside it that gives the same on the base; its
    checkpoints hold the adapter and its moments alone."""
    base = af.load(tmp_path / "base")
    result = train(tuned("run", dropout=0.0), overrides=["training.steps=30"], progress=False)
    before = read_metrics(tmp_path / "base" / "metrics.jsonl")[-1]["validation_loss"]
    assert result.validation_loss is not None and result.validation_loss < before - 0.05
    merged, beside = af.load(result.directory), af.load(result.directory / "adapter")
    assert merged.tokenizer is not None and merged.generation == base.generation
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(parameter, beside.get_parameter(name), rtol=1e-5, atol=1e-6)
        kept = torch.equal(parameter, base.get_parameter(name))
        assert kept != (".layers." in name and parameter.ndim == 2), name
    (newest, *_) = sorted((result.directory / "checkpoints").iterdir(), reverse=True)
    held = {"adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    assert {path.name for path in newest.iterdir()} == held
    assert all(".lora_" in name for name in load_file(newest / "optimizer.safetensors"))
    assert torch.equal(next(af.load(newest).parameters()), next(beside.parameters()))


def test_a_resumed_run_ends_in_the_same_bits(tuned: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """What a kill after step 6 leaves, resumed, gives the metrics, adapter and model of the run that went through."""
    whole = train(tuned("whole"), progress=False).directory
    killed = train(tuned("killed"), progress=False).directory
    shutil.rmtree(killed / "adapter")
    (killed / "model.safetensors").unlink()
    shutil.rmtree(killed / "checkpoints" / "step-00000008")
    result = train(resume=killed, progress=False)
    assert result.finished
    one, other = ([{**row, "elapsed": 0} for row in read_metrics(run / "metrics.jsonl")] for run in (whole, killed))
    assert one == other
    for file in ("model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (whole / file).read_bytes() == (killed / file).read_bytes()


def test_weights_that_do_not_learn_cost_less(tuned: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """A budget of FLOPs lasts for half as many steps more than with all weights: no gradient of a weight is computed,
    and what is added is small."""
    adapted = tuned("run")
    plain = {key: value for key, value in adapted.items() if key != "lora"}
    described = af.load(tmp_path / "base").spec
    budget = f"training.flops={3 * 8 * sum(forward_flops(described, 32).values()) * 2}"
    steps = [
        train(chosen, overrides=[budget, f"run.directory={tmp_path / name}"], progress=False).steps
        for name, chosen in (("plain", plain), ("adapted", adapted))
    ]
    assert steps == [2, 3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lora": {"targets": "quary"}}, "no linear layer 'quary'"),
        ({"lora": {"rank": 65}}, "larger than"),
        ({"lora": {"rank": 0}}, r"lora\.rank"),
        ({"lora": {"ranks": 1}}, r"lora\.ranks"),
        ({"model": {"preset": "gpt2:tiny"}}, r"name one in model\.from"),
    ],
)
def test_a_recipe_that_cannot_be_adapted_leaves_nothing(
    tuned: Callable[..., dict[str, Any]], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    """One sentence, before any text is read."""
    with pytest.raises(TrainingError, match=said):
        train({**tuned("run"), **change}, progress=False)
    assert not (tmp_path / "run").exists()


def test_an_adapter_is_no_base_of_another(tuned: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """All weights of what an adapter gives can be trained on; another adapter begins with the merged model."""
    adapter = train(tuned("run"), progress=False).directory / "adapter"
    with pytest.raises(TrainingError, match="is an adapter; begin another one with the whole model"):
        train(tuned("again"), overrides=[f"model.from={adapter}"], progress=False)
    plain = tuned("all")
    del plain["lora"]
    assert train(plain, overrides=[f"model.from={adapter}"], progress=False).finished


def test_matrices_with_adapters_are_not_cut(tuned: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Halves of heads are refused before the first step; replicas and shards are not."""
    described = af.load(tmp_path / "base").spec
    check_scale(read_recipe(tuned("run")), described, {**ALONE, "data": 2, "shard": 2})
    with pytest.raises(TrainingError, match=r"scale.tensor cannot divide a matrix that has an adapter"):
        check_scale(read_recipe(tuned("run")), described, {**ALONE, "tensor": 2})
