"""Bytes and seconds of serving, worked out by hand."""

from __future__ import annotations

import pytest

from anyformer import families, planning
from anyformer.planning.devices import DEVICES
from anyformer.planning.pieces import MASK, PIECE_BYTES, piece
from anyformer.planning.serving import READING, Load, serving_memory, serving_time

H100 = DEVICES["h100"]
LLAMA = families.llama("135m")


def test_weights_and_cache_are_those_counted() -> None:
    """One set of weights; a cache for every sequence; an encoder keeps none."""
    memory = serving_memory(LLAMA, Load(4096, 3, "float32"))
    assert memory["weights"] == 4 * planning.count(LLAMA)
    assert memory["cache"] == 3 * planning.kv_bytes(LLAMA, 4096, dtype="float32")
    assert "cache" not in serving_memory(families.bert("base"), Load(512))


def test_what_prompts_take_on_their_way() -> None:
    """It grows with the sequences up to a piece, several of which have a mask, and beyond one with the context only by
    that; the logits of a masked language model are of every token."""

    def working(load: Load) -> int:
        return serving_memory(LLAMA, load)["working"]

    assert working(Load(512, 4)) == 2 * working(Load(512, 2)) == 4 * (working(Load(512, 1)) + MASK * 512 * 512)
    longer = working(Load(8192)) - working(Load(4096))
    assert piece(LLAMA, 1, 8192) == piece(LLAMA, 1, 4096)
    assert longer == MASK * piece(LLAMA, 1, 4096) * 4096
    assert working(Load(131072, 2)) < PIECE_BYTES, "prompts are read in pieces of bounded memory"
    bert = families.bert("base")
    assert serving_memory(bert, Load(512, 8, "float32"))["working"] == 8 * 512 * 30522 * 4


def test_one_sequence_is_read_from_memory() -> None:
    """Alone, a token takes as long as reading all weights but the table of inputs, and the cache."""
    time = serving_time(LLAMA, Load(1024), H100, attained=0.4)
    read = 2 * sum(planning.parameters(LLAMA).parts[part] for part in ("attention", "feed_forward"))
    read += 2 * LLAMA.output.dim * LLAMA.output.embeddings.vocabulary + planning.kv_bytes(LLAMA, 1024)
    assert time.per_token == pytest.approx(read / (READING * H100.bandwidth), rel=1e-3)
    assert time.tokens_per_second == pytest.approx(1 / time.per_token)
    flops = sum(planning.forward_flops(LLAMA, 1024).values())
    assert time.prefill == pytest.approx(flops / (0.4 * H100.flops))


def test_many_sequences_are_computed() -> None:
    """With enough of them products take longer than reading the weights, and each more costs what the first did."""
    few, many = (serving_time(LLAMA, Load(16, batch), H100, attained=0.01) for batch in (1024, 2048))
    assert many.per_token == pytest.approx(2 * few.per_token)


def test_experts_are_read_as_tokens_meet_them() -> None:
    """One token reads two of Mixtral's eight experts; with many sequences all are read."""
    mixtral = families.mixtral("8x7b")
    counted = planning.parameters(mixtral)
    alone = serving_time(mixtral, Load(1), H100, attained=0.4).per_token
    met = counted.active - counted.embedding - counted.parts["norms"]
    assert alone == pytest.approx(2 * met / (READING * H100.bandwidth), rel=1e-3)
    crowd = serving_time(mixtral, Load(1, 64), H100, attained=0.4).per_token
    assert crowd == pytest.approx(2 * (counted.total - counted.embedding) / (READING * H100.bandwidth), rel=0.01)
