"""Speculation changes how fast an answer comes, and nothing else: the same tokens greedily, the same distribution."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from odd_specs import odd_model
from torch import Tensor

from anyformer import spec, text
from anyformer.errors import InputError
from anyformer.generation import Prompts, Settings, left_padded, speculation, steps, until_end
from anyformer.generation.constraints import Constraint, constraint_of
from anyformer.generation.decoding import choices
from anyformer.generation.drafting import LONGEST_MATCH, Past, Proposal
from anyformer.generation.penalties import Said
from anyformer.generation.sampling import distribution
from anyformer.generation.speculation import Speculation, Tally, accepted, speculate
from anyformer.model import Transformer, build

VOCABULARY = 37


def odd(seed: int, shape: str = "decoder") -> Transformer:
    """A random model in float64, in evaluation mode."""
    return build(odd_model(random.Random(f"{seed} {shape}"), shape), dtype=torch.float64, seed=seed).eval()


def begun(seed: int, shape: str, rows: int = 3) -> Prompts:
    """Ragged prompts; of an encoder-decoder, sources, and a start token."""
    draw = random.Random(seed)
    ids, valid = left_padded(
        [[draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 9))] for _ in range(rows)], 0, "cpu"
    )
    if shape == "decoder":
        return Prompts(ids, valid)
    return Prompts(torch.full((rows, 1), 5), source=ids, source_valid=valid)


def plainly(
    model: Transformer, prompts: Prompts, settings: Settings, constraint: Constraint | None = None
) -> list[list[int]]:
    return torch.stack(list(steps(model, prompts, settings, constraint=constraint)), 1).tolist()


def speculatively(
    model: Transformer,
    prompts: Prompts,
    settings: Settings,
    constraint: Constraint | None = None,
    **how: Any,
) -> list[list[int]]:
    found = speculate(model, prompts, settings, Speculation(**how), constraint=constraint)
    return torch.stack([step.ids_B for step in found], 1).tolist()


@pytest.mark.parametrize("shape", ["decoder", "encoder-decoder"])
def test_greedily_the_tokens_are_the_models_own(shape: str) -> None:
    """Random models with windows, patterns and every kind of position, ragged batches, drafts that know nothing, drafts
    that know all, and prompt lookup; ends, penalties and forced tokens: exactly what plain decoding says. What knows
    all is never turned down."""
    for seed in range(4):
        model, start = odd(seed, shape), begun(seed, shape)
        end = plainly(model, start, Settings(max_new_tokens=16))[0][-3]
        variants: list[dict[str, Any]] = [
            {"eos": (end,), "pad": 36},
            {"repetition_penalty": 1.4, "frequency_penalty": 0.3},
            {"forced_eos": (3,), "forced_bos": 4},
        ]
        for variant in ({}, variants[seed % 3]):
            settings = Settings(max_new_tokens=16, prompt_lookup=5, **variant)
            wanted = plainly(model, start, settings)
            for draft in (None, odd(seed + 100, shape), model):
                tally = Tally()
                assert speculatively(model, start, settings, draft=draft, tally=tally) == wanted, (seed, variant)
                assert tally.acceptance in (None, 1.0) or draft is not model
                assert tally.said == sum(
                    len(until_end(row, settings.eos)) + (end in row) * ("eos" in variant) for row in wanted
                )


def test_what_the_model_had_said_is_handed_on() -> None:
    """The logits of each step are those of plain decoding, whatever pace the rows have."""
    model, start, settings = odd(3), begun(3, "decoder"), Settings(max_new_tokens=15, prompt_lookup=4)
    found = speculate(model, start, settings, Speculation())
    pairs = zip(choices(model, start, settings), found, strict=True)
    assert all(torch.allclose(plain.logits_BV, found.logits_BV, atol=1e-10) for plain, found in pairs)


def test_passes_are_saved() -> None:
    """A text that repeats itself takes a fraction of the passes; one that never does, no more than plain decoding."""
    model, tally = odd(8), Tally()
    settings = Settings(max_new_tokens=50, prompt_lookup=10)
    said = speculatively(model, Prompts(torch.tensor([[1, 2, 3]])), settings, tally=tally)[0]
    assert len(set(said[10:])) < 5, "this model turns in circles"
    assert tally.passes < 20 and tally.said == 50 and tally.accepted == 50 - tally.passes


def test_a_conversation_goes_on_where_it_stopped() -> None:
    """With its cache, whose rings have a margin, the next prompt is the last id that was yielded and what is new: also
    where the steps were not followed to their end, and what the cache holds beyond them is taken back."""
    for seed in range(8):
        model, settings, plain = odd(seed), Settings(max_new_tokens=12, prompt_lookup=4), Settings(max_new_tokens=12)
        cache, said, prompt = model.new_cache(1, margin=4), [], [1, 2, 3, 1, 2]
        for follows in (12, 5):
            said += prompt
            if model.positions is not None and len(said) + 24 > model.positions:
                break
            prompts = Prompts(torch.tensor([prompt]), past=said[: -len(prompt)])
            found = speculate(model, prompts, settings, Speculation(), cache=cache)
            new = [int(step.ids_B) for step, _ in zip(found, range(follows))]
            found.close()  # type: ignore[attr-defined]
            assert new == plainly(model, Prompts(torch.tensor([said])), plain)[0][:follows]
            cache.truncate([len(said) + len(new) - 1])
            said, prompt = said + new[:-1], [new[-1], 7, 1, 2]
    assert cache.length


def stretched() -> Transformer:
    """A decoder whose rotary angles change at 12 tokens."""
    scaling = spec.LongRopeScaling(short=(1.0, 1.3), long=(3.0, 9.0), factor=4.0, original_context=12)
    attention = spec.Attention(
        heads=2,
        kv_heads=1,
        head_dim=4,
        visibility="causal",
        position=spec.Rotary(base=50.0, scaling=scaling),
        scale=2.0,
    )
    block = spec.Block(branches=(spec.Branch(mixer=attention, norm=spec.Norm(kind="rms")),))
    stack = spec.Stack(dim=8, depth=2, pattern=(block,), embeddings=spec.Embeddings(vocabulary=VOCABULARY))
    how = spec.Initialization(std=0.5)
    return (
        build(spec.Transformer(decoder=stack, head=spec.LanguageModelHead(), initialization=how), seed=0)
        .double()
        .eval()
    )


def test_no_pass_crosses_a_change_of_the_angles() -> None:
    """Where the length reached changes what all tokens come to, proposals stop before: the tokens stay the same."""
    model, settings = stretched(), Settings(max_new_tokens=30, prompt_lookup=8)
    for seed in range(5):
        prompt = Prompts(torch.randint(VOCABULARY, (1, 4), generator=torch.Generator().manual_seed(seed)))
        assert speculatively(model, prompt, settings, draft=model) == plainly(model, prompt, settings)


def small(seed: int, vocabulary: int = 3, std: float = 0.5) -> Transformer:
    """A decoder over very few tokens, none of them certain."""
    attention = spec.Attention(heads=2, kv_heads=1, head_dim=4, visibility="causal", position=spec.Rotary())
    block = spec.Block(branches=(spec.Branch(mixer=attention, norm=spec.Norm(kind="rms")),))
    stack = spec.Stack(dim=8, depth=1, pattern=(block,), embeddings=spec.Embeddings(vocabulary=vocabulary))
    how = spec.Initialization(std=std)
    return build(spec.Transformer(decoder=stack, head=spec.LanguageModelHead(), initialization=how), seed=seed).eval()


@torch.no_grad()
def enumerated(model: Transformer, prompt: list[int], settings: Settings, length: int) -> dict[tuple[int, ...], float]:
    """The probability of every answer of this length, by asking for each of its tokens without any cache."""
    chances: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        longer = {}
        for answer, chance in chances.items():
            said = Said(settings, Prompts(torch.tensor([prompt])))
            for id in answer:
                said.add(torch.tensor([id]))
            logits = model(torch.tensor([[*prompt, *answer]])).logits[:, -1]
            shares = distribution(said.adjusted(logits).float(), settings)[0].tolist()
            longer |= {(*answer, id): chance * share for id, share in enumerate(shares) if share > 0}
        chances = longer
    return chances


def surprise(
    counts: Counter[tuple[int, ...]], chances: dict[tuple[int, ...], float], total: int
) -> tuple[float, float]:
    """Pearson's chi-square of the counts, rare answers taken together, and its 99.99th percentile (Wilson and Hilferty
    1931). What has no probability must not be there."""
    assert set(counts) <= set(chances)
    rare = [answer for answer, chance in chances.items() if chance * total < 8]
    cells = [(counts[answer], chance * total) for answer, chance in chances.items() if answer not in rare]
    cells += [(sum(counts[answer] for answer in rare), sum(chances[answer] for answer in rare) * total)] if rare else []
    statistic = sum((found - wanted) ** 2 / wanted for found, wanted in cells if wanted > 0)
    df = len(cells) - 1
    return statistic, df * (1 - 2 / (9 * df) + 3.719 * (2 / (9 * df)) ** 0.5) ** 3


def drawn(settings: Settings, lookup: bool, rows: int = 2000) -> tuple[float, float, float]:
    """Chi-square and its bound for answers of four tokens, drawn speculatively; the share that was accepted."""
    model, prompt = small(0), [0, 1, 2, 2, 0, 1]
    settings = settings.model_copy(update={"max_new_tokens": 4, "seed": 7, "prompt_lookup": 3})
    prompts, draft, tally = Prompts(torch.tensor([prompt]).expand(rows, -1)), None if lookup else small(2), Tally()
    found = speculatively(model, prompts, settings, draft=draft, tally=tally)
    return *surprise(Counter(map(tuple, found)), enumerated(model, prompt, settings, 4), rows), tally.acceptance or 0.0


WAYS = {
    "plain": Settings(temperature=1.0),
    "processed": Settings(
        temperature=1.3,
        top_k=2,
        top_p=0.95,
        min_p=0.02,
        repetition_penalty=1.2,
        frequency_penalty=0.3,
        presence_penalty=0.1,
    ),
}


@pytest.mark.parametrize("lookup", [False, True], ids=["draft", "lookup"])
@pytest.mark.parametrize("way", WAYS)
def test_answers_are_drawn_from_the_models_own_distribution(way: str, lookup: bool) -> None:
    """2,000 answers of four tokens out of three, counted against the probability of every one of the 81, enumerated
    with all of the settings' processing: chi-square below its 99.99th percentile."""
    statistic, bound, acceptance = drawn(WAYS[way], lookup)
    assert statistic < bound
    assert 0.1 < acceptance < 0.95, "some are accepted, some are not"


@pytest.mark.parametrize("wrong", ["another temperature", "nothing is taken away", "anything is accepted"])
def test_a_wrong_rule_is_found_out(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: it does where the draft is taken for surer than it is, where after a token that was
    turned down p is drawn from as it is, and where all proposals are accepted."""

    def rule(shares: Tensor, proposal: Proposal, numbers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        assert proposal.shares is not None or not any(proposal.tokens)
        if wrong == "another temperature" and proposal.shares is not None:
            surer = (proposal.shares.log() / 0.25).softmax(-1)
            return accepted(shares, Proposal(proposal.tokens, surer), numbers)
        counts, own = accepted(shares, proposal, numbers)
        lengths = torch.tensor([len(tokens) for tokens in proposal.tokens])
        if wrong == "anything is accepted":
            counts = lengths
        again = torch.multinomial(shares[torch.arange(len(counts)), counts], 1)[:, 0]
        return counts, torch.where(counts < lengths, again, own)

    monkeypatch.setattr(speculation, "accepted", rule)
    torch.manual_seed(0)
    statistic, bound, _ = drawn(WAYS["plain"], lookup=False)
    assert statistic > 1.5 * bound


def test_a_row_draws_the_same_whatever_shares_its_batch() -> None:
    """With its own seed, alone and among others, by drafts and by lookup."""
    for shape in ("decoder", "encoder-decoder"):
        model, start = odd(1, shape), begun(1, shape)
        for draft in (None, odd(2, shape)):
            settings = Settings(temperature=0.8, max_new_tokens=12, prompt_lookup=4, seed=(3, 1, 4))
            together = speculatively(model, start, settings, draft=draft)
            for row, seed in enumerate((3, 1, 4)):
                settings = settings.model_copy(update={"seed": seed})
                assert speculatively(model, start.of_rows([row]), settings, draft=draft) == [together[row]]


def test_a_draft_may_have_a_padded_vocabulary() -> None:
    """Tokens that only one of the two models has are never said, and never proposed to one that has them not."""
    for sizes in ((11, 16), (16, 11)):
        model, draft = small(0, sizes[0]), small(1, sizes[1])
        prompts = Prompts(torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(0)))
        settings = Settings(max_new_tokens=12, bad_words=tuple((id,) for id in range(11, 16))).within(sizes[0])
        assert speculatively(model, prompts, settings, draft=draft) == plainly(model, prompts, settings)
        settings = settings.model_copy(update={"temperature": 1.0, "seed": 0})
        assert max(map(max, speculatively(model, prompts, settings, draft=draft))) < 11


@pytest.mark.parametrize(
    "asked",
    [{"repetition_penalty": 1.5}, {"frequency_penalty": 0.5}, {"no_repeat_ngram": 2}, {"min_new_tokens": 5}],
    ids=str,
)
def test_a_draft_hears_of_tokens_that_it_does_not_know(asked: dict[str, Any]) -> None:
    """In prompts and among end tokens, where penalties and bounds ask for them."""
    model, draft = small(0, 16), small(1, 11)
    prompts = Prompts(torch.tensor([[15, 3, 12, 3], [1, 2, 14, 14]]))
    settings = Settings(max_new_tokens=12, eos=(15, 4), **asked)
    assert speculatively(model, prompts, settings, draft=draft) == plainly(model, prompts, settings)


def test_learned_positions_bound_both_models() -> None:
    """A draft that has learned fewer positions stops proposing there; the answer goes on to the model's own last."""

    def learned(size: int, seed: int) -> Transformer:
        attention = spec.Attention(heads=2, kv_heads=2, head_dim=4, visibility="causal")
        block = spec.Block(branches=(spec.Branch(mixer=attention, norm=spec.Norm(kind="rms")),))
        embeddings = spec.Embeddings(vocabulary=VOCABULARY, position=spec.Learned(size=size))
        stack = spec.Stack(dim=8, depth=1, pattern=(block,), embeddings=embeddings)
        how = spec.Initialization(std=0.5)
        return build(
            spec.Transformer(decoder=stack, head=spec.LanguageModelHead(), initialization=how), seed=seed
        ).eval()

    model, settings = learned(24, 0), Settings(max_new_tokens=99)
    prompts = Prompts(*left_padded([[1, 2, 3, 4, 5], [6]], 0, "cpu"))
    for size in (24, 12, 5):
        for draft in (learned(size, 1), model):
            found = speculatively(model, prompts, settings, draft=draft)
            assert found == plainly(model, prompts, settings)
    assert len(found[0]) == 20


def test_a_constraint_holds_for_what_is_proposed() -> None:
    """Greedily, what plain decoding says under the same constraint; drawn, answers that match."""
    tokenizer, model = text.byte_level(), small(0, 300)
    prompts = Prompts(torch.tensor([list(b"abc abd abc ab"), list(b"0123 0123 0123")]))
    for draft in (None, small(1, 300)):
        settings = Settings(regex="(abc|abd| ){3,9}", eos=256, max_new_tokens=40, prompt_lookup=6)
        found = [
            how(model, prompts, settings, constraint_of(settings, tokenizer, 2), **more)
            for how, more in ((plainly, {}), (speculatively, {"draft": draft}))
        ]
        assert found[0] == found[1]
        settings = settings.model_copy(update={"temperature": 1.0, "seed": 0})
        drawn = speculatively(model, prompts, settings, constraint_of(settings, tokenizer, 2), draft=draft)
        for row in drawn:
            answer = tokenizer.decode(until_end(row, [256]))
            assert 256 in row and set(answer.replace("abc", "").replace("abd", "")) <= {" "} and len(answer) >= 3


@given(
    st.lists(st.integers(0, 3), max_size=6),
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=5),
    st.integers(0, 6),
)
@example([], [[1, 1, 1]], 5)
@example([0, 1, 2], [[0, 1]], 4)
def test_lookup_finds_the_latest_of_the_longest_matches(source: list[int], parts: list[list[int]], count: int) -> None:
    """As a search through the whole text does, however it grew."""
    past, text = Past(source), []
    for part in parts:
        text += part
        whole = source + text
        wanted: list[int] = []
        for length in range(min(LONGEST_MATCH, len(whole)), 0, -1):
            ends = [end for end in range(length, len(whole)) if whole[end - length : end] == whole[-length:]]
            if ends:
                repeated = whole[ends[-1] :] * (count + 1)
                wanted = repeated[:count]
                break
        assert past.follow(text, count) == wanted


def test_generate_takes_a_draft_or_looks_up() -> None:
    """Texts and ids, answers and streams, stop strings and several draws: what plain decoding gives, and a tally."""
    model, draft = small(0, 300), small(2, 300)
    model.tokenizer = draft.tokenizer = text.byte_level()
    prompts, tally = ["ab ab ab", "x"], Tally()
    for how in ({"draft": draft}, {"prompt_lookup": 4}):
        for more in ({}, {"stop": model.generate(prompts, max_new_tokens=12)[0][3:5] or "ab"}):
            plain = {"max_new_tokens": 12, **more}
            assert model.generate(prompts, **plain, **how, tally=tally) == model.generate(prompts, **plain)
            answers, wanted = model.answers(prompts, **plain, **how), model.answers(prompts, **plain)
            assert [(each.ids, each.reason) for each in answers] == [(each.ids, each.reason) for each in wanted]
            assert answers[0].logprobs == pytest.approx(wanted[0].logprobs, abs=1e-5)
            assert "".join(model.stream(prompts[0], **plain, **how)) == model.generate(prompts, **plain)[0]
        ids = torch.tensor([[1, 2, 3]])
        assert model.generate(ids, max_new_tokens=5, **how).equal(model.generate(ids, max_new_tokens=5))
        assert len(model.generate(prompts, temperature=1.0, answers=3, max_new_tokens=5, **how)) == 6
    assert tally.passes and tally.proposed >= tally.accepted and tally.said >= 48


def test_what_cannot_speculate_is_said() -> None:
    """A draft of another vocabulary, shape or size; a search; two proposers at once; a cache that goes on."""
    model, other, longer = small(0, 300), small(1, 300), small(1, 301)
    ids = torch.tensor([[1, 2]])
    with pytest.raises(
        InputError, match="the draft knows 301 tokens, the model 300, and without tokenizers none can be"
    ):
        model.generate(ids, draft=longer)
    model.tokenizer, longer.tokenizer = text.byte_level(), text.byte_level()
    assert model.generate(ids, draft=longer, max_new_tokens=5).equal(model.generate(ids, max_new_tokens=5))
    other.tokenizer = text.train_bpe(["some text to train with, of some length, and some more text"], 280)
    with pytest.raises(InputError, match=r"the draft does not share the model's vocabulary: token 0 is .* the same"):
        model.generate(ids, draft=other)
    with pytest.raises(InputError, match="the draft is of shape encoder-decoder, the model decoder; take another"):
        model.generate(ids, draft=odd(0, "encoder-decoder"))
    with pytest.raises(InputError, match=r"a draft is a model, not a str; load it: draft=af.load\(...\)"):
        model.generate(ids, draft="smaller")  # type: ignore[call-overload]
    with pytest.raises(InputError, match="and a search weighs several: give no draft"):
        model.generate(ids, draft=longer, beams=2)
    with pytest.raises(InputError, match="give no draft, or set prompt_lookup=0"):
        model.generate(ids, draft=longer, prompt_lookup=3)
    with pytest.raises(InputError, match="only one token after another can be guessed: set prompt_lookup to 0"):
        model.generate(ids, prompt_lookup=3, beams=2)
    with pytest.raises(InputError, match="only prompt lookup continues a cache, and that of one row; give no draft"):
        list(model.stream("a", cache=model.new_cache(1), draft=longer))
    with pytest.raises(InputError, match="only prompt lookup continues a cache, and that of one row; give no draft"):
        list(model.stream(["a", "b"], cache=model.new_cache(2), prompt_lookup=3))
