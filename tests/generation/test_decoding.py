"""The decoding loop: what it yields is what a loop without a cache would."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import odd as odd_families
import pytest
import torch
from odd_specs import odd_model
from torch import Tensor

from anyformer import families, spec
from anyformer.errors import InputError
from anyformer.generation import Prompts, Settings, decoding, left_padded, steps
from anyformer.model import Transformer, build, load
from anyformer.text import byte_level

VOCABULARY = 37
#: What a row may be asked for beside being likely.
ASKED: list[dict[str, Any]] = [
    {"encoder_no_repeat_ngram": 1, "suppress": (3, 9), "eos": (4, 5)},
    {"encoder_no_repeat_ngram": 2, "begin_suppress": tuple(range(20)), "exponential_decay": (2, 3.0), "eos": (4, 5)},
    {"forced_bos": 7, "begin_suppress": tuple(range(20)), "exponential_decay": (1, 1.5), "eos": (4, 5)},
]
#: Every way of choosing that can be asked for it.
WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 2.0},
    {"beams": 3, "answers": 2},
    {"penalty_alpha": 0.5, "top_k": 4},
    {"prompt_lookup": 3},
]


def odd(seed: int, shape: str = "decoder") -> Transformer:
    """A random model in float64, in evaluation mode."""
    return build(odd_model(random.Random(f"{seed} {shape}"), shape), dtype=torch.float64, seed=seed).eval()


def without_cache(
    model: Transformer, prompt: list[int], most: int, source: Tensor | None = None, eos: int = -1
) -> list[int]:
    """The definition of greedy: read everything again for every token."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) - len(prompt) < most:
            logits = model(torch.tensor([ids]), source=source).logits[0, -1]
            ids.append(int(logits.argmax()))
            if ids[-1] == eos:
                break
    return ids[len(prompt) :]


def prompts(seed: int, count: int, longest: int = 9) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(VOCABULARY) for _ in range(draw.randint(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("part", range(2))
def test_greedy_is_a_loop_of_argmax_without_a_cache(part: int) -> None:
    """20 random models, ragged batches: each row is what its prompt alone gives without any cache, and after the end
    there is padding."""
    for seed in range(part * 10, part * 10 + 10):
        model, rows = odd(seed), prompts(seed, 3)
        alone = [without_cache(model, row, 12) for row in rows]
        ids, valid = left_padded(rows, 0, "cpu")
        assert model.generate(ids, valid=valid, max_new_tokens=12).tolist() == alone
        # An end that some rows reach and others do not.
        eos = alone[0][4]
        ended = [without_cache(model, row, 12, eos=eos) for row in rows]
        longest = max(map(len, ended))
        found = model.generate(ids, valid=valid, max_new_tokens=12, eos=eos, pad=36).tolist()
        assert found == [row + [36] * (longest - len(row)) for row in ended]


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_experts_are_chosen_for_a_token_whatever_stands_beside_it(name: str) -> None:
    """Mixtures in a ragged batch, on the cache: what each row says alone without any, guessed ahead by a draft or by
    lookup too; and searched, or from a cache in 8 bits, what it says alone."""
    model = build(getattr(families, name)("tiny", vocab_size=VOCABULARY), dtype=torch.float64, seed=1).eval()
    draft = build(families.llama("tiny", vocab_size=VOCABULARY), dtype=torch.float64, seed=2).eval()  # type: ignore[attr-defined]
    with torch.no_grad():
        for each in model.parameters():
            each *= 3  # so that experts and tokens are far from ties
    rows = [[5], *prompts(3, 2, longest=14)]
    ids, valid = left_padded(rows, 0, "cpu")
    wanted = [without_cache(model, row, 10) for row in rows]
    assert len(set(wanted[0])) > 2
    for how in ({}, {"prompt_lookup": 4}, {"draft": draft}, {"draft": model}):
        assert model.generate(ids, valid=valid, max_new_tokens=10, **how).tolist() == wanted, [*how]
    for how in ({"beams": 3}, {"quantize_cache": "int8"}, {"quantize_cache": "int8", "prompt_lookup": 4}):
        alone = [model.generate(torch.tensor([row]), max_new_tokens=10, **how)[0].tolist() for row in rows]
        assert model.generate(ids, valid=valid, max_new_tokens=10, **how).tolist() == alone, how


def test_an_encoder_decoder_answers_its_source() -> None:
    """Greedy from the start token, over sources of different lengths padded on either side."""
    for seed in range(8):
        model, rows = odd(seed, "encoder-decoder"), prompts(seed, 3)
        alone = [without_cache(model, [5], 8, torch.tensor([row])) for row in rows]
        ids, valid = left_padded(rows, 0, "cpu")
        assert model.generate(ids, valid=valid, max_new_tokens=8, start=5).tolist() == alone
        if valid is not None:
            assert model.generate(ids.flip(1), valid=valid.flip(1), max_new_tokens=8, start=5).tolist() == [
                without_cache(model, [5], 8, torch.tensor([row[::-1]])) for row in rows
            ]


@pytest.mark.parametrize("where", ["right", "holes"])
def test_padding_may_stand_anywhere(where: str) -> None:
    """What follows a row is what follows its last real token."""
    for seed in range(5):
        model, rows = odd(seed), prompts(seed, 3)
        longest = max(map(len, rows)) + 2
        ids = torch.full((3, longest), 9)
        valid = torch.zeros(3, longest, dtype=torch.bool)
        for index, row in enumerate(rows):
            slots = (
                range(len(row)) if where == "right" else sorted(random.Random(seed).sample(range(longest), len(row)))
            )
            ids[index, list(slots)], valid[index, list(slots)] = torch.tensor(row), True
        alone = [without_cache(model, row, 6) for row in rows]
        assert model.generate(ids, valid=valid, max_new_tokens=6).tolist() == alone


def test_padding_is_never_penalised() -> None:
    """A repetition penalty counts what a row said: ragged rows give what they give alone, the padding's id included."""
    for seed in range(6):
        model, rows = odd(seed), prompts(seed, 3)
        how = {"repetition_penalty": 3.0, "max_new_tokens": 10}
        alone = [model.generate(torch.tensor([row]), **how)[0].tolist() for row in rows]
        for pad in (alone[0][0], alone[1][0]):
            ids, valid = left_padded(rows, pad, "cpu")
            assert model.generate(ids, valid=valid, **how).tolist() == alone


def test_a_prompt_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of the pieces changes nothing, with padding that fills whole pieces of a row too."""
    model, rows = odd(1), [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [12, 13]]
    ids, valid = left_padded(rows, 0, "cpu")
    wanted = model.generate(ids, valid=valid, max_new_tokens=5)
    for size in (1, 2, 4, 11):
        monkeypatch.setattr("anyformer.planning.pieces.MOST", size)
        assert torch.equal(model.generate(ids, valid=valid, max_new_tokens=5), wanted)
        both = odd(1, "encoder-decoder")
        found = list(steps(both, Prompts(torch.tensor([[5, 6, 7]]), source=ids[:1]), Settings(max_new_tokens=4)))
        assert [int(step) for step in found] == without_cache(both, [5, 6, 7], 4, ids[:1])


def test_a_prompt_that_is_seen_both_ways_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """With prefix visibility all of a prompt is the prefix, however long, of whatever stands beside it."""
    attention = spec.Attention(heads=2, kv_heads=1, head_dim=4, visibility="prefix", position=spec.Rotary())
    feed_forward = spec.FeedForward(hidden=16, activation="silu", gated=True)
    norm = spec.Norm(kind="rms")
    block = spec.Block(branches=tuple(spec.Branch(mixer=mixer, norm=norm) for mixer in (attention, feed_forward)))
    stack = spec.Stack(dim=8, depth=2, pattern=(block,), embeddings=spec.Embeddings(vocabulary=VOCABULARY), norm=norm)
    described = spec.Transformer(decoder=stack, head=spec.LanguageModelHead())
    model = build(described, dtype=torch.float64, seed=3).eval()
    monkeypatch.setattr("anyformer.planning.pieces.MOST", 4)
    ids, valid = left_padded([list(range(1, 12)), [12, 13, 14, 15, 16]], 0, "cpu")
    assert valid is not None
    with torch.no_grad():
        logits = decoding.read(model, Prompts(ids, valid), model.new_cache(2))
        for row, real, found in zip(ids, valid, logits):
            alone = model(row[real][None], prefix=real.sum()[None]).logits[0, -1]
            torch.testing.assert_close(found, alone)


def test_a_conversation_goes_on_where_it_stopped() -> None:
    """With its cache, the next prompt is the last id that was yielded and what is new; and the cache is of use outside
    of generation, too."""
    model = odd(2)
    cache = model.new_cache(1)
    four = Settings(max_new_tokens=4)
    first = [int(step) for step in steps(model, Prompts(torch.tensor([[1, 2, 3]])), four, cache=cache)]
    said = [1, 2, 3, *first]
    then = [first[-1], 7, 8]
    second = [int(step) for step in steps(model, Prompts(torch.tensor([then])), four, cache=cache)]
    assert second == without_cache(model, [*said, 7, 8], 4)
    out = model(torch.tensor([[second[-1]]]), cache=cache).logits
    assert int(out[0, -1].argmax()) == without_cache(model, [*said, 7, 8, *second], 1)[0]


def limited(size: int, eos: int | None = None) -> Transformer:
    """A decoder that has learned `size` positions."""
    attention = spec.Attention(heads=2, kv_heads=2, head_dim=4, visibility="causal")
    block = spec.Block(branches=(spec.Branch(mixer=attention, norm=spec.Norm(kind="rms")),))
    embeddings = spec.Embeddings(vocabulary=257, position=spec.Learned(size=size))
    stack = spec.Stack(dim=8, depth=1, pattern=(block,), embeddings=embeddings)
    how = spec.Initialization(std=0.5)
    return build(spec.Transformer(decoder=stack, head=spec.LanguageModelHead(), initialization=how), seed=0).eval()


def test_learned_positions_end_the_text() -> None:
    """The last position still predicts one token more; a prompt that is too long is refused before anything is done."""
    model = limited(8)
    for length in (1, 5, 8):
        assert model.generate(torch.ones(1, length, dtype=torch.long), max_new_tokens=50).shape == (1, 9 - length)
    assert model.generate(torch.ones(1, 5, dtype=torch.long), max_new_tokens=2).shape == (1, 2)
    with pytest.raises(InputError, match="the prompt has 9 tokens, but the model has learned 8 positions; shorten it"):
        model.generate(torch.ones(1, 9, dtype=torch.long))


def test_a_row_does_not_end_early_because_another_is_long() -> None:
    """Positions count a row's own tokens: beside a prompt of seven, a prompt of one still gets all that fit, whichever
    way tokens are chosen; what is forced to be last stands there; a text ends where its row does."""
    model = limited(8)
    model.tokenizer = byte_level()
    rows = [[1, 2, 3, 4, 5, 6, 7], [9], [104, 105], [1, 3, 2, 5, 4, 6, 7]]
    ids, valid = left_padded(rows, 0, "cpu")
    for way in [*WAYS, {"draft": limited(7)}, {"batch_invariant": True}, {"temperature": 1.0, "answers": 2}]:
        count = way.get("answers", 1)
        how = {"max_new_tokens": 50, "forced_eos": 33, **way}
        seeds = list(range(5, 5 + len(rows) * count)) if "temperature" in way else []
        found = model.answers(ids, valid=valid, **how, **({"seed": seeds} if seeds else {}))
        alone = []
        for at, row in enumerate(rows):
            own = {"seed": seeds[at * count : (at + 1) * count]} if seeds else {}
            alone += [answer.ids for answer in model.answers(torch.tensor([row]), **how, **own)]
        assert [answer.ids for answer in found] == alone, way
        assert [len(each) for each in alone[::count]] == [2, 8, 7, 2] and all(each[-1] == 33 for each in alone)
        if not seeds:
            texts = ["".join(map(chr, row)) for row in rows]
            wanted = [answer.text for answer in found[::count]]
            assert model.generate(texts, **how)[:: way.get("answers", 1)] == wanted
            if count == 1:
                assert ["".join(each) for each in zip(*model.stream(texts, **how))] == wanted
    with pytest.raises(InputError, match="the prompt has 7 tokens, but the draft has learned 6 positions; shorten it"):
        model.generate(ids, valid=valid, draft=limited(6))
    wide = torch.cat((torch.zeros(4, 30, dtype=torch.long), ids), 1)
    marked = torch.cat((torch.zeros(4, 30, dtype=torch.bool), valid), 1)  # type: ignore[list-item]
    assert torch.equal(model.generate(wide, valid=marked), model.generate(ids, valid=valid))


def test_a_device_that_runs_behind_fills_up_what_it_is_told_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked two steps later whether all rows have ended, a device has made two steps more: of padding alone; what is
    told of the texts is the same."""
    model, rows = odd(0), prompts(0, 3)
    ids, valid = left_padded(rows, 0, "cpu")
    eos = tuple(without_cache(model, row, 3)[2] for row in rows)
    given: dict[str, Any] = {"valid": valid, "max_new_tokens": 30, "eos": eos, "pad": 36}
    at_once, answers = model.generate(ids, **given), model.answers(ids, **given)
    assert at_once.shape[1] < 28
    monkeypatch.setattr(decoding, "BEHIND", {"cpu": 2})
    later = model.generate(ids, **given)
    assert torch.equal(later[:, :-2], at_once) and bool((later[:, -2:] == 36).all())
    assert model.answers(ids, **given) == answers


def test_seeds_repeat_and_differ() -> None:
    """The same seed, the same text, whatever torch's own generator does; another seed, another text."""
    model, ids = odd(3), torch.tensor([[1, 2], [3, 4]])
    how = {"temperature": 2.0, "max_new_tokens": 20}
    one = model.generate(ids, seed=1, **how)
    torch.manual_seed(99)
    assert torch.equal(model.generate(ids, seed=1, **how), one)
    assert not torch.equal(model.generate(ids, seed=2, **how), one)
    torch.manual_seed(7)
    unseeded = model.generate(ids, **how)
    torch.manual_seed(7)
    assert torch.equal(model.generate(ids, **how), unseeded)


@pytest.mark.parametrize("name", ["bart", "marian"])
def test_what_a_file_forces_and_bans_is_as_in_the_reference(name: str, tmp_path: Path) -> None:
    """A first id, a last one, single ids and sequences that may not be written, by the names of
    generation_config.json, in models whose files have them: the same ids as transformers writes, until a row ends."""
    transformers = odd_families.reference()
    family = families.named(name)
    architecture = next(iter(family.architectures))
    theirs = odd_families.reference_model(family, odd_families.odd_spec(family, 1, architecture), architecture, seed=1)
    source = torch.arange(6, 27).reshape(3, 7)
    plain = {"do_sample": False, "num_beams": 1, "max_new_tokens": 9, "pad_token_id": 0, "decoder_start_token_id": 0}
    theirs.generation_config = transformers.GenerationConfig(**plain)
    first = theirs.generate(source)[:, 1:].tolist()
    settings = {
        "forced_bos_token_id": 9,
        "forced_eos_token_id": 3,
        "eos_token_id": [3, first[1][5]],
        "bad_words_ids": [[0], [first[0][1]], first[2][3:5], [9, first[1][1]]],
        "no_repeat_ngram_size": 2,
        "min_length": 6,
        "min_new_tokens": 8,
        "encoder_no_repeat_ngram_size": 1,
        "suppress_tokens": [40, 41, first[2][0]],
        "begin_suppress_tokens": [44, 45, 46],
        "exponential_decay_length_penalty": [7, 40.0],
    }
    seen = set()
    for kept in range(len(settings) + 1):
        theirs.generation_config = transformers.GenerationConfig(**plain, **dict(list(settings.items())[:kept]))
        wanted = theirs.generate(source)[:, 1:]
        theirs.save_pretrained(tmp_path)
        assert torch.equal(load(tmp_path, device="cpu").generate(source), wanted), theirs.generation_config
        seen.add(str(wanted.tolist()))
    assert len(seen) > 5, "most settings have an effect"


@pytest.mark.parametrize("shape", ["decoder", "encoder-decoder"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_what_is_asked_of_a_row_is_its_own(way: dict[str, Any], shape: str) -> None:
    """Ragged batches, prompts of one token among them: each row is forced, kept from copying its own source and led to
    an end as it is alone, whichever way tokens are chosen; and without a cache greedy is kept from the same."""
    model = odd(3, shape)
    rows = [[11], [1, 2, 3, 4, 1, 2], [5, 7, 6]]
    ids, valid = left_padded(rows, 0, "cpu")
    said = []
    for asked in ({}, *ASKED):
        how = {"max_new_tokens": 8, "start": 6, "pad": 0, **way, **asked}
        each = len(rows) * how.get("answers", 1)
        seeds = {"seed": tuple(range(len(rows)))} if "temperature" in how else {}
        found = [answer.ids for answer in model.answers(ids, valid=valid, **how, **seeds)]
        alone = []
        for row, seed in zip(rows, range(len(rows)), strict=True):
            its = {"seed": seed} if seeds else {}
            alone += [answer.ids for answer in model.answers(torch.tensor([row]), **how, **its)]
        assert len(found) == each and found == alone, asked
        said.append(found)
    assert len({str(each) for each in said}) == len(said), "each has an effect"


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_row_that_nothing_is_left_for_is_said(way: dict[str, Any]) -> None:
    """Once the four tokens of a vocabulary were all said, none may come again: one sentence, whichever way tokens are
    chosen; with fewer tokens asked for, or an end that may come, there is an answer."""
    described = families.llama("tiny", vocab_size=4)  # type: ignore[attr-defined]
    model = build(described, seed=1).eval()
    how: dict[str, Any] = {"no_repeat_ngram": 1, "bad_words": [[0, 1], [0, 2]], **way}
    if "top_k" in way:
        how["top_k"] = 3
    with pytest.raises(
        InputError, match=r"^(an answer of [0-3] tokens|no beam of prompt 1) c.*bad_words and no_repeat_"
    ):
        model.generate(torch.tensor([[3]]), max_new_tokens=9, **how)
    assert model.generate(torch.tensor([[3]]), max_new_tokens=1, **how).shape[1] == 1
    free = {**how, "no_repeat_ngram": 0}
    assert model.generate(torch.tensor([[3]]), max_new_tokens=9, **free).shape[1] == 9


def test_a_prompt_of_several_tokens_has_begun() -> None:
    """The first id is forced after the start token, not in the middle of a text; the last one wherever the text stops,
    at the last learned position too."""
    model, short = limited(8), {"forced_bos": 5, "forced_eos": 6}
    alone = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4)
    assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, **short).tolist() == [
        [*alone[0, :3].tolist(), 6]
    ]
    assert model.generate(torch.tensor([[1]]), max_new_tokens=50, **short)[0, [0, -1]].tolist() == [5, 6]
    assert model.generate(torch.tensor([[1]]), max_new_tokens=1, **short).tolist() == [[6]]
    cache = model.new_cache(1)
    list(steps(model, Prompts(torch.tensor([[1, 2]])), Settings(max_new_tokens=2), cache=cache))
    goes_on = list(steps(model, Prompts(torch.tensor([[3]])), Settings(max_new_tokens=1, forced_bos=5), cache=cache))
    assert int(goes_on[0]) != 5


def test_the_last_step_is_not_computed_in_vain() -> None:
    """As many calls as tokens: prompt, then one each but the last."""
    model, calls = odd(0), []
    forward = model.next_logits

    def counted(tokens: Tensor, *args: Any, **how: Any) -> Tensor:
        calls.append(tokens.shape[1])
        return forward(tokens, *args, **how)

    model.next_logits = counted  # type: ignore[method-assign]
    model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4)
    assert calls == [3, 1, 1, 1]


def text_model(**generation: Any) -> Transformer:
    """A decoder of bytes with a tokenizer."""
    model = limited(4096)
    model.tokenizer = byte_level()
    model.generation = generation
    return model


def test_texts_in_a_batch_are_what_they_are_alone() -> None:
    """Ragged texts, an empty one too; the file's defaults hold and the caller's settings win over them."""
    model = text_model(max_new_tokens=10, eos_token_id=256)
    texts = ["Once upon", "a", "", "Straße, größer"]
    together = model.generate(texts)
    assert together == [model.generate([text])[0] for text in texts]
    assert model.generate(texts, max_new_tokens=3) != together
    assert all(isinstance(text, str) for text in together)
    assert model.generate([]) == []


def test_texts_end_before_the_end_token() -> None:
    """Neither the token nor what fills up after it is text."""
    model = text_model()
    ids = model.generate(torch.tensor([list(b"Once upon")]), max_new_tokens=12)[0].tolist()
    eos = ids[5]
    cut = ids[: ids.index(eos)]
    assert model.tokenizer is not None
    assert model.generate(["Once upon"], max_new_tokens=12, eos=eos) == [model.tokenizer.decode(cut)]
    assert model.generate(["Once upon", "x"], max_new_tokens=12, eos=eos)[0] == model.tokenizer.decode(cut)


def test_a_stream_says_piece_by_piece_what_generate_says_at_once() -> None:
    """Joined, the same text; every piece is whole characters."""
    model = text_model(max_new_tokens=30)
    pieces = list(model.stream("Once upon"))
    assert "".join(pieces) == model.generate(["Once upon"])[0]
    eos = model.generate(torch.tensor([list(b"Once upon")]))[0].tolist()[6]
    assert "".join(model.stream("Once upon", eos=eos)) == model.generate(["Once upon"], eos=eos)[0]


def test_what_cannot_be_continued_is_said() -> None:
    """Empty prompts, prompts of padding only, ids without a batch, heads that are no language model's."""
    model = odd(0)
    with pytest.raises(InputError, match="the prompt is empty; give at least one token"):
        model.generate(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(InputError, match=r"the prompt must be ids \[B, T\], not \[3\]"):
        model.generate(torch.tensor([1, 2, 3]))
    ids = torch.tensor([[1, 2], [3, 4]])
    with pytest.raises(InputError, match="a prompt is all padding"):
        model.generate(ids, valid=torch.tensor([[True, True], [False, False]]))
    with pytest.raises(InputError, match=r"valid is \[1, 2\], but the prompt is \[2, 2\]"):
        model.generate(ids, valid=torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(InputError, match=r"valid must be bool, true where there is no padding, not torch.int64"):
        model.generate(ids, valid=torch.ones_like(ids))
    with pytest.raises(InputError, match=r"there are no prompts in ids \[0, 2\]"):
        model.generate(ids[:0])
    with pytest.raises(
        InputError, match="'eos' cannot be used: there is no token 99, as this model's vocabulary of 37"
    ):
        model.generate(ids, eos=99)
    for answering in (text_model().generate, text_model().answers):
        with pytest.raises(InputError, match="valid says which ids are no padding, and texts have none; leave it out"):
            answering(["a", "b"], valid=torch.ones(2, 1, dtype=torch.bool))  # type: ignore[call-overload]
    with pytest.raises(InputError, match=r"stream takes a text, a list of texts, or the ids of one text as a list"):
        model.stream(ids[0])
    with pytest.raises(InputError, match="no token is known that the decoder starts with; give start="):
        odd(0, "encoder-decoder").generate(ids)
    with pytest.raises(InputError, match="an encoder reads and does not write"):
        odd(0, "encoder").generate(ids)
    headless = build(model.spec.replace(head=spec.TokenClassificationHead(labels=3)))
    with pytest.raises(InputError, match="ends in a token_classification head; only a language model generates"):
        headless.generate(ids)


@pytest.mark.parametrize("way", [*WAYS, {"batch_invariant": True}], ids=str)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_broken_model_says_nothing(way: dict[str, Any], wrong: float) -> None:
    """What is no number is told in a sentence, and not by the text of whichever token comes first."""
    model = odd(1)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(wrong)
    with pytest.raises(
        InputError, match=r"what the model makes of the prompt is no number \(NaN or infinite, in torch"
    ):
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, **way)


def test_ids_may_be_narrow() -> None:
    """Of 32 bits, under every setting that looks at them; narrower ones are refused as the model itself does."""
    model, ids = odd(0), torch.tensor([[1, 2, 3], [4, 5, 6]])
    for way in WAYS:
        how = {"max_new_tokens": 5, "repetition_penalty": 1.3, "no_repeat_ngram": 2, "suppress": (7,), "seed": 1, **way}
        assert torch.equal(model.generate(ids.int(), **how), model.generate(ids, **how))
    with pytest.raises(InputError, match=r"tokens must be integer ids, not torch.uint8; make them int64: .long\(\)"):
        model.generate(ids.to(torch.uint8))


def test_a_cache_is_what_is_asked_for() -> None:
    """One that was not made to be quantised is not continued as if it were."""
    model = text_model()
    with pytest.raises(InputError, match="the cache to go on from keeps full numbers: new_cache"):
        list(model.stream("a", cache=model.new_cache(1), quantize_cache="int8"))
    quantised = list(model.stream("a", quantize_cache="int8", max_new_tokens=5))
    cache = model.new_cache(1, quantize="int8")
    assert list(model.stream("a", cache=cache, quantize_cache="int8", max_new_tokens=5)) == quantised


def test_embeddings_are_those_of_the_text_alone_and_may_be_learned_from() -> None:
    """Whatever batch a text stands in; and a layer on top of them can be trained."""
    model = text_model()
    texts = ["one", "a longer text", "x" * 50, "two"]
    found = model.embed(texts, batch_size=2)
    assert found.shape == (4, 8) and found.dtype == torch.float32
    for text, vector in zip(texts, found, strict=True):
        assert torch.allclose(model.embed([text])[0], vector, atol=1e-6)
        hidden = model(torch.tensor([list(text.encode())])).hidden[0].mean(0)
        assert torch.allclose(hidden, vector, atol=1e-6)
    assert model.embed([]).shape == (0, 8)
    layer = torch.nn.Linear(8, 1)
    layer(found).sum().backward()
    assert layer.weight.grad is not None
