"""No attribute is dropped in silence: each one of the reference's configuration, changed, changes the spec, is refused
by name, belongs to generation, or is ignored for a reason; and what is ignored changes nothing in the reference."""

from __future__ import annotations

import copy
import warnings
from functools import cache
from typing import Any

import odd
import pytest
import torch

from anyformer import families
from anyformer.errors import SpecError
from anyformer.families import Family
from anyformer.families.config import GENERATION

#: Attributes whose change makes no sense on its own: what they are is what chooses the reader.
CHOOSES = {"model_type", "architectures"}


@cache
def _attributes(name: str, architecture: str) -> dict[str, Any]:
    family = families.named(name)
    spec = odd.odd_spec(family, 1, architecture)
    said = {**family.express(spec), "architectures": [architecture]}
    return {**odd.reference().AutoConfig.for_model(**said).to_dict(), **said}


def attributes(family: Family, architecture: str) -> dict[str, Any]:
    """Every attribute that the reference's configuration has, in the new form and the old."""
    return copy.deepcopy(_attributes(family.name, architecture))


def mutations(value: Any) -> list[Any]:
    """Other values of the same kind, and some of another."""
    match value:
        case bool():
            return [not value, "yes"]
        case int():
            return [value + 1, 2 * value + 3, -1, "1"]
        case float():
            return [value * 1.5 + 0.01, "0.1"]
        case str():
            return ["something else", 3]
        case list():
            return [[*value, 1], 3]
        case dict():
            first = next(iter(value), "first")
            return [{**value, "mystery": 1}, {**value, first: mutations(value.get(first, 1))[0]}, 3]
        case _:
            return [True, 3, "something"]


CASES = [
    (families.named(name), architecture, attribute)
    for name, architecture in odd.architectures()
    for attribute in attributes(families.named(name), architecture)
    if attribute not in CHOOSES
]


@pytest.mark.parametrize(
    ("family", "architecture", "attribute"), CASES, ids=lambda value: getattr(value, "name", str(value))
)
def test_every_attribute_counts(family: Family, architecture: str, attribute: str) -> None:
    """Each value of each attribute has an effect, a refusal that names it, or a reason to have none."""
    said = attributes(family, architecture)
    before, _ = family.parse(said)
    for value in mutations(said[attribute]):
        try:
            after, reasons = family.parse({**said, attribute: value})
        except SpecError as error:
            assert attribute in str(error) or "is wrong" in str(error), str(error)
            continue
        assert after != before or attribute in reasons or attribute in GENERATION or elsewhere(family, attribute), (
            f"{attribute}={value!r} was dropped in silence"
        )


def elsewhere(family: Family, attribute: str) -> bool:
    """Whether the attribute counts for another architecture of the family, where this one has no part to change."""
    for architecture in family.architectures:
        said = attributes(family, architecture)
        before, _ = family.parse(said)
        plausible = [value for value in mutations(said[attribute]) if type(value) is type(said[attribute])]
        if any(family.parse({**said, attribute: value})[0] != before for value in plausible[:1]):
            return True
    return False


def computed(out: Any) -> torch.Tensor:
    """Logits, or hidden states of a model without a head."""
    return out.logits if "logits" in out else out.last_hidden_state


@pytest.mark.parametrize("family", families.registered().values(), ids=lambda family: family.name)
@torch.no_grad()
def test_what_is_ignored_changes_nothing(family: Family) -> None:
    """The reference's own output stays the same, but for rounding, when an ignored attribute is changed."""
    architecture = next(iter(family.architectures))
    said = attributes(family, architecture)
    spec, reasons = family.parse(said)
    model = odd.reference_model(family, spec, architecture, seed=0)
    ids = torch.arange(5, 17)[None]
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids[:, :4]} if spec.shape == "encoder-decoder" else {})}
    before = computed(model(**inputs))
    tried = 0
    for attribute in reasons:
        for value in mutations(said[attribute]):
            changed = copy.deepcopy(model.config)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    setattr(changed, attribute, value)
                    other = type(model)(changed).eval()
                    other.load_state_dict(model.state_dict())
                    found = computed(other(**inputs, return_dict=True))
            except Exception:  # whatever the reference itself refuses has no output to compare
                continue
            assert torch.allclose(found, before, atol=1e-5), f"{attribute}={value!r} changes the reference's output"
            tried += 1
    assert tried > 3


@pytest.mark.parametrize(
    ("family", "attribute", "value"),
    [
        ("bert", "is_decoder", True),
        ("bert", "add_cross_attention", True),
        ("bert", "position_embedding_type", "relative_key"),
        ("bert", "pruned_heads", {"0": [1]}),
        ("bert", "quantization_config", {"bits": 4}),
        ("llama", "rope_interleaved", True),
        ("llama", "tie_encoder_decoder", True),
        ("llama", "per_layer_config", {"0": {}}),
        ("llama", "is_encoder_decoder", True),
        ("distilbert", "tie_weights_", False),
        ("t5", "is_decoder", True),
        ("llama", "sliding_window", 512),
        ("llama", "query_pre_attn_scalar", 64),
    ],
)
def test_what_would_be_another_model(family: str, attribute: str, value: Any) -> None:
    """Attributes that would change the model in a way that is not known here are refused by name, and only `ignore`
    gets past them."""
    chosen = families.named(family)
    said = {**chosen.presets["tiny"], attribute: value}
    with pytest.raises(SpecError, match=rf"{attribute}.*ignore=\['{attribute}'\]"):
        chosen.parse(said)
    assert chosen.parse(said, ignore=[attribute])[0] == chosen("tiny")


def test_old_files_of_real_models() -> None:
    """Attributes that published config.json files of past versions carry are all known."""
    common = {"_name_or_path": "x", "torch_dtype": "bfloat16", "transformers_version": "4.6.1", "use_cache": True}
    smol = {
        **families.llama.presets["135m"],
        **common,
        "is_llama_config": True,
        "rope_interleaved": False,
        "pretraining_tp": 1,
        "rope_scaling": None,
        "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
    }
    t5 = {
        **families.t5.presets["small"],
        **common,
        "architectures": ["T5WithLMHeadModel"],
        "n_positions": 512,
        "output_past": True,
        "max_length": 20,
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,
        "task_specific_params": {"summarization": {"num_beams": 4, "prefix": "summarize: "}},
    }
    bert = {
        **families.bert.presets["base"],
        **common,
        "gradient_checkpointing": False,
        "position_embedding_type": "absolute",
        "tokenizer_class": "BertTokenizer",
    }
    distilbert = {
        **families.distilbert.presets["base"],
        **common,
        "tie_weights_": True,
        "sinusoidal_pos_embds": False,
        "qa_dropout": 0.1,
        "finetuning_task": "sst-2",
    }
    assert families.llama.parse(smol)[0] == families.llama("135m")
    assert families.t5.parse(t5)[0] == families.t5("small")
    assert families.bert.parse(bert)[0] == families.bert("base")
    assert families.distilbert.parse(distilbert)[0] == families.distilbert("base")


@pytest.mark.parametrize(
    ("family", "size", "also"),
    [
        ("bart", "large", {"replacing_rate": 0, "student_decoder_layers": None, "extra_pos_embeddings": 2}),
        (
            "bert",
            "base-cased",
            {"directionality": "bidi", "pooler_fc_size": 768, "pooler_type": "first_token_transform"},
        ),
        ("gemma2", "9b", {"cache_implementation": "hybrid", "sliding_window_size": 4096}),
        ("gpt2", "medium", {"n_ctx": 1024, "n_special": 0, "predict_special_tokens": True}),
        ("gpt_neox", "pythia-160m", {"rotary_emb_base": 10000, "rope_theta": 10000, "partial_rotary_factor": 0.25}),
        ("modernbert", "base", {"norm_eps": 1e-05, "layer_norm_eps": 1e-05, "position_embedding_type": "absolute"}),
        ("phi3", "mini-4k", {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False}),
    ],
)
def test_what_published_files_say_besides(family: str, size: str, also: dict[str, Any]) -> None:
    """Attributes of published files that change nothing at the value they have there leave the model as it is."""
    chosen = families.named(family)
    assert chosen.parse({**chosen.presets[size], **also})[0] == chosen(size)


def test_a_note_in_a_scaling_changes_nothing() -> None:
    """The first files with YaRN say that they were fine-tuned, which no computation reads."""
    scaling = {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096}
    noted = families.llama("7b", rope_scaling={**scaling, "finetuned": True})
    assert noted == families.llama("7b", rope_scaling=scaling)


@pytest.mark.parametrize(("attribute", "value"), [("rope_theta", 5000.0), ("partial_rotary_factor", 0.5)])
def test_a_second_name_must_agree(attribute: str, value: float) -> None:
    """GPT-NeoX's base and share, said a second time under the usual names, may not differ."""
    with pytest.raises(SpecError, match=f"{attribute} is {value}"):
        families.gpt_neox("tiny", **{attribute: value})
