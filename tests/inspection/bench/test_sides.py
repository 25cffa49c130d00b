"""Every side does the same work: the same weights, the same ids, the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from llamacpp import library

from anyformer import families, model, spec
from anyformer.errors import InputError
from anyformer.inspection.bench import Here, Opened, Work, beside, there, warm
from anyformer.inspection.bench.sides import RIVALS
from anyformer.model import Transformer
from anyformer.model.saving import blocks_of


def built(name: str, std: float = 0.3) -> Transformer:
    """A model whose weights are large, so that what it answers depends on what it has read."""
    family, preset = name.split(":")
    described = getattr(families, family)(preset)
    described = described.model_copy(
        update={"initialization": described.initialization.model_copy(update={"std": std})}
    )
    made = model.build(described, seed=1).eval()
    made.family, made.generation = family, dict(families.named(family).generation)
    return made


def answers(opened: Opened, name: str, work: Work) -> tuple[list[list[int]], list[list[int]], int]:
    """The new ids here and there, and how many laps there were."""
    laps: list[None] = []
    with beside(opened, [name], work) as sides:
        return (
            Here(opened.model).generate(work, lambda: None),
            sides[name].generate(work, lambda: laps.append(None)),
            len(laps),
        )


@pytest.mark.parametrize("name", ["llama:tiny", "t5:tiny"])
def test_transformers_answers_the_same(name: str) -> None:
    """A decoder and an encoder-decoder, two rows of them; a lap for every token."""
    work = Work(200, prompt_tokens=9, new_tokens=6, batch=2)
    ours, theirs, laps = answers(Opened(built(name), name), "transformers", work)
    assert theirs == ours
    assert laps == 6
    assert len({id for row in ours for id in row}) > 2


def test_llama_cpp_answers_the_same() -> None:
    """Two rows, from a file written for it."""
    library()
    work = Work(200, prompt_tokens=9, new_tokens=6, batch=2)
    ours, theirs, laps = answers(Opened(built("llama:tiny", std=0.1), "llama:tiny"), "llama.cpp", work)
    assert theirs == ours
    assert laps == 6


def test_a_quantised_model_is_compared_in_its_own_format(tmp_path: Path) -> None:
    """With llama.cpp on a file of the same blocks, and with transformers, which knows none, as it was before."""
    library()
    saved = built("llama:tiny", std=0.1)
    saved.save(tmp_path / "saved")
    opened, work = Opened(model.load(tmp_path / "saved", quantize="int8"), str(tmp_path / "saved")), Work(200, 5, 2)
    with beside(opened, ["llama.cpp", "transformers"], work) as sides:
        assert [side.dtype for side in (Here(opened.model), *sides.values())] == ["Q8_0", "Q8_0", "float32"]
        assert len(sides["llama.cpp"].generate(work, lambda: None)[0]) == 2


def test_llama_cpp_is_given_the_blocks_that_the_model_has(tmp_path: Path) -> None:
    """Those of a preset that was quantised, or of a file in floats; a file whose blocks they are serves as it is."""
    library()
    built("llama:tiny", std=0.1).save(tmp_path / "floats.gguf")
    for reference in ("llama:tiny", str(tmp_path / "floats.gguf")):
        opened, work = Opened(model.load(reference, device="cpu", quantize="int4"), reference), Work(200, 5, 2)
        with beside(opened, ["llama.cpp"], work) as sides:
            assert sides["llama.cpp"].dtype == "Q4_0"
        place = tmp_path / Path(reference).stem
        place.mkdir()
        kept = Opened(model.load(written := opened.file(place), quantize="keep"), str(written))
        assert written.parent == place and kept.file(tmp_path) == written
        mine, its = blocks_of(opened.model), blocks_of(kept.model)
        assert mine and all(torch.equal(matrix.data, its[name].data) for name, matrix in mine.items())


def test_transformers_embeds_the_same() -> None:
    """The mean of an encoder's last states."""
    encoder, work = built("bert:tiny", std=0.1), Work(200, prompt_tokens=9, new_tokens=0, batch=3)
    with beside(Opened(encoder, "bert:tiny"), ["transformers"], work) as sides:
        ours, theirs = (side.embed(work, lambda: None) for side in (Here(encoder), sides["transformers"]))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_checkpoint_is_read_where_it_lies(tmp_path: Path) -> None:
    """A directory and a file serve as they are; anything else is written aside."""
    decoder = built("llama:tiny")
    decoder.save(tmp_path / "there")
    (tmp_path / "aside").mkdir()
    assert Opened(decoder, str(tmp_path / "there")).directory(tmp_path / "aside") == tmp_path / "there"
    assert not list((tmp_path / "aside").iterdir())
    written = Opened(decoder, "llama:tiny").file(tmp_path / "aside")
    assert written.parent == tmp_path / "aside"
    assert Opened(decoder, str(written)).file(tmp_path) == written


def test_a_project_that_nobody_knows_is_said() -> None:
    """With those that there are."""
    opened = Opened(built("llama:tiny"), "llama:tiny")
    with pytest.raises(InputError, match=r"are transformers, llama\.cpp"), beside(opened, ["vllm"], Work(200)):
        pass


def test_a_model_without_a_counterpart_is_said() -> None:
    """LLaMA with linear biases instead of rotations is in no config's words."""
    data = built("llama:tiny").spec.model_dump()
    data["decoder"]["pattern"][0]["branches"][0]["mixer"]["position"] = spec.Alibi().model_dump()
    opened = Opened(model.build(spec.Transformer.from_data(data)), "mine")
    with pytest.raises(InputError, match="so only anyformer can run it"), beside(opened, ["transformers"], Work(200)):
        pass


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(RIVALS, "llama.cpp", RIVALS["llama.cpp"]._replace(package="no_such_package"))
    with (
        pytest.raises(InputError, match="pip install llama-cpp-python"),
        beside(Opened(built("llama:tiny"), "llama:tiny"), ["llama.cpp"], Work(200)),
    ):
        pass


def test_llama_cpp_is_not_asked_for_what_it_is_not_compared_on() -> None:
    """An encoder-decoder is refused by its shape, before anything is written for it."""
    library()
    with (
        pytest.raises(InputError, match=r"llama\.cpp is compared on decoders, not on encoder-decoders; leave it out"),
        beside(Opened(built("t5:tiny"), "t5:tiny"), ["llama.cpp"], Work(200)),
    ):
        pass


def test_a_project_named_twice_is_one() -> None:
    """In the order in which they are named first."""
    assert there(["transformers", "transformers"]) == ["transformers"]


def test_a_first_time_says_what_it_took() -> None:
    """At least the weights were in memory."""
    decoder = built("llama:tiny")
    taken = warm(Here(decoder), Work(200, 4, 2))
    assert taken is None or taken > sum(parameter.numel() * 4 for parameter in decoder.parameters())
