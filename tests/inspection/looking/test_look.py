"""A look inside: what is on the page is what passed, of every shape of model; and the page stands for itself."""

from __future__ import annotations

import re
import zlib
from base64 import b64decode
from pathlib import Path

import pytest
import torch

import anyformer as af
from anyformer import families, text
from anyformer.errors import InputError
from anyformer.inspection.looking import Look, look, write_page
from anyformer.inspection.looking.look import PICTURE, piece_of
from anyformer.inspection.looking.page import facts
from anyformer.inspection.looking.pictures import picture
from anyformer.model import Transformer

#: Of every shape, and with a mixture.
SHAPES = ["llama", "bert", "t5", "deepseek_v3", "distilbert"]


def reader(name: str) -> Transformer:
    """A tiny model of bytes."""
    model = af.build(families.named(name)("tiny"), seed=0).eval()
    model.tokenizer, model.generation = text.byte_level(), {"decoder_start_token_id": 0}
    return model


@pytest.fixture(scope="module", params=SHAPES)
def seen(request: pytest.FixtureRequest) -> Look:
    return look(reader(request.param), "She said <b>no</b> & left;\nwho knows?")


def test_what_is_seen_is_what_passes(seen: Look) -> None:
    """Norms and answers against the model itself; patterns and routes have one row for each."""
    model, stack = seen.model, seen.stack
    assert "".join(seen.tokens["encoder" if "encoder" in seen.tokens else "decoder"]).startswith("She said <b>")
    assert seen.lens is not None and len(seen.lens.sites) == len(model.output_stack.layers) + 1
    assert seen.lens.answers.shape[2] == len(seen.tokens[stack]) == len(seen.wanted)
    for name, row in seen.tokens.items():
        assert len(seen.norms[f"{name}.embeddings"]) == len(row)
        for branch, value in seen.patterns.items():
            if branch.startswith(name) and ".attention" in branch:
                assert value.shape[1:] == (len(row), len(row)) and float(value.max()) <= 1 + 1e-5
    assert bool(seen.routing) == (model.spec.output.pattern[-1].branches[-1].mixer.role == "experts")
    for loads in seen.routing.values():
        assert loads.shape[1] == len(seen.tokens[stack]) and ((loads > 0).sum(0) <= loads.shape[0]).all()


def test_the_page_stands_for_itself_and_escapes_what_it_shows(seen: Look, tmp_path: Path) -> None:
    """One file; no address but of pictures within it; texts as texts; a picture of every head."""
    write_page(seen, "<i>a model</i>", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=\"(?!data:image/png)", page) and "http" not in page
    assert "<i>" not in page.split("<script>")[0].replace("<i></i>", "") and "&lt;i&gt;a model" in page
    assert page.count("<img") >= sum(len(value) for value in seen.patterns.values())
    assert "⏎" in page and ("Where experts are asked" in page) == bool(seen.routing)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_the_table_says_what_the_model_answers() -> None:
    """The first row, of the last layer, against a pass of the model; right where the next token is what it says."""
    model = reader("llama")
    found = facts(look(model, "abcabcabc"), "m")
    with torch.no_grad():
        logits = model(torch.tensor([model.tokenizer.encode("abcabcabc")])).logits[0]  # type: ignore[union-attr]
    cells = found["lens"][0]["cells"]
    assert found["lens"][0]["name"] == "layer 1" and found["lens"][-1]["name"] == "embeddings"
    assert [cell["text"] for cell in cells] == [piece_of(model.tokenizer, id) for id in logits.argmax(-1).tolist()]
    assert found["answers"][0]["probability"] == pytest.approx(float(logits[-1].softmax(-1).max()), rel=1e-4)


def test_a_long_text_has_pictures_of_one_size() -> None:
    """Weights are brought down to their largest."""
    seen = look(reader("gpt2"), "a long story. " * 8)
    assert {tuple(value.shape[1:]) for value in seen.patterns.values()} == {(PICTURE, PICTURE)}
    assert facts(seen, "m")["pooled"] and facts(seen, "m")["earlier"] > 0


def test_an_encoder_is_asked_at_its_masks() -> None:
    """And everywhere where it has none."""
    model = reader("bert")
    assert model.tokenizer is not None
    model.tokenizer = model.tokenizer.with_special({"mask_token": "[MASK]"})
    seen = look(model, "to [MASK] or not")
    assert [seen.tokens["encoder"][at] for at in seen.positions()] == ["[MASK]"]
    assert look(model, "abc").positions() == [0, 1, 2]


def test_an_encoder_decoder_writes_its_target_or_its_own_answer() -> None:
    """The target's tokens follow the start token; a single token has no scores of heads."""
    model = reader("t5")
    assert "".join(look(model, "abc", "xyz").tokens["decoder"]).endswith("xyz")
    begun = look(model, "a", "b")
    assert len(begun.tokens["decoder"]) == 2 and begun.heads is None


def test_pictures_are_pngs_of_their_values() -> None:
    """Two points a byte, a filter byte a row; square roots in 16 steps."""
    data = b64decode(picture(torch.tensor([[0.0, 1.0, 0.25], [1.0, 0.0, 2.0]])).partition(",")[2])
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data[16:24] == bytes([0, 0, 0, 3, 0, 0, 0, 2])
    start = data.index(b"IDAT") + 4
    assert zlib.decompress(data[start:-16]) == bytes([0, 0x0F, 0x80, 0, 0xF0, 0xF0])


def test_texts_that_cannot_be_looked_at_say_so() -> None:
    """Empty, longer than the context, without a tokenizer, with a target that nobody writes."""
    model = reader("llama")
    context = model.spec.context
    assert context is not None
    for given, said in (
        (("",), "the text is empty"),
        (
            ("a" * (context + 1),),
            f"the text is {context + 1:,} tokens, and the model's context is {context:,}; shorten",
        ),
        (("a", "b"), "a target is what an encoder-decoder writes"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            look(model, *given)
    model.tokenizer = None
    with pytest.raises(InputError, match="has no tokenizer"):
        look(model, "a")
