"""anyformer evaluate reports what `inspection.evaluation` measures, over files in people's encodings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from objectives import tiny

from anyformer.checkpoints import Carried
from anyformer.data import Document
from anyformer.inspection.evaluation import evaluate
from anyformer.inspection.evaluation.answering import Answered, scores
from anyformer.inspection.evaluation.classification import classify
from anyformer.model import load

TEXT = "The naïve reader reads on.\n" * 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "one.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "one.txt"


def test_figures_are_the_measured_ones(anyformer: Callable, talker: Path, file: Path) -> None:
    """Loss, perplexity, bits per byte, tokens and bytes are those of `evaluate`, with the window and stride given."""
    measured = evaluate(load(talker), TEXT, window=64, stride=16)
    said = json.loads(anyformer("evaluate", talker, file, "--window", 64, "--stride", 16, "--json").out)
    assert said["files"][str(file)]["loss"] == said["loss"] == pytest.approx(measured.loss)
    assert said["perplexity"] == pytest.approx(math.exp(measured.loss))
    assert said["bits_per_byte"] == pytest.approx(measured.bits_per_byte)
    assert (said["tokens"], said["bytes"]) == (measured.tokens, len(TEXT.encode()))


def test_several_files_and_all_of_them(anyformer: Callable, talker: Path, file: Path) -> None:
    """Each file has its figures, and all together: the mean over tokens, not over files."""
    (file.parent / "two.txt").write_text("short", encoding="utf-8")
    said = json.loads(anyformer("evaluate", talker, file.parent, "--json").out)
    files = said["files"].values()
    assert [each["tokens"] for each in files] == [len(TEXT.encode()), 5]
    assert said["loss"] == pytest.approx(sum(each["loss"] * each["tokens"] for each in files) / said["tokens"])
    table = anyformer("evaluate", talker, file.parent).out
    assert f"{said['bits_per_byte']:.4f}" in table and "two.txt" in table and "all" in table


def test_records_and_columns(anyformer: Callable, talker: Path, tmp_path: Path) -> None:
    """Records of a file count together, under the name that --column gives their text; --limit takes the first,
    --last the last."""
    rows = [{"content": TEXT[:70]}, {"content": "another"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = ("evaluate", talker, tmp_path / "rows.jsonl", "--column", "text=content", "--json")
    model = load(talker)
    measured = [evaluate(model, row["content"]) for row in rows]
    said = json.loads(anyformer(*asked).out)
    assert said["objective"] == "causal" and list(said["files"]) == [str(tmp_path / "rows.jsonl")]
    assert said["loss"] == pytest.approx((measured[0] + measured[1]).loss)
    assert json.loads(anyformer(*asked, "--limit", 1).out)["loss"] == pytest.approx(measured[0].loss)
    assert json.loads(anyformer(*asked, "--last", 1).out)["loss"] == pytest.approx(measured[1].loss)
    assert anyformer(*asked, "--last", 1, "--limit", 1).code == 2
    refused = anyformer("evaluate", talker, tmp_path / "rows.jsonl", "--column", "text")
    assert refused.code == 2 and "--column text does not say what is called what" in refused.err


def saved(directory: Path, preset: str, objective: str, **carried: object) -> Path:
    """A checkpoint that can carry an objective."""
    model = tiny(preset, objective, labels=3)
    model.family = preset.partition(":")[0]
    model.carried = Carried(attributes=dict(carried))
    model.generation |= {"eos_token_id": 256}
    model.save(directory)
    return directory


def test_labels(anyformer: Callable, tmp_path: Path) -> None:
    """Of a model whose head names labels: accuracy and F1, of each label too, as a table and as JSON."""
    names = {str(index): name for index, name in enumerate(["bad", "good", "so-so"])}
    model = saved(tmp_path / "model", "bert:tiny", "classify", id2label=names)
    rows = [{"text": f"text {index}", "label": names[str(index % 3)]} for index in range(7)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    said = json.loads(anyformer("evaluate", model, tmp_path / "rows.jsonl", "--json").out)
    found = classify(load(model), [Document("", row["text"], fields=row) for row in rows])
    assert (said["objective"], said["accuracy"]) == ("classify", pytest.approx(found.accuracy))
    assert said["macro_f1"] == pytest.approx(found.macro_f1) and said["labels"]["good"]["count"] == 2
    table = anyformer("evaluate", model, tmp_path / "rows.jsonl").out
    assert "so-so" in table and f"{said['accuracy']:.4f}" in table


def test_pairs(anyformer: Callable, tmp_path: Path) -> None:
    """Of an encoder-decoder on pairs: loss, BLEU, chrF and samples of the answers, as --beams finds them."""
    pytest.importorskip("sacrebleu", reason="the extra `eval` is not installed")
    model = saved(tmp_path / "model", "t5:tiny", "seq2seq")
    rows = [("eins", "one"), ("zwei Katzen", "two cats"), ("drei", "three")]
    (tmp_path / "rows.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in rows), encoding="utf-8")
    how = ("--beams", 2, "--max-new-tokens", 5)
    asked = ("evaluate", model, tmp_path / "rows.tsv", *how, "--samples", 2)
    said = json.loads(anyformer(*asked, "--json").out)
    answers = load(model).generate([source for source, _ in rows], beams=2, max_new_tokens=5)
    assert [each["answer"] for each in said["samples"]] == [each.strip() for each in answers[:2]]
    wanted = scores([Answered(source, target, each) for (source, target), each in zip(rows, answers)])
    assert {name: said[name] for name in wanted} == pytest.approx(wanted)
    assert said["objective"] == "seq2seq" and said["examples"] == 3
    drawing = ("--temperature", 1.5, "--no-repeat-ngram", 1, "--min-new-tokens", 4, "--seed", 3)
    said = json.loads(anyformer("evaluate", model, tmp_path / "rows.tsv", *drawing, "-n", 5, "--json").out)
    drawn = {"temperature": 1.5, "no_repeat_ngram": 1, "min_new_tokens": 4, "seed": 3, "max_new_tokens": 5}
    answers = load(model).generate([source for source, _ in rows], **drawn)
    assert [each["answer"] for each in said["samples"]] == [each.strip() for each in answers]
    written = anyformer(*asked).out
    assert "BLEU" in written and "wanted  two cats" in written and "three" not in written


def test_settings_of_answers_where_none_are_given(anyformer: Callable, talker: Path, file: Path) -> None:
    """Refused by name: of texts, and for tasks that say themselves how they are answered."""
    ran = anyformer("evaluate", talker, file, "--beams", 4, "--no-repeat-ngram", 3)
    sentence = "objective 'causal' asks for no answers that could be generated: leave out beams, no_repeat_ngram\n"
    assert (ran.code, ran.err) == (2, f"anyformer: {sentence}")
    ran = anyformer("evaluate", talker, "--tasks", "arc_easy", "--beams", 4)
    assert ran.code == 2 and "tasks of lm-eval say themselves how they are answered: leave out beams" in ran.err


def test_hidden_tokens(anyformer: Callable, tmp_path: Path, file: Path) -> None:
    """Of a masked language model on texts: loss and accuracy, the same for the same seed; what there is not is said."""
    model = saved(tmp_path / "model", "bert:tiny", "masked")
    said = [json.loads(anyformer("evaluate", model, file, "--json", "--seed", seed).out) for seed in (0, 0, 1)]
    assert said[0] == said[1] != said[2]
    assert said[0]["objective"] == "masked" and 0 <= said[0]["accuracy"] <= 1
    refused = anyformer("evaluate", model, file, "--objective", "guessing")
    assert refused.code == 2 and "there is no objective 'guessing'; there are causal, prefix, masked" in refused.err
    refused = anyformer("evaluate", model)
    assert refused.code == 2 and "name data to evaluate on, or tasks of lm-eval with --tasks" in refused.err


def test_encodings(anyformer: Callable, talker: Path, file: Path) -> None:
    """A file that is not UTF-8 is refused with its name and the byte, and read with --encoding; its bytes count as
    UTF-8, whatever the file's encoding."""
    file.write_text(TEXT, encoding="latin-1")
    refused = anyformer("evaluate", talker, file)
    assert refused.code == 2 and str(file) in refused.err and "offset 6" in refused.err and "--encoding" in refused.err
    said = json.loads(anyformer("evaluate", talker, file, "--encoding", "latin-1", "--json").out)
    assert said["bytes"] == len(TEXT.encode("utf-8"))


def test_windows_that_do_not_fit(anyformer: Callable, talker: Path, file: Path) -> None:
    """A stride beyond the window is refused in a sentence."""
    ran = anyformer("evaluate", talker, file, "--window", 8, "--stride", 9)
    assert ran.code == 2 and "stride of 9 does not fit a window of 8" in ran.err


def test_a_real_model_finds_english_likely(anyformer: Callable, smollm2: Path, tmp_path: Path) -> None:
    """SmolLM2 needs under two bits a byte for plain English, where bytes drawn evenly need eight."""
    (tmp_path / "english.txt").write_text(
        "The sun rises in the east and sets in the west. Every morning the farmer gets up early to feed the animals, "
        "and in the evening he goes back to his house, where his wife has prepared dinner for the family.\n",
        encoding="utf-8",
    )
    assert json.loads(anyformer("evaluate", smollm2, tmp_path, "--json").out)["bits_per_byte"] < 2


def test_quantised_and_not(anyformer: Callable, talker: Path, file: Path) -> None:
    """--quantize measures the model before and after: both losses, and the bytes of both, which are those of the
    weights."""
    said = json.loads(anyformer("evaluate", talker, file, "--quantize", "int8", "--json").out)
    plain = json.loads(anyformer("evaluate", talker, file, "--json").out)
    assert said["unquantized"]["loss"] == plain["loss"] and said["unquantized"]["weights"] == plain["weights"]
    assert said["loss"] != plain["loss"] and said["loss"] == pytest.approx(plain["loss"], abs=0.05)
    assert said["weights"] < 0.4 * plain["weights"]
    assert plain["weights"] == sum(parameter.nbytes for parameter in load(talker).parameters())
    printed = anyformer("evaluate", talker, file, "--quantize", "int8").out
    assert f"{said['loss']:.4f}" in printed and f"{plain['loss']:.4f}" in printed and "in Q8_0" in printed
