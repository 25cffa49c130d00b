"""Finding a family: by name, by model type, by architecture, by preset; and what there is, where it is not found."""

from __future__ import annotations

import subprocess
import sys

import pytest

from anyformer import families
from anyformer.errors import SpecError
from anyformer.families import registry


def test_every_file_is_a_family() -> None:
    """The families of the package are attributes of it, under their own names."""
    for name, family in families.registered().items():
        assert getattr(families, name) is family is families.named(name)
        assert all(families.find(model_type) is (family.format or family) for model_type in family.model_types)


def test_no_torch() -> None:
    """Looking up families and their sizes never waits for torch, numpy or tokenizers."""
    program = (
        "import sys; from anyformer import families; from anyformer.planning.shapes import count;"
        "assert count(families.llama('135m')) == 134515008;"
        "heavy = {'torch', 'numpy', 'transformers', 'tokenizers'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_unknown_names_list_the_known() -> None:
    """Whoever misspells learns what there is."""
    with pytest.raises(SpecError, match=r"no family called 'lama'; there are .*bert, .*llama"):
        families.named("lama")
    with pytest.raises(AttributeError, match=r"no family called 'lama'; there are .*bert"):
        families.lama  # type: ignore[attr-defined]
    with pytest.raises(SpecError, match=r"no family reads the model type 'mamba'; known are .*bert.*llama"):
        families.find("mamba")
    with pytest.raises(SpecError, match="llama has no size '9t'; there are tiny, 135m"):
        families.llama("9t")


def test_presets_by_reference() -> None:
    """`family:size` is a preset; anything that does not begin with a family is not, and a missing size is an error."""
    assert families.preset("llama:135m") == families.llama("135m")
    assert families.preset("some/path") is None
    assert families.preset("C:\\models") is None
    with pytest.raises(SpecError, match="llama has no size ''"):
        families.preset("llama:")


def test_a_config_without_a_model_type() -> None:
    """Files older than model_type are told by their architecture."""
    assert registry.of({"architectures": ["BertForMaskedLM"]}) is families.bert
    assert registry.of({"model_type": "t5", "architectures": ["Whatever"]}) is families.t5
    with pytest.raises(SpecError, match=r"x.json: unknown: 'MambaForCausalLM'; known architectures are .*Bert"):
        registry.of({"architectures": ["MambaForCausalLM"]}, "x.json")
    with pytest.raises(SpecError, match="names no model_type and no architecture"):
        registry.of({})
    with pytest.raises(SpecError, match=r"x.json: no family reads the model type 'mamba'"):
        registry.of({"model_type": "mamba"}, "x.json")


def test_the_family_of_a_gguf_file() -> None:
    """By its architecture; where several families share one, the one that asks for most of what is there."""
    assert registry.of_gguf("llama", {}, "x.gguf") is families.llama
    with pytest.raises(SpecError, match=r"x.gguf: no family reads the GGUF architecture 'rwkv6'; known are .*llama"):
        registry.of_gguf("rwkv6", {}, "x.gguf")
