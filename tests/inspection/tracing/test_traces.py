"""What is seen of a model while it runs: every family, every site, and not a bit of difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer import families
from anyformer.errors import InputError
from anyformer.families import Family
from anyformer.inspection import sites
from anyformer.model import Transformer

FAMILIES = list(families.registered().values())
#: Few rows go through kernels of their own on a CPU.
LENGTHS = (20, 3)


def built(family: Family) -> tuple[Transformer, dict[str, Any]]:
    """A tiny model of a family, and inputs [2, 20] for it."""
    model = af.build(family("tiny"), seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    given: dict[str, Any] = {"tokens": torch.randint(5, 200, (2, 20), generator=generator)}
    if model.spec.shape == "encoder-decoder":
        given["source"] = torch.randint(5, 200, (2, 23), generator=generator)
    return model, given


def outcome(model: Transformer, **given: Any) -> list[Tensor]:
    """All that a pass gives."""
    with torch.no_grad():
        out = model(**given)
    return [value for value in (out.hidden, out.logits) if value is not None]


def wrapped(model: Transformer) -> list[str]:
    """Methods that stand on instances, and hooks."""
    found = [f"{name}.{own}" for name, module in model.named_modules() for own in vars(module) if own in METHODS]
    return found + [name for name, module in model.named_modules() if module._forward_hooks]


METHODS = ("forward", "added", "attended", "product", "hidden", "route")


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_all_that_passes_is_seen_and_agrees_and_changes_no_bit(family: Family) -> None:
    """Every site of every family, of few rows and of many: rows of weights sum to one and, times the values, are what
    heads read; those, through the output matrix, what attention gives; and what branches give makes the stream."""
    model, given = built(family)
    for length in LENGTHS:
        given["tokens"] = given["tokens"][:, :length]
        before = outcome(model, **given)
        with af.trace(model, "**") as t:
            during = outcome(model, **given)
        assert same(before, during) and same(before, outcome(model, **given))
        assert not wrapped(model)
        assert list(t) == sites(model) and all(t[site].isfinite().all() for site in t)
        for site in t:
            branch, _, what = site.rpartition(".")
            if what == "heads":
                check_attention(model, branch, t)
            elif what == "residual_after" and ".layers." in branch and not branch[-1].isdigit():
                check_stream(model, branch, t)
            elif what == "residual_after" and f"{layer_after(branch)}.residual_before" in t:
                assert torch.equal(t[site], t[f"{layer_after(branch)}.residual_before"])
            elif what == "shares":
                check_routes(model, branch, t)


def layer_after(layer: str) -> str:
    stack, _, index = layer.rpartition(".")
    return f"{stack}.{int(index) + 1}"


def check_attention(model: Transformer, branch: str, t: af.inspection.Trace) -> None:
    """The weights, and all that follows from them."""
    mixer: Any = model.get_submodule(branch)
    weights, values, heads = (t[f"{branch}.{what}"] for what in ("weights", "values", "heads"))
    sums = weights.sum(-1)
    assert (sums < 1).all() if getattr(mixer, "sinks", None) is not None else torch.allclose(sums, torch.ones(()))
    each = values.repeat_interleave(weights.shape[1] // values.shape[1], dim=1)
    assert torch.allclose(weights @ each, heads, atol=1e-5)
    given = mixer.output(heads.transpose(1, 2).flatten(2))
    bias = 0 if mixer.output.bias is None else mixer.output.bias
    assert torch.allclose(t[f"{branch}.contributions"].sum(1) + bias, given, atol=1e-5)
    norms = (f"{branch}_output_norm", f"{branch}_norm")
    placement = next(kind for name, kind, *_ in block_of(model, branch).branches if branch.endswith(f".{name}"))
    if placement in ("output", "both"):
        given = model.get_submodule(norms[placement == "output"])(given)
    assert torch.allclose(given, t[f"{branch}.output"], atol=1e-5)


def check_stream(model: Transformer, branch: str, t: af.inspection.Trace) -> None:
    """What a branch adds leads from the stream before it to the stream after it."""
    stream = t[f"{branch}.residual_before"] + t[f"{branch}.output"]
    if next(kind for name, kind, *_ in block_of(model, branch).branches if branch.endswith(f".{name}")) == "post":
        stream = model.get_submodule(f"{branch}_norm")(stream)
    assert torch.allclose(stream, t[f"{branch}.residual_after"], atol=1e-5)


def check_routes(model: Transformer, branch: str, t: af.inspection.Trace) -> None:
    """Choices are experts of the mixture, each once, and all of them are its best where nothing else counts."""
    mixer: Any = model.get_submodule(branch)
    shares, choices, weights = (t[f"{branch}.{what}"] for what in ("shares", "choices", "weights"))
    assert shares.shape[-1] == mixer.experts and choices.shape == weights.shape == (*shares.shape[:2], mixer.top_k)
    assert all(len(set(row)) == mixer.top_k for row in choices.flatten(0, 1).tolist())


def block_of(model: Transformer, branch: str) -> Any:
    return model.get_submodule(branch.rpartition(".")[0])


CAUSAL = [family for family in FAMILIES if family("tiny").decoder is not None]


@pytest.mark.parametrize("family", CAUSAL, ids=lambda family: family.name)
def test_decoding_is_the_same_to_the_bit_and_seen_step_by_step(family: Family) -> None:
    """On a cache, steps that are otherwise made again from a recording included; keys are then the cache's."""
    model, given = built(family)

    def decoded() -> list[Tensor]:
        ids, cache, source = given["tokens"], model.new_cache(2), given.get("source")
        with torch.no_grad():
            logits = [model.next_logits(ids, cache, source=source)]
            while len(logits) < 5:
                logits.append(model.next_logits(logits[-1].argmax(-1, keepdim=True), cache))
        return logits

    before = decoded()
    with af.trace(model, "decoder.layers.*.attention.weights", "decoder.**.keys", keep="all") as t:
        during = decoded()
    assert same(before, during) and same(before, decoded())
    lengths = [weights.shape[-1] for weights in t.passes("decoder.layers.0.attention.weights")]
    assert lengths == [keys.shape[2] for keys in t.passes("decoder.layers.0.attention.keys")]
    assert len(lengths) == 5 and lengths[0] == 20 and lengths[4] in (24, model.decoder.horizons()[0])
    sums = [weights.sum(-1) for weights in t.passes("decoder.layers.0.attention.weights")]
    assert family.name == "gpt_oss" or all(torch.allclose(found, torch.ones(())) for found in sums)


def test_generate_is_seen_token_by_token() -> None:
    """The prompt's pass, then one a token."""
    model, given = built(families.named("t5"))
    settings: dict[str, Any] = {"max_new_tokens": 4, "temperature": 0, "eos": (), "start": 0}
    with af.trace(model, "decoder.layers.1.cross_attention.weights", "logits", keep="all") as t:
        new = model.generate(given["source"], **settings)
    assert torch.equal(new, model.generate(given["source"], **settings))
    assert [weights.shape for weights in t.passes("decoder.layers.1.cross_attention.weights")] == [(2, 4, 1, 23)] * 4
    assert torch.equal(torch.cat(t.passes("logits"), 1).argmax(-1), new)


def test_a_step_recorded_before_is_seen_and_recorded_steps_serve_again_afterwards() -> None:
    """A cache whose steps are made again by one native call: not while somebody looks, and to the same bits."""
    model, given = built(families.named("llama"))
    ids = given["tokens"]

    def steps(look: bool) -> list[Tensor]:
        cache, found = model.new_cache(2), []
        with torch.no_grad():
            model(ids, cache=cache)
            for step in range(9):
                if look and 3 <= step < 6:
                    with af.trace(model, "**") as t:
                        found.append(model(ids[:, step : step + 1], cache=cache).logits)
                    assert t["decoder.layers.1.attention.weights"].shape == (2, 4, 1, 21 + step)
                else:
                    found.append(model(ids[:, step : step + 1], cache=cache).logits)
        assert not cache.unrecordable
        return found

    assert same(steps(look=True), steps(look=False))


def test_an_exception_leaves_the_model_as_it_was() -> None:
    """Also one that comes out of the middle of a pass."""
    model, given = built(families.named("qwen3_moe"))
    before = outcome(model, **given)
    with pytest.raises(InputError, match="token id 9999 is outside"), af.trace(model, "**"):
        model(torch.tensor([[9999]]))
    assert not wrapped(model) and same(before, outcome(model, **given))


def test_traces_within_traces_and_out_of_order() -> None:
    """Each sees what it asked for, while it is open."""
    model, given = built(families.named("bert"))
    first, second = af.trace(model, "encoder.hidden"), af.trace(model, "**.hidden", keep="all")
    first.__enter__()
    second.__enter__()
    outcome(model, **given)
    first.__exit__(None, None, None)
    outcome(model, **given)
    second.__exit__(None, None, None)
    outcome(model, **given)
    assert len(first.passes("encoder.hidden")) == 1 and len(second.passes("encoder.hidden")) == 2
    assert not wrapped(model)


def test_only_what_is_asked_for_is_wrapped() -> None:
    """One site of one layer: one method of one module."""
    model, _ = built(families.named("llama"))
    with af.trace(model, "decoder.layers.1.attention.weights"):
        assert wrapped(model) == ["decoder.layers.1.attention.attended", "decoder.layers"]


def test_gradients_flow_through_what_was_traced() -> None:
    """The values are the model's own."""
    model, given = built(families.named("gpt2"))
    with af.trace(model, "decoder.layers.0.attention.heads") as t:
        out = model(**given)
    heads = t["decoder.layers.0.attention.heads"]
    (slope,) = torch.autograd.grad(out.logits.sum(), heads)
    assert slope.shape == heads.shape and slope.abs().sum() > 0


def test_padding_and_packing_are_seen_as_the_model_sees_them() -> None:
    """Weights of packed documents do not cross them, of padding are zero."""
    model, given = built(families.named("llama"))
    with torch.no_grad(), af.trace(model, "decoder.layers.0.attention.*") as t:
        packed = model(**given, documents=((12, 8), (20,))).hidden
        weights = t["decoder.layers.0.attention.weights"]
        values = t["decoder.layers.0.attention.values"].repeat_interleave(2, dim=1)
        assert weights[0, :, 12:, :12].abs().max() == 0 and weights[1, :, 12:, :12].abs().max() > 0
        assert torch.allclose(weights @ values, t["decoder.layers.0.attention.heads"], atol=1e-5)
        assert torch.allclose(packed[0, 12:], model(given["tokens"][:1, 12:]).hidden[0], atol=1e-5)
        valid = torch.ones(2, 20, dtype=torch.bool)
        valid[1, :7] = False
        model(**given, valid=valid)
        assert t["decoder.layers.0.attention.weights"][1, :, 7:, :7].abs().max() == 0


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("decoder.layer.*.attention.weights", r"decoder\.layers\.\*\.attention\.weights"),
        ("decoder.layers.7.attention.weights", r"decoder\.layers\.0 to 1, and the nearest.*attention\.weights"),
        ("encoder.layers.*.attention.weights", r"decoder\.layers\.\*\.attention\.weights"),
        ("decoder.layers.*.attention", r"decoder\.layers\.\*\.attention\."),
        ("", "no site of this model matches ''"),
        ("(", r"no site of this model matches '\('"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest(pattern: str, said: str) -> None:
    """Before anything runs, in one sentence."""
    model, _ = built(families.named("llama"))
    with pytest.raises(InputError, match=said):
        af.trace(model, pattern)


def test_what_cannot_be_traced_says_so() -> None:
    """Nothing asked for, nothing passed, many at once, no model, a model that drops, compiled ones."""
    model, given = built(families.named("llama"))
    with pytest.raises(InputError, match="name sites"):
        af.trace(model)
    with pytest.raises(InputError, match="keep the 'last' pass or 'all'"):
        af.trace(model, "**", keep="some")  # type: ignore[arg-type]
    t = af.trace(model, "**.weights", "**.hidden")
    with pytest.raises(InputError, match=r"nothing has passed 'decoder\.hidden' yet"):
        t["decoder.hidden"]
    with pytest.raises(InputError, match="names many sites"):
        t["**.weights"]
    with t:
        outcome(model, **given)
    with pytest.raises(InputError, match="different shapes"):
        t.stack("**")
    assert t.stack("**.weights").shape == (2, 2, 4, 20, 20)
    with pytest.raises(InputError, match="only a Transformer can be traced, not a Stack"):
        af.trace(model.decoder, "**")  # type: ignore[arg-type]
    dropping = af.build(families.named("bert")("tiny"), seed=0)
    with pytest.raises(InputError, match=r"call model\.eval\(\)"):
        af.trace(dropping.train(), "**")
    model.decoder.layers[0].feed_forward.compile()
    with pytest.raises(InputError, match="a compiled model cannot be traced"):
        af.trace(model, "**")


def test_of_a_value_only_what_is_asked_for_is_kept() -> None:
    """A function of site and value, pass by pass; the model goes on with the value itself."""
    model, given = built(families.named("llama"))
    before = outcome(model, **given)
    with af.trace(model, "**.weights", keep="all", reduce=lambda site, value: value.amax((0, 2, 3))) as t:
        assert same(before, outcome(model, **given))
    assert [value.shape for value in t.passes("decoder.layers.0.attention.weights")] == [(4,)]
