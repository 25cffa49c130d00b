"""Answers against those wanted: what generate says, and what sacrebleu's command line computes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from objectives import tiny

from anyformer.data import Document
from anyformer.errors import InputError
from anyformer.inspection.evaluation import answering
from anyformer.inspection.evaluation.answering import Answered, answer, needed, scores

SOURCES = ["one", "the second, a longer one", "three!", "and the fourth of all of these sources"]
DOCUMENTS = [Document(text, "", fields={"source": text, "target": text.upper()}) for text in SOURCES]


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_those_of_generate(beams: int) -> None:
    """In the order of the records, whatever the batches; the text up to its end."""
    model = tiny("t5:tiny", "seq2seq").eval()
    found, left_out = answer(model, DOCUMENTS, beams=beams, max_new_tokens=6)
    wanted = [model.generate([text], beams=beams, max_new_tokens=6)[0].strip() for text in SOURCES]
    assert [each.answer for each in found] == wanted and left_out == 0
    assert [(each.source, each.target) for each in found] == [(text, text.upper()) for text in SOURCES]


def test_an_answer_has_a_seed_of_its_own_and_ends_before_a_stop_string(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw is that of the record's place, not of its place in a batch; what ends an answer is no part of it."""
    model = tiny("t5:tiny", "seq2seq").eval()
    drawn = {"temperature": 1.5, "max_new_tokens": 6, "seed": 4}
    (first, *_) = wanted = [each.answer for each in answer(model, DOCUMENTS, **drawn)[0]]
    assert len(set(wanted)) > 1
    monkeypatch.setattr(answering, "SIDE_BY_SIDE", 2)
    assert [each.answer for each in answer(model, DOCUMENTS, **drawn)[0]] == wanted
    stop = first[2:4]
    stopped = [each.answer for each in answer(model, DOCUMENTS, stop=stop, **drawn)[0]]
    assert stopped == [text.partition(stop)[0].strip() for text in wanted] and stopped != wanted


def test_a_decoder_answers_behind_a_line_break(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was trained: the source, a line break, and then its answer; pairs that are too long are counted."""
    model = tiny("llama:tiny", "seq2seq").eval()
    assert model.tokenizer is not None
    monkeypatch.setattr(answering, "SIDE_BY_SIDE", 2)
    found, left_out = answer(model, DOCUMENTS, length=30, max_new_tokens=5)
    bos = [model.tokenizer.bos] if model.tokenizer.bos is not None else []
    import torch

    for each, text in zip(found, SOURCES):
        prompt = torch.tensor([bos + model.tokenizer.encode(f"{text}\n", special=False)])
        assert each.answer == model.tokenizer.decode(model.generate(prompt, max_new_tokens=5)[0].tolist()).strip()
    assert (len(found), left_out) == (3, 1)


def test_scores_are_those_of_sacrebleus_command_line(tmp_path: Path) -> None:
    """BLEU and chrF to every digit that it prints."""
    pytest.importorskip("sacrebleu", reason="the extra `eval` is not installed")
    targets = ["The cat sat on the mat.", "A second sentence, with 3.5% more.", "Das ist »gut«, nicht wahr?", "one two"]
    answers = ["The cat sat on a mat.", "A second sentence with 3.5 % more", "Das ist gut, wahr?", "one two three"]
    (tmp_path / "targets").write_text("\n".join(targets) + "\n", encoding="utf-8")
    (tmp_path / "answers").write_text("\n".join(answers) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "targets", "-i", "answers", "-m", "bleu", "chrf", "-w", "9"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    wanted = {each["name"].lower()[:4]: each for each in json.loads(ran.stdout)}
    found = scores([Answered("", target, said) for target, said in zip(targets, answers)])
    assert found["bleu"] == pytest.approx(wanted["bleu"]["score"], abs=1e-8)
    assert found["chrf"] == pytest.approx(wanted["chrf"]["score"], abs=1e-8)
    assert "tok:13a" in found["bleu_signature"] and "nc:6" in found["chrf_signature"]


def test_what_is_not_installed_is_named() -> None:
    """With what to install."""
    with pytest.raises(InputError, match=r"this needs no-such-thing, .* pip install 'anyformer\[eval\]'"):
        needed("no_such_thing.metrics")
