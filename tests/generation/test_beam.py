"""Beam search: the answers that the reference finds, whatever shares the batch."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from typing import Any

import odd as odd_families
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from odd_specs import odd_model
from torch import Tensor

from anyformer import families
from anyformer.errors import InputError
from anyformer.generation import Prompts, Settings, Token, left_padded, search
from anyformer.generation.beam import Candidate, Search
from anyformer.generation.decoding import choices
from anyformer.model import Transformer, build, load
from anyformer.text import byte_level

VOCABULARY = 37
SETTINGS: list[dict[str, Any]] = [
    {},
    {"length_penalty": 0.0},
    {"length_penalty": 2.5, "early_stopping": "never"},
    {"length_penalty": -1.0, "early_stopping": "never"},
    {"early_stopping": True, "num_return_sequences": 4},
    {"repetition_penalty": 1.7, "num_return_sequences": 2},
    {"num_beams": 3, "num_return_sequences": 3},
    {"no_repeat_ngram_size": 2, "min_new_tokens": 7},
    {"forced_bos_token_id": 9, "forced_eos_token_id": 3, "bad_words_ids": [[1], [4, 6], [9, 7]]},
    {
        "encoder_no_repeat_ngram_size": 1,
        "suppress_tokens": [9, 12],
        "begin_suppress_tokens": [3, 40],
        "exponential_decay_length_penalty": [4, 1.2],
    },
]


def odd(seed: int, shape: str = "decoder") -> Transformer:
    """A random model in float64, in evaluation mode."""
    return build(odd_model(random.Random(f"{seed} {shape}"), shape), dtype=torch.float64, seed=seed).eval()


@pytest.mark.parametrize("name", ["t5", "bart", "marian", "llama", "gemma2"])
def test_finds_what_the_reference_finds(name: str, tmp_path: Any) -> None:
    """Ragged batches under every setting of generation_config.json: the ids that transformers finds, ends included, and
    their scores."""
    transformers = odd_families.reference()
    family = families.named(name)
    architecture = next(each for each, head in family.architectures.items() if head == "language_model")
    theirs = odd_families.reference_model(family, odd_families.odd_spec(family, 1, architecture), architecture, seed=1)
    theirs.double()
    theirs.generation_config = transformers.GenerationConfig(pad_token_id=0)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path, device="cpu").double()
    rows = [[7, 12, 30, 11, 9, 21, 5], [14, 25], [8, 33, 8, 10]]
    ids, valid = left_padded(rows, 0, "cpu")
    assert valid is not None
    endless = ours.generate(ids, valid=valid, max_new_tokens=11, beams=4, start=2).tolist()
    ends = [3, endless[0][5], endless[1][8], endless[2][2]]
    lengths = set()
    for settings in SETTINGS:
        config = {"num_beams": 4, "max_new_tokens": 11, "pad_token_id": 1, "eos_token_id": ends, **settings}
        if ours.encoder is not None:
            config["decoder_start_token_id"] = 2
        theirs.generation_config = transformers.GenerationConfig(do_sample=False, **config)
        skipped = [1 if ours.encoder is not None else len(row) for row in rows]
        # One by one and without a cache: what the reference finds for a padded row is not always what it finds for the
        # row, and its cache asks that both stacks of T5 are as deep.
        how = {"use_cache": False, "return_dict_in_generate": True, "output_scores": True}
        found = [theirs.generate(torch.tensor([row]), **how) for row in rows]
        wanted = [row for each, skip in zip(found, skipped) for row in each.sequences[:, skip:].tolist()]
        ours.generation = config
        given = ours.answers(ids, valid=valid)
        assert [answer.ids for answer in given] == [until_padding(row) for row in wanted], settings
        scores = [float(score) for each in found for score in each.sequences_scores]
        assert [answer.score for answer in given] == pytest.approx(scores, abs=1e-4)
        lengths |= {len(answer.ids) for answer in given}
    assert len(lengths) > 2, "answers end where they like"


def until_padding(row: list[int]) -> list[int]:
    """A row of new ids without what stands after its end."""
    return row[: row.index(1)] if 1 in row else row


def found(model: Transformer, ids: Tensor, valid: Tensor | None, **settings: Any) -> list[Any]:
    """The best answer to each prompt, with its score."""
    chosen = Settings.of(model.generation, **settings)
    return [answers[0] for answers in search(model, model.beginning(ids, valid, chosen), chosen)]


@pytest.mark.parametrize("shape", ["decoder", "encoder-decoder"])
def test_an_answer_does_not_depend_on_what_shares_its_batch(shape: str) -> None:
    """Random models with rings, ALiBi, experts ...: a prompt's answers alone are its answers beside others, of which
    some end early, and their scores are the sums that a pass without a cache gives."""
    draw = random.Random(0)
    for seed in range(8):
        model = odd(seed, shape)
        rows = [[draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 9))] for _ in range(4)]
        how = {"beams": 3, "answers": 2, "max_new_tokens": 9, "eos": draw.sample(range(VOCABULARY), 5), "start": 5}
        ids, valid = left_padded(rows, 0, "cpu")
        chosen = Settings(**how)
        together = search(model, model.beginning(ids, valid, chosen), chosen)
        for row, answers in zip(rows, together, strict=True):
            begun = model.beginning(torch.tensor([row]), None, chosen)
            alone = search(model, begun, chosen)[0]
            assert [answer.ids for answer in answers] == [answer.ids for answer in alone]
            for answer in answers:
                assert answer.score == pytest.approx(likelihood(model, begun, answer.ids) / len(answer.ids), abs=1e-5)


def likelihood(model: Transformer, begun: Prompts, ids: list[int]) -> float:
    """The summed log-probability of ids after what decoding begins with, by one pass without a cache."""
    prompt = begun.ids[0].tolist()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids]), source=begun.source).logits[0]
    shares = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return float(shares[torch.arange(len(ids)), torch.tensor(ids)].sum())


@torch.no_grad()
def diverse(model: Transformer, begun: Prompts, settings: Settings) -> list[tuple[float, list[int]]]:
    """The definition of diverse beam search, in plain Python, every text read anew: the answers with their scores."""
    prompt, width = begun.ids[0].tolist(), settings.beams // settings.beam_groups
    groups: list[list[tuple[float, list[int]]]] = [[(0.0, [])] for _ in range(settings.beam_groups)]
    answers: list[list[tuple[float, list[int]]]] = [[] for _ in groups]
    over = [False] * len(groups)
    for length in range(1, settings.max_new_tokens + 1):
        said: Counter[int] = Counter()
        for group, beams in enumerate(groups):
            if over[group]:
                continue
            continuations = []
            for score, ids in beams:
                logits = model(torch.tensor([prompt + ids]), source=begun.source).logits[0, -1].float()
                for token, share in enumerate(logits.log_softmax(-1).tolist()):
                    continuations.append((score + share - settings.diversity_penalty * said[token], [*ids, token]))
            continuations.sort(reverse=True)
            ending = [each for each in continuations[:width] if each[1][-1] in settings.eos]
            groups[group] = [each for each in continuations if each[1][-1] not in settings.eos][:width]
            said.update(ids[-1] for _, ids in groups[group])
            if length == settings.max_new_tokens:
                ending = continuations[:width]
            answers[group] += [(score / length**settings.length_penalty, ids) for score, ids in ending]
            answers[group] = sorted(answers[group], reverse=True)[:width]
            best = groups[group][0][0] / length**settings.length_penalty
            over[group] = len(answers[group]) == width and best <= answers[group][-1][0]
    return sorted((each for its in answers for each in its), reverse=True)


@pytest.mark.parametrize("shape", ["decoder", "encoder-decoder"])
def test_diverse_groups_find_what_their_definition_finds(shape: str) -> None:
    """Vijayakumar et al. 2018, on random models, in ragged batches of which some searches end early: the same answers
    with the same scores; and not those of a search in one group."""
    draw, differs, early = random.Random(2), 0, 0
    for seed, (beams, groups) in enumerate([(4, 2), (6, 3), (3, 3), (6, 2)]):
        model = odd(seed, shape)
        rows = [[draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 9))] for _ in range(3)]
        chosen = Settings(
            beams=beams,
            beam_groups=groups,
            diversity_penalty=draw.choice([0.3, 1.0, 2.5]),
            answers=beams,
            max_new_tokens=6,
            eos=tuple(draw.sample(range(VOCABULARY), 6)),
            start=5,
        )
        ids, valid = left_padded(rows, 0, "cpu")
        together = search(model, model.beginning(ids, valid, chosen), chosen)
        one_group = chosen.model_copy(update={"beam_groups": 1, "diversity_penalty": 0.0})
        for row, answers in zip(rows, together, strict=True):
            begun = model.beginning(torch.tensor([row]), None, chosen)
            wanted = diverse(model, begun, chosen)
            assert [answer.ids for answer in answers] == [ids for _, ids in wanted]
            assert [answer.score for answer in answers] == pytest.approx([score for score, _ in wanted], abs=1e-4)
            plain = search(model, begun, one_group)[0]
            differs += [answer.ids for answer in plain] != [answer.ids for answer in answers]
            early += any(len(answer.ids) < 6 for answer in answers)
    assert differs > 6 and early > 3


def test_groups_begin_differently_where_saying_the_same_costs_most() -> None:
    """With a penalty above all differences no two groups say the same first token; with none worth the name they are
    one."""
    model, prompt = odd(1), torch.tensor([[1, 2, 3]])
    how = {"beams": 5, "beam_groups": 5, "answers": 5, "max_new_tokens": 4}
    found = search(model, Prompts(prompt), Settings(diversity_penalty=1000.0, **how))[0]
    assert len({answer.ids[0] for answer in found}) == 5
    alike = search(model, Prompts(prompt), Settings(diversity_penalty=1e-9, **how))[0]
    assert len({tuple(answer.ids) for answer in alike}) == 1


def test_what_is_forced_costs_no_group_anything() -> None:
    """All say the first and the last token that have to be said; they differ in between, and each score is as likely as
    the tokens between are, less the penalties for those alone."""
    model = odd(1)
    how = {"beams": 3, "beam_groups": 3, "answers": 3, "max_new_tokens": 3, "forced_bos": 7, "forced_eos": (4,)}
    found = search(model, Prompts(torch.tensor([[1]])), Settings(diversity_penalty=1000.0, **how))[0]
    assert [(answer.ids[0], answer.ids[2]) for answer in found] == [(7, 4)] * 3
    assert len({answer.ids[1] for answer in found}) == 3
    assert [answer.score for answer in found] == [pytest.approx(each.tokens[1].logprob / 3, abs=1e-4) for each in found]


def test_as_wide_as_all_texts_it_finds_the_likeliest() -> None:
    """With room for every text of three tokens nothing is given up: the best of all, in order."""
    described = families.llama("tiny", vocab_size=6, initializer_range=0.5)  # type: ignore[attr-defined]
    model = build(described, dtype=torch.float64, seed=1).eval()
    prompt = torch.tensor([[1, 2]])
    answers = search(model, Prompts(prompt), Settings(beams=216, answers=10, max_new_tokens=3))[0]
    every = [list(ids) for ids in itertools.product(range(6), repeat=3)]
    wanted = sorted(every, key=lambda ids: -likelihood(model, Prompts(prompt), ids))[:10]
    assert [answer.ids for answer in answers] == wanted


def test_one_beam_is_greedy() -> None:
    """The search itself, one beam wide, ends where greedy does when it may not look back."""
    for seed in range(5):
        model, prompt = odd(seed), torch.tensor([[1, 2, 3]])
        answer = search(model, Prompts(prompt), Settings(max_new_tokens=8, eos=(4,), early_stopping=True))[0][0]
        assert [answer.ids] == model.generate(prompt, max_new_tokens=8, eos=4).tolist()


class Counted:
    """A model that notes how many rows each step computes."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.rows = model, []
        self.spec, self.dtype, self.positions = model.spec, model.dtype, model.positions
        self.sees_prefix, self.new_cache = model.sees_prefix, model.new_cache
        self.rows_together = model.rows_together

    def next_logits(self, tokens: Tensor, cache: Any, **how: Any) -> Tensor:
        self.rows.append(len(tokens))
        return self.model.next_logits(tokens, cache, **how)


def test_what_is_over_leaves_the_batch() -> None:
    """Prompts are read once, not once a beam; a row is computed only while its search goes on; no step is in vain."""
    draw, shrank = random.Random(1), False
    for seed in range(6):
        model = Counted(odd(seed))
        prompts = torch.tensor([[draw.randrange(VOCABULARY) for _ in range(4)] for _ in range(5)])
        how = Settings(beams=2, max_new_tokens=12, eos=tuple(draw.sample(range(VOCABULARY), 8)), early_stopping=True)
        search(model, Prompts(prompts), how)
        assert model.rows[0] == 5 and model.rows[1:] == sorted(model.rows[1:], reverse=True)
        assert len(model.rows) <= 12 and all(rows % 2 == 0 for rows in model.rows[1:])
        shrank |= len(set(model.rows[1:])) > 1
    assert shrank


def test_learned_positions_end_each_text_by_itself() -> None:
    """A short prompt beside a long one gets all the tokens that fit, and what it gets alone."""
    described = families.gpt2("tiny", n_positions=8)  # type: ignore[attr-defined]
    model = build(described, dtype=torch.float64, seed=1).eval()
    rows = [[1, 2, 3, 4, 5, 6, 7], [9]]
    ids, valid = left_padded(rows, 0, "cpu")
    answers = found(model, ids, valid, beams=3, max_new_tokens=50)
    assert [len(answer.ids) for answer in answers] == [2, 8]
    assert [answer.ids for answer in answers] == [
        found(model, torch.tensor([row]), None, beams=3, max_new_tokens=50)[0].ids for row in rows
    ]
    with pytest.raises(InputError, match="the prompt has 9 tokens, but the model has learned 8 positions"):
        model.generate(torch.ones(1, 9, dtype=torch.long), beams=2)


@given(st.data())
def test_a_beam_keeps_its_place_while_any_of_it_goes_on(data: st.DataObject) -> None:
    """The K likeliest that do not end run on, whatever the order; what was given up alone changes its row."""
    width = data.draw(st.integers(1, 5))
    state = Search(Settings(beams=max(width, 2), eos=(0,)), most=9)
    width = state.settings.beams
    state.beams, state.scores = [[Token(100 + beam, 0.0)] for beam in range(width)], [0.0] * width
    count = 2 * width
    beams = data.draw(st.lists(st.integers(0, width - 1), min_size=count, max_size=count))
    ends = data.draw(st.sets(st.integers(0, count - 1), max_size=width))
    tokens = [0 if rank in ends else rank + 1 for rank in range(count)]
    candidates = [Candidate(-float(rank), beam, tokens[rank], -rank / 9) for rank, beam in enumerate(beams)]
    parents = state.step(candidates, [()] * width)
    going = [candidate for rank, candidate in enumerate(candidates) if rank not in ends][:width]
    assert sorted(state.scores, reverse=True) == [candidate.score for candidate in going]
    wanted = [[(100 + each.beam, 0.0, ()), (each.token, each.logprob, ())] for each in going]
    assert sorted(state.beams) == sorted(wanted)
    assert [beam[0].id - 100 for beam in state.beams] == parents
    assert all(parents[beam] == beam for beam in set(parents))
    assert [answer.ids[0] - 100 for answer in state.answers] == [beams[rank] for rank in sorted(ends) if rank < width]


def test_a_vocabulary_smaller_than_the_beams() -> None:
    """Of fewer texts than beams there are as many answers; the rows that generate gives for the others are empty."""
    described = families.llama("tiny", vocab_size=3)  # type: ignore[attr-defined]
    model = build(described, seed=1).eval()
    answers = search(model, Prompts(torch.tensor([[1]])), Settings(beams=5, answers=5, max_new_tokens=1, pad=2))[0]
    assert sorted(answer.ids for answer in answers) == [[0], [1], [2]]
    assert all(math.isfinite(answer.score) for answer in answers)
    assert model.generate(torch.tensor([[1]]), beams=5, answers=5, max_new_tokens=1, pad=2).shape == (5, 1)


def test_a_stream_of_a_search_is_its_answer() -> None:
    """In one piece, of several answers the best; a conversation's cache is not continued."""
    model = build(families.llama("tiny", vocab_size=257), seed=1).eval()  # type: ignore[attr-defined]
    model.tokenizer = byte_level()
    how = {"beams": 3, "answers": 2, "max_new_tokens": 6}
    assert list(model.stream("Once", **how)) == model.generate(["Once"], **how)[:1]
    with pytest.raises(InputError, match="beam search continues no cache; set beams=1"):
        next(model.stream("Once", cache=model.new_cache(1), **how))


def test_draws_of_one_prompt_follow_each_other() -> None:
    """Several answers at a temperature are rows of their own, for which their prompt is read once."""
    model, ids = odd(3), torch.tensor([[1, 2], [3, 4]])
    counted = Counted(model)
    list(choices(counted, Prompts(ids), Settings(temperature=2.0, max_new_tokens=8), draws=3))
    assert counted.rows == [2, *[6] * 7]
    drawn = model.generate(ids, temperature=2.0, answers=3, max_new_tokens=8, seed=1)
    assert drawn.shape == (6, 8) and len({tuple(row) for row in drawn.tolist()}) > 3
    assert torch.equal(drawn, model.generate(ids.repeat_interleave(3, 0), temperature=2.0, max_new_tokens=8, seed=1))
