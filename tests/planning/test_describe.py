"""The drawing of a model says what its spec says, and its figures are the counts."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from anyformer import families, planning, spec
from anyformer.planning.describe import scaled
from anyformer.spec import mixers

RMS = spec.Norm(kind="rms")
LAYER = spec.Norm(kind="layer", bias=True)


def attention(**more: object) -> spec.Attention:
    return spec.Attention.from_data({"heads": 4, "kv_heads": 4, "head_dim": 8, "visibility": "causal", **more})


def block(*branches: spec.Branch, **more: object) -> spec.Block:
    return spec.Block.from_data({"branches": branches, **more})


def plain(mixer: spec.Mixer | None = None, placement: str = "pre", norm: spec.Norm | str | None = RMS) -> spec.Branch:
    return spec.Branch.from_data({"mixer": mixer or attention(), "norm": norm, "placement": placement})


def decoder(*pattern: spec.Block, depth: int = 1, **more: object) -> spec.Transformer:
    embeddings = spec.Embeddings(vocabulary=100)
    stack = spec.Stack(dim=32, depth=depth, pattern=pattern, embeddings=embeddings, norm=RMS)
    return spec.Transformer.from_data({"decoder": stack, "head": spec.LanguageModelHead(tied=True), **more})


FEED_FORWARD = spec.FeedForward(hidden=64, activation="silu", gated=True)


@pytest.mark.parametrize(
    ("placement", "formula"),
    [
        ("pre", "x + attention(norm(x))"),
        ("post", "norm(x + attention(x))"),
        ("output", "x + norm(attention(x))"),
        ("both", "x + norm'(attention(norm(x)))"),
    ],
)
def test_placements_are_drawn_as_formulas(placement: str, formula: str) -> None:
    """Each placement of a norm shows as the formula of its branch."""
    assert f" {formula} " in planning.describe(decoder(block(plain(placement=placement))))


def test_parallel_branches_are_drawn_as_one_sum() -> None:
    """Branches that read the same x stand in one formula; a shared norm is said to be shared."""
    drawn = planning.describe(decoder(block(plain(norm=LAYER), plain(FEED_FORWARD, norm="shared"), parallel=True)))
    assert "x + attention(norm(x)) + feed_forward(norm(x))" in drawn
    assert "the branch's before" in drawn


def test_alternating_layers_are_folded() -> None:
    """A pattern that repeats is drawn once, with how often each kind takes its turn and how many there are."""
    local, full = block(plain(attention(window=(8, None))), repeat=5), block(plain())
    drawn = planning.describe(decoder(local, full, depth=26))
    assert "layers 0-25, in turn 5 × local, 1 × global" in drawn
    assert "local: 22 × " in drawn and "global: 4 × " in drawn
    assert "window of 8 back" in drawn


def test_stretches_of_layers_are_drawn_one_after_the_other() -> None:
    """A pattern that does not repeat is drawn as its stretches, named by what tells them apart."""
    experts = spec.MixtureOfExperts(experts=4, top_k=2, hidden=16)
    dense, mixture = block(plain(), plain(FEED_FORWARD), repeat=2), block(plain(), plain(experts), repeat=3)
    drawn = planning.describe(decoder(dense, mixture, depth=5))
    assert "dense, layers 0-1: 2 × " in drawn and "experts, layers 2-4: 3 × " in drawn
    assert "the best 2 of 4 experts" in drawn and "4 × (32 → 16)" in drawn


def test_kinds_that_nothing_names_get_letters() -> None:
    """Blocks that differ in something without a name of its own are told apart by letters."""
    first, second = block(plain(attention(scale=0.5))), block(plain(attention(scale=0.25)))
    drawn = planning.describe(decoder(first, second, depth=3))
    assert "A, layers 0, 2: 2 × " in drawn and "B, layers 1: 1 × " in drawn


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kv_heads": 2}, "2 key/value heads (grouped-query)"),
        ({"kv_heads": 1}, "one key/value head for all (multi-query)"),
        ({"visibility": "full"}, "sees both ways"),
        ({"visibility": "full", "window": (3, 4)}, "window of 3 back and 4 ahead"),
        ({"position": {"kind": "rotary", "base": 500000, "dim": 4}}, "rotary, base 500,000"),
        ({"position": {"kind": "rotary", "dim": 4}}, "4 of 8 channels turn"),
        ({"position": {"kind": "alibi"}}, "ALiBi"),
        ({"position": {"kind": "relative_buckets", "bidirectional": True}}, "32 buckets up to 128, both ways"),
        ({"soft_cap": 50}, "scores capped at 50"),
        ({"sinks": True}, "a learned sink a head"),
        ({"query_key_norm": RMS}, "rms norm of queries and keys over each head"),
    ],
)
def test_attention_says_what_is_special_about_it(given: dict, said: str) -> None:
    """Whatever attention has beyond the plain form is said in the drawing, and not in that of the plain form."""
    assert said in planning.describe(decoder(block(plain(attention(**given)))))
    assert said not in planning.describe(decoder(block(plain())))


@pytest.mark.parametrize("reference", ["llama:135m", "bert:base", "t5:small", "roberta:base"])
def test_lines_add_up(reference: str) -> None:
    """The stacks and the head add up to the total, a stack's children to the stack: none is left out or shown twice."""
    described = families.preset(reference)
    assert described is not None
    lines = planning.describe(described).splitlines()
    top = [int(match[2].replace(",", "")) for line in lines if (match := re.match(r"(\w+: .*?)  +([\d,]+)$", line))]
    assert sum(top) == planning.count(described)
    children = [int(match[1].replace(",", "")) for line in lines if (match := re.match(r"[├└]─ .*?  +([\d,]+)$", line))]
    assert sum(children) == sum(top[:-1])


@pytest.mark.parametrize("reference", ["llama:8b", "bert:base", "t5:11b"])
def test_drawings_are_aligned_and_fit_a_terminal(reference: str) -> None:
    """Numbers end in one column, and no line of the tree is wider than 80."""
    described = families.preset(reference)
    assert described is not None
    tree = planning.describe(described).split("\n\nparameters")[0].splitlines()
    assert max(len(line) for line in tree) <= 80
    assert len({len(line) for line in tree if re.search(r"  [\d,]+$", line)}) == 1


def test_an_encoder_decoder_shows_both_sides() -> None:
    """Both stacks are drawn, cross-attention with what it reads, and the table they share is counted once."""
    drawn = planning.describe(families.preset("t5:small") or pytest.fail("no t5:small"))
    assert "source ids → encoder" in drawn and "target ids → decoder" in drawn
    assert "x + cross_attention(norm(x))" in drawn and "sees the encoder's output" in drawn
    assert "32,128 × 512, the encoder's table" in drawn


def test_a_familys_own_mixer_is_drawn_by_its_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind of mixer that this room has never heard of shows its kind, its fields and its shapes."""

    class Gate(spec.Mixer, frozen=True):
        kind: str = "test_gate"
        rank: int
        role = "gate"

        def shapes(self, dim: int, source_dim: int | None = None) -> dict[str, tuple[int, ...]]:
            return {"down.weight": (self.rank, dim), "up.weight": (dim, self.rank)}

    monkeypatch.setitem(mixers._MIXERS, "test_gate", Gate)
    drawn = planning.describe(decoder(block(plain(Gate(rank=3)))))
    assert "x + gate(norm(x))" in drawn and "test_gate · rank 3" in drawn and "32 → 3" in drawn


def test_summary_is_json_with_the_names_that_plans_use() -> None:
    """The summary of SmolLM2-135M, worked out by hand: 30 layers, 3 key/value heads of 64, two bytes a number."""
    facts = json.loads(json.dumps(planning.summary(families.llama("135m"), context=100)))
    assert facts["parameters"]["total"] == 134_515_008
    assert facts["parameters"]["embedding"] == 49152 * 576
    assert facts["kv_bytes_per_token"] == 30 * 2 * 3 * 64 * 2
    assert facts["kv_bytes"] == 100 * facts["kv_bytes_per_token"]
    matrices = 134_515_008 - 61 * 576  # all but the norms; the table is the head's matrix
    scores = 30 * 4 * 576 * (100 + 1) / 2  # four FLOPs for each channel and pair; half of the pairs
    assert facts["flops"]["forward_per_token"] == 2 * matrices + scores
    assert facts["flops"]["decode_per_token"] == 2 * matrices + 30 * 4 * 576 * 100
    assert sum(facts["flops"]["parts"].values()) == facts["flops"]["forward_per_token"]


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (269_030_016, "269 MB")]
)
def test_scaled(number: int, text: str) -> None:
    """Numbers are shown to three digits with the prefix that fits."""
    assert scaled(number, "B") == text


def test_planning_imports_no_torch() -> None:
    """Describing a preset waits neither for torch nor for numpy."""
    code = "import sys, anyformer as af; af.planning.describe(af.families.llama('8b')); print(sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'anyformer.planning'" in modules and "'torch'" not in modules and "'numpy'" not in modules
