"""What is changed of a model while it runs: what it should be, nothing else, and only within the block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer import families
from anyformer.errors import InputError
from anyformer.families import Family
from anyformer.inspection import sites
from anyformer.inspection.interventions import FOLLOWS, ablate, edit, patch, skip
from anyformer.model import Transformer

FAMILIES = list(families.registered().values())
IDS = torch.randint(5, 200, (2, 20), generator=torch.Generator().manual_seed(1))


def built(family: Family | str) -> Transformer:
    return af.build((families.named(family) if isinstance(family, str) else family)("tiny"), seed=0).eval()


def hidden(model: Transformer, ids: Tensor = IDS) -> Tensor:
    given = {"source": IDS.flip(1)} if model.spec.shape == "encoder-decoder" else {}
    with torch.no_grad():
        return model(ids, **given).hidden


def changeable(model: Transformer) -> list[str]:
    """Sites that follow from no others, of the first layers."""
    first = [site for site in sites(model) if ".layers." not in site or ".layers.0." in site]
    return [site for site in first if site.rpartition(".")[2] not in FOLLOWS]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("length", [20, 3], ids=["many", "few"])
def test_an_edit_that_changes_nothing_changes_nothing_and_one_that_does_is_seen_downstream(
    family: Family, length: int
) -> None:
    """At every site of every family that can be changed; another way through the kernels may round otherwise."""
    model, ids = built(family), IDS[:, :length]
    before = hidden(model, ids)
    for site in changeable(model):
        with edit(model, site, lambda value: value.clone()):
            assert torch.allclose(hidden(model, ids), before, atol=1e-4), site
    for site in ("input", "output", "heads", "queries", "values", "weights", "hidden", "residual_before"):
        at = next((found for found in changeable(model) if found.endswith(f"layers.0.attention.{site}")), None)
        at = at or next(found for found in changeable(model) if found.rpartition(".")[2] == site)
        with edit(model, at, lambda value: value + torch.linspace(-3, 3, value.shape[-1])):
            assert not torch.allclose(hidden(model, ids), before, rtol=0, atol=1e-5), at
    assert torch.equal(hidden(model, ids), before)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("length", [20, 3], ids=["many", "few"])
def test_the_stream_between_branches_can_be_changed(family: Family, length: int) -> None:
    """After one branch is before the next, and without a norm of the sum it is what the first adds."""
    model, ids = built(family), IDS[:, :length]
    layer = "encoder.layers.0" if model.decoder is None else "decoder.layers.0"
    block = model.get_submodule(layer)
    (first, placement, *_), (second, *_), *_ = block.branches  # type: ignore[misc, union-attr]

    def changed(site: str) -> Tensor:
        with edit(model, f"{layer}.{site}", lambda value: value + torch.linspace(-3, 3, value.shape[-1])):
            return hidden(model, ids)

    found = changed(f"{first}.residual_after")
    assert torch.equal(found, changed(f"{second}.residual_before"))
    assert not torch.allclose(found, hidden(model, ids), atol=1e-3)
    if placement != "post":
        assert torch.allclose(found, changed(f"{first}.output"), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_skipped_layers_pass_the_stream_as_it_came(family: Family) -> None:
    """All of them skipped, a stack is its embeddings and its norm."""
    model = built(family)
    stack = model.output_stack
    name = "decoder" if model.decoder is not None else "encoder"
    with skip(model, f"{name}.layers.*"), af.trace(model, f"{name}.embeddings") as t:
        found = hidden(model)
    embeddings = t[f"{name}.embeddings"]
    assert torch.equal(found, embeddings if stack.norm is None else stack.norm(embeddings))


def test_ablating_every_head_is_ablating_attention_but_for_its_bias() -> None:
    """One head, some, all; a trace within sees what the model goes on with, whichever was opened first."""
    model, site = built("llama"), "decoder.layers.1.attention"
    with ablate(model, site), af.trace(model, f"{site}.*") as t:
        without = hidden(model)
        assert t[f"{site}.output"].abs().max() == 0
    with af.trace(model, f"{site}.*") as t, ablate(model, site, heads=[0, 1, 2, -1]):
        assert torch.allclose(hidden(model), without, atol=1e-6)
        assert t[f"{site}.heads"].abs().max() == 0
    with ablate(model, site, heads=[2]), af.trace(model, f"{site}.heads") as t:
        one = hidden(model)
    heads = t[f"{site}.heads"].abs().amax((0, 2, 3))
    assert heads[2] == 0 and (heads[[0, 1, 3]] > 0).all()
    assert not torch.allclose(one, without) and not torch.allclose(one, hidden(model))


def test_mean_ablation_takes_the_mean_of_another_text() -> None:
    """Over all passes of the trace, rows and positions; of some heads alone where those are named."""
    model, site = built("gpt2"), "decoder.layers.0.attention"
    with af.trace(model, f"{site}.output", f"{site}.heads", keep="all") as other:
        hidden(model, IDS.flip(0)[:, :7])
        hidden(model, IDS.flip(1))
    outputs = torch.cat([passed.flatten(0, 1) for passed in other.passes(f"{site}.output")])
    with ablate(model, site, mean=other), af.trace(model, f"{site}.output") as t:
        hidden(model)
    assert torch.allclose(t[f"{site}.output"], outputs.mean(0).expand(2, 20, -1), atol=1e-6)
    heads = torch.cat([passed.transpose(1, 2).flatten(0, 1) for passed in other.passes(f"{site}.heads")])
    with ablate(model, site, heads=[1], mean=other), af.trace(model, f"{site}.heads") as t:
        hidden(model)
    assert torch.allclose(t[f"{site}.heads"][:, 1], heads.mean(0)[1].expand(2, 20, -1), atol=1e-6)


def test_patching_a_whole_layer_makes_the_other_prompt_of_it() -> None:
    """All positions of one layer's stream; of some positions the causal past stays as it was."""
    model, other = built("mistral"), IDS.flip(1)
    with af.trace(model, "decoder.layers.1.residual_after") as t:
        wanted = hidden(model, other)
    with patch(model, t, "decoder.layers.1.residual_after"):
        assert torch.allclose(hidden(model), wanted, atol=1e-6)
    with af.trace(model, "decoder.layers.0.residual_after", "decoder.layers.0.attention.heads") as t:
        hidden(model, other)
    before = hidden(model)
    with patch(model, t, "decoder.layers.0.residual_after", positions=[5, -1]):
        found = hidden(model)
    assert torch.allclose(found[:, :5], before[:, :5], atol=1e-6)
    assert not torch.allclose(found[:, 5], before[:, 5], atol=1e-3)
    with (
        patch(model, t, "**.layers.0.**.heads", positions=[5], heads=[0]),
        af.trace(model, "**.layers.0.attention.heads") as seen,
    ):
        hidden(model)
    mixed, theirs = seen["decoder.layers.0.attention.heads"], t["decoder.layers.0.attention.heads"]
    assert torch.equal(mixed[:, 0, 5], theirs[:, 0, 5]) and not torch.allclose(mixed[:, 1, 5], theirs[:, 1, 5])


def test_decoding_is_changed_too_and_only_within_the_block() -> None:
    """Steps that were recorded before are not made again from the recording while something is changed."""
    model = built("llama")
    cache = model.new_cache(2)
    with torch.no_grad():
        model(IDS, cache=cache)
        for step in range(3):
            model(IDS[:, step : step + 1], cache=cache)
        with ablate(model, "decoder.layers.*.attention"), af.trace(model, "**.attention.output") as t:
            model(IDS[:, :1], cache=cache)
    assert all(value.abs().max() == 0 for _, value in t.items())
    again = model.new_cache(2)
    with torch.no_grad():
        model(IDS, cache=again)
        with edit(model, "decoder.layers.0.attention.keys", lambda keys: keys + 1):
            model(IDS[:, :1], cache=again)
        with af.trace(model, "decoder.layers.0.attention.keys") as t:
            first = model(IDS[:, 1:2], cache=again).hidden
        fresh = model.new_cache(2)
        model(IDS, cache=fresh)
        model(IDS[:, :1], cache=fresh)
    assert torch.isfinite(first).all() and t["decoder.layers.0.attention.keys"].shape[2] == 22


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: ablate(m, "decoder.layers.9.attention"), "no site of this model matches"),
        (lambda m: ablate(m, "decoder.layers.0.feed_forward", heads=[0]), "no site of this model matches"),
        (lambda m: ablate(m, "decoder.layers.0.attention", heads=[4]), "no head 4; its heads go from 0 to 3"),
        (lambda m: ablate(m, "**.attention", mean=af.trace(m, "logits")), "no site of this trace matches"),
        (lambda m: ablate(m, "**.attention", mean=af.trace(m, "**")), "nothing has passed"),
        (lambda m: skip(m, "decoder.layers.2"), "no site of this model matches"),
        (lambda m: edit(m, "**.contributions", lambda x: x), "only follows from other sites; change heads or output"),
        (lambda m: edit(m, "**.heads", lambda x: x[:, :1]), r"is \[2, 4, 20, 32\] and cannot become \[2, 1, 20, 32\]"),
        (lambda m: edit(m, "**.heads", lambda x: None), "cannot become NoneType; keep the shape"),  # type: ignore[arg-type, return-value]
    ],
)
def test_what_cannot_be_changed_says_so(change: object, said: str) -> None:
    """In one sentence; and the model is as it was."""
    model = built("llama")
    before = hidden(model)
    with pytest.raises(InputError, match=said), change(model):  # type: ignore[operator]
        hidden(model)
    assert torch.equal(hidden(model), before)


def test_patches_that_do_not_fit_say_so() -> None:
    """Prompts of two lengths, positions and heads that are not there, heads of what has none."""
    model = built("llama")
    with af.trace(model, "**.residual_after", "**.heads") as t:
        hidden(model)
    with pytest.raises(InputError, match="patch between prompts of one length"), patch(model, t, "**.0.residual_after"):
        hidden(model, IDS[:, :9])
    for given, said in (({"positions": [20]}, "no position 20"), ({"heads": [0]}, "has no heads")):
        with pytest.raises(InputError, match=said), patch(model, t, "**.0.residual_after", **given):
            hidden(model)
