"""Every registered family: its sizes, its format both ways, and what its format cannot say.

The configurations are transformers' own classes, in the form that version 5 writes and in the older one.
"""

from __future__ import annotations

from typing import Any

import odd
import pytest

from anyformer import families
from anyformer.errors import SpecError
from anyformer.families import Family
from anyformer.families.config import DEFAULTS, GENERATION, IGNORED
from anyformer.families.difference import differences
from anyformer.families.names import fill
from anyformer.planning.shapes import count, shapes
from anyformer.spec import Alibi, EmbeddingHead, Transformer

FAMILIES = list(families.registered().values())
PRESETS = [(family, size) for family in FAMILIES for size in family.presets]
ARCHITECTURES = [(families.named(name), architecture) for name, architecture in odd.architectures()]

#: Parameters as published, or as counted in the published checkpoints.
PUBLISHED = {
    "llama:135m": 134_515_008,
    "llama:360m": 361_821_120,
    "llama:1.7b": 1_711_376_384,
    "llama:1b": 1_235_814_400,
    "llama:3b": 3_212_749_824,
    "llama:7b": 6_738_415_616,
    "llama:8b": 8_030_261_248,
    "llama:13b": 13_015_864_320,
    "llama:70b": 70_553_706_496,
    "bert:base": 109_514_298,
    "bert:large": 335_174_458,
    "distilbert:base": 66_985_530,
    "roberta:base": 124_697_433,
    "roberta:large": 355_412_057,
    "t5:small": 60_506_624,
    "t5:base": 222_903_552,
    "t5:large": 737_668_096,
    "t5:3b": 2_851_598_336,
    "t5:11b": 11_307_321_344,
    "t5:v1.1-small": 76_961_152,
    "t5:v1.1-base": 247_577_856,
    "t5:flan-large": 783_150_080,
    "t5:flan-xl": 2_849_757_184,
    "t5:flan-xxl": 11_135_332_352,
    "modernbert:base": 149_655_232,
}


def case(value: Any) -> str:
    return value.name if isinstance(value, Family) else str(value)


@pytest.mark.parametrize(("family", "size"), PRESETS, ids=case)
def test_presets(family: Family, size: str) -> None:
    """Each size is a spec that its own format keeps whole, every parameter of which has a name in its files."""
    spec = family(size)
    attributes = family.express(spec)
    assert family.parse(attributes)[0] == spec
    assert family.lost(spec) == []
    named = {name for line in fill(family.tensors(spec), shapes(spec)) for name in line.ours}
    assert named == shapes(spec).keys()


@pytest.mark.parametrize("reference", PUBLISHED)
def test_published_sizes(reference: str) -> None:
    """The number of parameters is the published one, to the last."""
    spec = families.preset(reference)
    assert spec is not None and count(spec) == PUBLISHED[reference]


@pytest.mark.parametrize("family", FAMILIES, ids=case)
def test_tiny(family: Family) -> None:
    """There is a size for trying things out: hundreds of thousands of parameters."""
    assert 100_000 < count(family("tiny")) < 1_000_000


@pytest.mark.parametrize(("family", "architecture"), ARCHITECTURES, ids=case)
@pytest.mark.parametrize("seed", range(6))
def test_both_ways(family: Family, architecture: str, seed: int) -> None:
    """spec -> config.json -> transformers' own configuration -> config.json in its newest form -> the same spec, and
    the same again from what we write of that."""
    spec = odd.odd_spec(family, seed, architecture)
    configuration = odd.reference().AutoConfig.for_model(**family.express(spec))
    new = {**configuration.to_dict(), "architectures": [architecture]}
    # transformers ties T5 whatever its config says, and tells from the file whether that is so.
    if family.tied == "file" and "tie_word_embeddings" in new:
        new["tie_word_embeddings"] = getattr(spec.head, "tied", True)
    again, _ = family.parse(new)
    assert differences(again, spec) == []
    second = odd.reference().AutoConfig.for_model(**{**new, **family.express(again), "architectures": [architecture]})
    assert second.to_dict() == odd.reference().AutoConfig.for_model(**new).to_dict()


@pytest.mark.parametrize("family", FAMILIES, ids=case)
def test_the_reference_s_own_defaults(family: Family) -> None:
    """The default configuration of the reference, in the short form in which it is saved, is read whole."""
    for model_type in family.model_types:
        try:
            configuration = odd.reference().AutoConfig.for_model(model_type)
        except ValueError:
            pytest.skip(f"transformers has no configuration for {model_type}")
        spec, _ = family.parse(configuration.to_diff_dict())
        ours = odd.reference().AutoConfig.for_model(**family.express(spec)).to_dict()
        assert all(ours[name] == value for name, value in configuration.to_diff_dict().items() if name in ours)


@pytest.mark.parametrize("family", FAMILIES, ids=case)
def test_a_spec_of_another_form(family: Family) -> None:
    """Specs of other families are refused with the part that has no counterpart, never with a stray exception."""
    for other in FAMILIES:
        for architecture in other.architectures:
            spec = other("tiny", architectures=[architecture])
            try:
                attributes = family.express(spec)
            except SpecError as error:
                assert f"the {family.name} format" in str(error)
                continue
            found = family.parse(attributes)[0]
            bare = spec.replace(head=EmbeddingHead()) if spec.head.kind == "embedding" else spec
            assert differences(bare, found, guidance=False) == []


def test_the_part_without_a_counterpart_is_named() -> None:
    """Exactly what the format cannot say, by its path."""
    spec = families.llama("tiny")
    soft = Transformer.from_data(odd.apply(spec.model_dump(), {"attention": {"soft_cap": 30.0}}))
    with pytest.raises(SpecError, match=r"decoder.pattern.0.branches.0.mixer.soft_cap \(30.0, not None\)"):
        families.llama.express(soft)
    alibi = Transformer.from_data(odd.apply(spec.model_dump(), {"attention": {"position": Alibi().model_dump()}}))
    with pytest.raises(SpecError, match="the llama format cannot express this model: it needs rotary positions"):
        families.llama.express(alibi)
    with pytest.raises(SpecError, match="it needs a decoder"):
        families.llama.express(families.bert("tiny", architectures=["BertForTokenClassification"]))
    with pytest.raises(SpecError, match="it has no head of kind 'masked_language_model'"):
        families.llama.express(families.bert("tiny"))


def test_guidance_may_be_lost() -> None:
    """A format need not hold what only guides training; what it loses can be told."""
    spec = families.llama("tiny")
    spec = spec.replace(initialization=spec.initialization.replace(depth_scaled=True))
    families.llama.express(spec)
    assert [str(lost) for lost in families.llama.lost(spec)] == ["initialization.depth_scaled (True, not False)"]


def test_unknown_architectures_list_the_known() -> None:
    """A head that the family does not have."""
    with pytest.raises(
        SpecError, match=r"config.json: the architecture 'BertForQuestionAnswering' is not known; bert has Be"
    ):
        families.bert.parse({**families.bert.presets["tiny"], "architectures": ["BertForQuestionAnswering"]})


def test_what_does_not_fit_together() -> None:
    """A config that describes no Transformer names the part and its field."""
    with pytest.raises(SpecError, match=r"llama:tiny: Attention is wrong: kv_heads=3 does not divide"):
        families.llama("tiny", num_key_value_heads=3)
    with pytest.raises(
        SpecError, match="roberta:tiny: max_position_embeddings is 2; the first 2 rows belong to padding"
    ):
        families.roberta("tiny", max_position_embeddings=2)


@pytest.mark.parametrize("family", FAMILIES, ids=case)
def test_reasons_are_stated(family: Family) -> None:
    """Nothing is ignored without a reason, or twice over."""
    assert all({**IGNORED, **family.ignored}.values())
    assert not family.ignored.keys() & family.defaults.keys()
    assert not GENERATION & (family.defaults.keys() | DEFAULTS.keys())


T5_OLD = {"vocab_size": 32, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("attributes", "scaled"),
    [
        ({}, True),
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ({"tie_word_embeddings": False, "scale_decoder_outputs": True}, True),
    ],
)
def test_t5_output_scale(attributes: dict[str, Any], scaled: bool) -> None:
    """The output is scaled as `scale_decoder_outputs` says, in older files where embeddings are not untied."""
    spec, _ = families.t5.parse({**T5_OLD, **attributes})
    assert getattr(spec.head, "scale", None) == (8**-0.5 if scaled else None)
    assert odd.reference().T5Config(**{**T5_OLD, **attributes}).scale_decoder_outputs is scaled


@pytest.mark.parametrize(
    ("attributes", "activation", "gated"),
    [
        ({}, "relu", False),
        ({"feed_forward_proj": "gelu"}, "gelu", False),
        ({"feed_forward_proj": "gated-gelu"}, "gelu_tanh", True),
        ({"feed_forward_proj": "gated-silu"}, "silu", True),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "is_gated_act": True}, "gelu", True),
    ],
)
def test_t5_feed_forward(attributes: dict[str, Any], activation: str, gated: bool) -> None:
    """Every form of `feed_forward_proj`, and the two attributes that win over it, as the reference reads them."""
    spec, _ = families.t5.parse({**T5_OLD, **attributes})
    mixer = spec.output.pattern[0].branches[-1].mixer
    assert (getattr(mixer, "activation", None), getattr(mixer, "gated", None)) == (activation, gated)
    config = odd.reference().T5Config(**{**T5_OLD, **attributes})
    from anyformer.families.config import ACTIVATIONS

    assert (ACTIVATIONS[config.dense_act_fn], config.is_gated_act) == (activation, gated)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_token_types_cannot_be_left_out(name: str) -> None:
    """The reference fails without token types, so that a model that has none, as DistilBERT's, is not saved as one."""
    with pytest.raises(SpecError, match="it needs token types"):
        families.named(name).express(families.named(name)("tiny", type_vocab_size=0))
