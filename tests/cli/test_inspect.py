"""anyformer inspect draws presets and checkpoints alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from anyformer import checkpoints, families, planning


def test_a_preset(anyformer: Callable) -> None:
    """A preset's drawing is `planning.describe`'s, at the context asked for."""
    described = families.preset("llama:8b")
    assert described is not None
    ran = anyformer("inspect", "llama:8b", "--context", 4096)
    assert ran.code == 0 and ran.out.startswith(planning.describe(described, 4096))
    assert "4,096 tokens" in ran.out and "a preset" in ran.out


def test_a_checkpoint(anyformer: Callable, talker: Path) -> None:
    """A directory's drawing says what it came from, its tokenizer, and counts bytes in the file's own type."""
    ran = anyformer("inspect", talker)
    assert ran.out.startswith(planning.describe(checkpoints.open(talker).spec, dtype="float32"))
    assert "family llama" in ran.out and "257 tokens, with a chat template" in ran.out


def test_what_is_passed_over(anyformer: Callable, talker: Path, tmp_path: Path) -> None:
    """The drawing names what a family ignores of a config, and not what every config says that is nothing of the model;
    --json has all, with reasons."""
    copied = shutil.copytree(talker, tmp_path / "copied")
    config = json.loads((copied / "config.json").read_text())
    said = {**config, "attn_implementation": "eager", "is_llama_config": True}
    (copied / "config.json").write_text(json.dumps(said))
    assert "passed over    is_llama_config (--json says why)\n" in anyformer("inspect", copied).out
    told = json.loads(anyformer("inspect", copied, "--json").out)["origin"]["passed_over"]
    assert told["attn_implementation"] == "which kernel computes it" and "converter" in told["is_llama_config"]
    assert "passed over" not in anyformer("inspect", talker).out


def test_json(anyformer: Callable, talker: Path) -> None:
    """--json holds the counts by their names, the spec, and what the files say besides."""
    facts = json.loads(anyformer("inspect", talker, "--json", "--context", 10, "--dtype", "bfloat16").out)
    described = checkpoints.open(talker).spec
    assert facts["parameters"]["total"] == planning.count(described)
    assert facts["kv_bytes"] == planning.kv_bytes(described, 10, dtype="bfloat16")
    assert facts["flops"]["forward_per_token"] > 0
    assert facts["spec"] == described.model_dump(mode="json")
    assert facts["origin"]["family"] == "llama" and facts["origin"]["chat_template"]


def test_a_gguf_file(anyformer: Callable, smollm2: Path) -> None:
    """SmolLM2's file is the preset of its size: 134,515,008 parameters, three key/value heads."""
    out = anyformer("inspect", smollm2).out
    assert "134,515,008" in out and "3 key/value heads (grouped-query)" in out and "with a chat template" in out


def test_a_look_inside(anyformer: Callable, talker: Path, tmp_path: Path) -> None:
    """A row a layer, the heads' habits, and the page; as JSON, all of it, and the last row is what generate says."""
    page = tmp_path / "page.html"
    ran = anyformer("inspect", talker, "--text", "hello there", "--out", page)
    assert ran.code == 0 and all(f"layer {index}" in ran.out for index in (0, 1)) and "induction" in ran.out
    assert page.read_text(encoding="utf-8").startswith("\n<!doctype html>") or "<!doctype html>" in page.read_text()
    facts = json.loads(anyformer("inspect", talker, "--text", "hello there", "--out", page, "--json").out)
    (position,) = facts["lens"]["positions"]
    said = anyformer("generate", talker, "hello there", "-n", 1, "--temperature", 0).out
    assert facts["lens"]["answers"][-1][position][0] == said.removeprefix("hello there").rstrip("\n")
    assert set(facts["heads"]) >= {"previous", "first", "entropy", "induction"} and facts["page"] == str(page)


def test_what_cannot_be_looked_at(anyformer: Callable, talker: Path, tmp_path: Path) -> None:
    """One sentence, and no page."""
    for given, said in (
        (("--out", tmp_path / "p.html"), "--target and --out belong to --text"),
        (("--text", "a", "--out", tmp_path), "no page can be written to"),
        (("--text", "a", "--out", tmp_path / "none" / "p.html"), "no page can be written to"),
        (("--text", "a" * 5000, "--out", tmp_path / "p.html"), "the text is 5,000 tokens, and the model's context is"),
        (("--text", "", "--out", tmp_path / "p.html"), "the text is empty"),
        (("--text", "a", "--target", "b", "--out", tmp_path / "p.html"), "a target is what an encoder-decoder writes"),
    ):
        ran = anyformer("inspect", talker, *given)
        assert ran.code == 2 and said in ran.err and not ran.out
    assert not list(tmp_path.iterdir())
