"""What only DeepSeek-V3 has: rows that all heads share, brought to or expanded; experts of groups; extra layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

import anyformer as af
from anyformer import families, planning, spec
from anyformer.errors import SpecError
from anyformer.families.deepseek_v3 import GroupedExperts
from anyformer.families.latent_attention import LatentAttention, absorption_pays
from anyformer.parts import kernels
from anyformer.parts.context import Context
from anyformer.parts.kernels import native
from anyformer.parts.masks import Tokens
from anyformer.training.optimizers import optimizers

#: Widths from two on: torch does not count a sum of one term as a product.
LATENT = st.builds(
    LatentAttention,
    heads=st.integers(1, 3),
    latent=st.integers(2, 9),
    query_latent=st.none() | st.integers(1, 7),
    key_dim=st.integers(2, 9),
    rotary_dim=st.sampled_from([2, 4]),
    value_dim=st.integers(1, 9),
    position=st.just(spec.Rotary(interleaved=True)),
    bias=st.booleans(),
)


def dense_model(attention: LatentAttention) -> spec.Transformer:
    """A decoder of this attention and plain feed-forwards."""
    norm = spec.Norm(kind="rms")
    mixers = (attention, spec.FeedForward(hidden=11))
    block = spec.Block(branches=tuple(spec.Branch(mixer=mixer, norm=norm) for mixer in mixers))
    stack = spec.Stack(dim=12, depth=2, pattern=(block,), embeddings=spec.Embeddings(vocabulary=29))
    return spec.Transformer(decoder=stack, head=spec.LanguageModelHead())


@settings(max_examples=15)
@given(LATENT, st.integers(1, 6), st.integers(0, 12))
def test_costs_are_those_of_the_built_model(attention: LatentAttention, tokens: int, cached: int) -> None:
    """FLOPs are torch's own count and bytes are what the cache holds: a short row a token and no key or value of any
    head, whichever way the scores are computed."""
    described = dense_model(attention)
    model = af.build(described, seed=0).eval()
    ids, cache = torch.zeros(1, cached + tokens, dtype=torch.long), model.new_cache(1, capacity=cached + tokens)
    # Without native kernels, whose products torch's counter does not see.
    with torch.no_grad(), kernels.use("reference"), mock.patch.object(native, "library", lambda: None):
        if cached:
            model(ids[:, :cached], cache=cache)
        with FlopCounterMode(display=False) as counter:
            model(ids[:, cached:], cache=cache)
    flops = planning.forward_flops(described, tokens, cached=cached, dense=True)
    assert sum(flops.values()) == counter.get_total_flops()
    dumps = sum(store[:, :, -1].nbytes for layer in cache.layers for store in layer.stored)
    width = attention.latent + attention.rotary_dim
    assert cache.bytes() - dumps == 2 * 4 * width * (cached + tokens)
    assert planning.kv_bytes(described, cached + tokens, dtype="float32") == cache.bytes() - dumps
    assert planning.parameters(described).total == sum(parameter.numel() for parameter in model.parameters())


@settings(max_examples=15)
@given(LATENT, st.integers(1, 7), st.booleans())
def test_absorbed_is_expanded(attention: LatentAttention, tokens: int, padded: bool) -> None:
    """Bringing queries to rows, and making keys and values of rows, are one function with one gradient."""
    module = attention.module()(attention, 10).double()
    x = torch.randn(2, tokens, 10, dtype=torch.float64, requires_grad=True)
    valid = torch.arange(tokens).expand(2, -1) >= torch.tensor([[0], [tokens // 2]]) if padded else None
    position = None if valid is None else (valid.long().cumsum(1) - 1).clamp(min=0)
    told = {"start": 0} if valid is None else {"position": position, "valid": valid}
    found = []
    for absorbs in (True, False):
        module.absorbs = lambda tokens, keys, absorbs=absorbs: absorbs
        out = module(x, Context(Tokens(tokens, **told)))
        weights = [p for name, p in module.named_parameters() if "norm" not in name]
        found.append([out, *torch.autograd.grad(out.square().sum(), [x, *weights])])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


@given(*[st.integers(1, 200)] * 2, *[st.integers(1, 40)] * 3)
def test_the_cheaper_way_is_taken(tokens: int, cached: int, latent: int, rotary: int, head: int) -> None:
    """Rows are brought to exactly where that takes fewer multiplications."""
    keys = tokens + cached
    absorbed = tokens * latent * head + tokens * keys * 2 * (latent + rotary)
    expanded = keys * latent * head + tokens * keys * (rotary + head)
    assert absorption_pays(tokens, keys, latent, rotary, head) == (absorbed < expanded)


def test_the_published_size_decodes_absorbed_and_reads_expanded() -> None:
    """At the published widths a token that follows 4,096 others is brought to their rows, a prompt is expanded; and a
    row is 576 numbers, where as many heads' keys and values would be 40,960."""
    attention = families.deepseek_v3("671b").output.pattern[0].branches[0].mixer
    assert isinstance(attention, LatentAttention)
    assert attention.absorbs(1, 4097) and not attention.absorbs(4096, 4096)
    assert attention.kept(1) == 576


def test_a_hooked_matrix_is_asked_itself() -> None:
    """Where something listens to, or stands for, the matrix that makes keys, it is called with the rows."""
    model = af.build(families.deepseek_v3("tiny"), seed=0).eval()
    ids = torch.arange(20)[None]
    cache, wanted = model.new_cache(1), model(ids).logits[:, -1]
    asked = []
    attention: Any = model.decoder.layers[1].attention  # type: ignore[union-attr]
    handle = attention.key.register_forward_hook(lambda module, inputs, out: asked.append(inputs[0].shape[1]))
    model(ids[:, :19], cache=cache)
    last = model(ids[:, 19:], cache=cache).logits[:, -1]
    assert asked == [19, 20]
    handle.remove()
    torch.testing.assert_close(last, wanted)
    model(ids[:, :1], cache=cache)
    assert asked == [19, 20]


EXPERTS = GroupedExperts(experts=12, top_k=3, hidden=4, groups=4, top_groups=2, factor=2.5)


@pytest.mark.parametrize("normalize", [True, False])
@torch.no_grad()
def test_routing_by_the_definition(normalize: bool) -> None:
    """Token by token: the two best groups by their two best corrected shares, the three best experts of those, weighted
    by their shares without the correction."""
    torch.manual_seed(0)
    module = EXPERTS.replace(normalize=normalize).module()(EXPERTS.replace(normalize=normalize), 5)
    module.correction.data.normal_()
    x = torch.randn(9, 5)
    shares, weights, chosen = module.route(x)
    corrected = shares + module.correction
    for token in range(9):
        groups = corrected[token].view(4, 3).tolist()
        best = sorted(range(4), key=lambda group: -sum(sorted(groups[group])[1:]))[:2]
        candidates = [3 * group + index for group in best for index in range(3)]
        wanted = sorted(candidates, key=lambda expert: -float(corrected[token, expert]))[:3]
        assert sorted(chosen[token].tolist()) == sorted(wanted)
        total = float(shares[token, wanted].sum()) if normalize else 1.0
        torch.testing.assert_close(weights[token], 2.5 * shares[token, chosen[token]] / total)
    torch.testing.assert_close(shares, (x @ module.router.weight.T).sigmoid())


def test_the_correction_is_exact_and_does_not_learn() -> None:
    """It stays float32 in a model of any type, to the bit, gets no gradient, and no optimizer moves it."""
    model = af.build(families.deepseek_v3("tiny"), seed=0)
    corrections = [parameter for name, parameter in model.named_parameters() if name.endswith("correction")]
    for correction in corrections:
        correction.data.normal_()
    before = [correction.detach().clone() for correction in corrections]
    model.to(torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16, torch.float32}
    made = optimizers("adamw", model, weight_decay=0.1)
    model(torch.arange(12)[None]).logits.float().square().mean().backward()
    for optimizer in made:
        optimizer.step()
    now = [parameter for name, parameter in model.named_parameters() if name.endswith("correction")]
    assert len(now) == 2
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(now, before))


def test_layers_that_predict_further_are_carried(tmp_path: Path) -> None:
    """Those of multi-token prediction stand behind the last layer: nothing reads them, and a save keeps them."""
    model = af.build(families.deepseek_v3("tiny"), seed=0)
    model.save(tmp_path / "first")
    file = tmp_path / "first" / "model.safetensors"
    further = {"model.layers.3.enorm.weight": torch.ones(64), "model.layers.3.eh_proj.weight": torch.ones(64, 128)}
    save_file({**load_file(file), **further}, file)
    again = af.load(tmp_path / "first", device="cpu")
    assert again.carried is not None and again.carried.reasons.keys() >= further.keys()
    again.save(tmp_path / "second")
    saved = load_file(tmp_path / "second" / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in further.items())


def test_published_attributes() -> None:
    """What the published config.json says beyond the shape is known, in the older form and in the newer."""
    yarn = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0}
    said = {
        **families.deepseek_v3.presets["671b"],
        "rope_theta": 10000,
        "rope_scaling": {**yarn, "original_max_position_embeddings": 4096, "type": "yarn"},
        "aux_loss_alpha": 0.001,
        "ep_size": 1,
        "moe_layer_freq": 1,
        "num_nextn_predict_layers": 1,
        "scoring_func": "sigmoid",
        "seq_aux": True,
        "topk_method": "noaux_tc",
        "auto_map": {"AutoModel": "modeling_deepseek.DeepseekV3Model"},
    }
    described = families.deepseek_v3("671b")
    assert families.deepseek_v3.parse(said)[0] == described
    newer = {**said, "rope_scaling": None, "rope_theta": None}
    newer["rope_parameters"] = {**said["rope_scaling"], "rope_theta": 10000}
    assert families.deepseek_v3.parse(newer)[0] == described
    attention = described.output.pattern[0].branches[0].mixer
    assert isinstance(attention, LatentAttention)
    assert attention.scale == pytest.approx(192**-0.5 * 1.8738542) and attention.position.scaling is not None
    written = families.deepseek_v3.express(described)
    assert written["rope_scaling"]["mscale"] == written["rope_scaling"]["mscale_all_dim"] == 1.0
    parameters = planning.parameters(described)
    assert (parameters.total, parameters.active) == (671_026_419_200, 37_552_297_472)


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({"first_k_dense_replace": 3}, "first_k_dense_replace=3 leaves no layer of num_hidden_layers=3"),
        ({"num_key_value_heads": 2}, "num_attention_heads and num_key_value_heads are one thing"),
        ({"qk_head_dim": 25}, r"qk_head_dim is not qk_nope_head_dim \+ qk_rope_head_dim"),
        ({"n_group": 3}, "groups=3 must divide experts=8"),
        ({"n_group": 8}, "groups of two at least"),
        ({"topk_group": 1, "num_experts_per_tok": 3}, "top_groups=1 of groups=4 do not hold top_k=3"),
        ({"qk_rope_head_dim": 7}, "rotary positions turn 7"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"topk_method": "greedy"}, "topk_method"),
        ({"moe_layer_freq": 2}, "moe_layer_freq"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "mscale_all_dim": 1.0}}, "mscale belongs to YaRN"),
    ],
)
def test_what_cannot_be(attributes: dict[str, Any], sentence: str) -> None:
    """Each is refused in a sentence that names it."""
    with pytest.raises(SpecError, match=sentence):
        families.deepseek_v3("tiny", **attributes)


def _wider(described: spec.Transformer) -> spec.Transformer:
    stack = described.output
    last = stack.pattern[-1]
    branches = tuple(
        branch.replace(mixer=branch.mixer.replace(shared_hidden=33)) if branch.name == "experts" else branch
        for branch in last.branches
    )
    return described.replace(decoder=stack.replace(pattern=(*stack.pattern[:-1], last.replace(branches=branches))))


def _turned_around(described: spec.Transformer) -> spec.Transformer:
    stack = described.output
    return described.replace(decoder=stack.replace(pattern=tuple(reversed(stack.pattern))))


@pytest.mark.parametrize(
    ("change", "lost"), [(_wider, "shared_hidden"), (_turned_around, "pattern")], ids=["shared", "order"]
)
def test_what_the_format_cannot_say(change: Callable[[spec.Transformer], spec.Transformer], lost: str) -> None:
    """A shared expert of another width, and dense layers after the others, have no attribute."""
    with pytest.raises(SpecError, match=lost):
        families.deepseek_v3.express(change(families.deepseek_v3("tiny")))


def test_no_dense_layers() -> None:
    """Every layer may have experts; and there is no first run of dense ones then."""
    described = families.deepseek_v3("tiny", first_k_dense_replace=0)
    assert len(described.output.pattern) == 1
    assert families.deepseek_v3.express(described)["first_k_dense_replace"] == 0
