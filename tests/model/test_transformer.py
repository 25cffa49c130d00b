"""The contract of a whole model: however an answer is asked for, it is the same answer."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from odd_specs import odd_model
from torch import Tensor

from anyformer import spec
from anyformer.errors import InputError
from anyformer.model import Transformer, build
from anyformer.parts import kernels
from anyformer.parts.kernels import native

VOCABULARY = 37
SHAPES = ["encoder", "decoder", "encoder-decoder"]
BOTH = [("encoder", None), ("decoder", None), ("encoder-decoder", 5)]


def odd(seed: int | str, shape: str, dtype: torch.dtype = torch.float64) -> Transformer:
    """A random model."""
    return build(odd_model(random.Random(f"{seed} {shape}"), shape), dtype=dtype, seed=0).eval()


def drawn_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def gradients(model: Transformer, loss: Tensor) -> list[Tensor]:
    """Of every parameter, zeros where there is none."""
    return list(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True))


def assert_close(found: Any, wanted: Any, atol: float = 1e-10) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=0, atol=atol), float((a - b).detach().abs().max())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_says_what_its_rows_say_alone(shape: str) -> None:
    """30 models: rows of different lengths padded on the left, on the right or anywhere, sources too, give the logits
    and the hidden states that each row gives by itself."""
    with torch.no_grad():
        for seed in range(30):
            draw, model = random.Random(seed), odd(seed, shape)
            rows, T, S = 3, draw.randint(2, 12), 6
            tokens, sources = (
                drawn_ids(rows, T),
                drawn_ids(rows, S, seed=1) if model.encoder and model.decoder else None,
            )
            padded = padding(draw, rows, T)
            source_valid = padding(draw, rows, S) if sources is not None else None
            out = model(tokens, valid=padded, source=sources, source_valid=source_valid)
            for row in range(rows):
                alone_source = None
                if sources is not None and source_valid is not None:
                    alone_source = sources[row : row + 1, source_valid[row]]
                alone = model(tokens[row : row + 1, padded[row]], source=alone_source)
                assert_close(
                    (out.logits[row, padded[row]], out.hidden[row, padded[row]]), (alone.logits[0], alone.hidden[0])
                )


def padding(draw: random.Random, rows: int, T: int) -> Tensor:
    """Which tokens are real, at least one a row."""
    valid = torch.zeros(rows, T, dtype=torch.bool)
    for row in range(rows):
        n, how = draw.randint(1, T), draw.choice(["left", "right", "holes"])
        where = {"left": range(T - n, T), "right": range(n), "holes": sorted(draw.sample(range(T), n))}[how]
        valid[row, list(where)] = True
    return valid


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["lengths", "ids"])
def test_packed_documents_say_and_learn_what_they_do_apart(shape: str, form: str) -> None:
    """25 models: documents packed into rows give each document's own logits; and the loss over a packed batch, and its
    gradient for every parameter, are those of the documents one by one, weighted by their targets."""
    for seed in range(25):
        draw, model = random.Random(seed), odd(seed, shape)
        lengths = (tuple(draw.choice([(4, 1, 6), (11,), (5, 6), (1, 1, 9)])), (3, 8))
        tokens, targets = drawn_ids(2, 11), drawn_ids(2, 11, seed=1)
        targets[0, 2:4] = -100
        source_lengths = tuple(tuple(draw.randint(1, 3) for _ in row) for row in lengths)
        sources: Tensor | None = None
        how: dict[str, Any] = {}
        if model.encoder is not None and model.decoder is not None:
            widest = max(sum(row) for row in source_lengths)
            source_lengths = tuple((*row[:-1], row[-1] + widest - sum(row)) for row in source_lengths)
            sources = drawn_ids(2, widest, seed=2)
            how["source_documents"] = source_lengths if form == "lengths" else as_ids(source_lengths)
        how["documents"] = lengths if form == "lengths" else as_ids(lengths)
        out = model(tokens, source=sources, targets=targets, **how)
        together = gradients(model, out.loss)
        logits = model(tokens, source=sources, **how).logits
        total, count = torch.zeros((), dtype=torch.float64), 0
        for row in range(2):
            at = source_at = 0
            for length, source_length in zip(lengths[row], source_lengths[row], strict=True):
                piece, source_piece = slice(at, at + length), slice(source_at, source_at + source_length)
                source = None if sources is None else sources[row : row + 1, source_piece]
                alone = model(tokens[row : row + 1, piece], source=source, targets=targets[row : row + 1, piece])
                said = model(tokens[row : row + 1, piece], source=source).logits
                assert_close(logits[row, piece], said[0])
                total, count = total + alone.loss * alone.target_count, count + int(alone.target_count)
                at, source_at = at + length, source_at + source_length
        assert count == int(out.target_count) == int((targets != -100).sum())
        assert_close([out.loss], [total / count])
        assert_close(together, gradients(model, total / count))


def as_ids(lengths: tuple[tuple[int, ...], ...]) -> Tensor:
    """The same documents as an id a token."""
    return torch.tensor([[index for index, n in enumerate(row) for _ in range(n)] for row in lengths])


def test_documents_may_be_padded() -> None:
    """Lengths or ids with padding: what is real says what it says alone."""
    for seed in range(15):
        model = odd(seed, "encoder")
        tokens = drawn_ids(1, 9)
        valid = torch.tensor([[True, True, True, False, True, True, True, True, False]])
        for documents in (((4, 5),), as_ids(((4, 5),))):
            with torch.no_grad():
                found = model(tokens, documents=documents, valid=valid).logits
                wanted = [model(tokens[:, :3]).logits, model(tokens[:, 4:8]).logits]
            assert_close([found[:, :3], found[:, 4:8]], wanted)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kernel_gives_the_same_model(shape: str) -> None:
    """Each that can serve, by name, forward and backward, with padding and without."""
    for seed in range(12):
        model = odd(seed, shape)
        source = drawn_ids(2, 6, seed=1) if shape == "encoder-decoder" else None
        valid = padding(random.Random(seed), 2, 12) if seed % 2 else None
        tokens = drawn_ids(2, 12)

        def outcome(
            model: Transformer = model, source: Any = source, valid: Any = valid, tokens: Tensor = tokens
        ) -> list[Tensor]:
            out = model(tokens, source=source, valid=valid, targets=tokens)
            return [out.loss, *gradients(model, out.loss)]

        with kernels.use("reference"):
            wanted = outcome()
        for name in ("auto", "sdpa", "online", "banded"):
            with kernels.use(name, fall_back=True):
                assert_close(outcome(), wanted, 1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_projections_fused_or_not_give_the_same(shape: str) -> None:
    """Without gradients several projections are one product: the same logits as with."""
    for seed in range(10):
        model = odd(seed, shape)
        source = drawn_ids(2, 6, seed=1) if shape == "encoder-decoder" else None
        apart = model(drawn_ids(2, 8), source=source).logits
        with torch.no_grad():
            assert_close([model(drawn_ids(2, 8), source=source).logits], [apart])
        with torch.inference_mode():
            assert_close([model(drawn_ids(2, 8), source=source).logits], [apart])


@pytest.mark.parametrize("shape", SHAPES)
def test_every_parameter_learns(shape: str) -> None:
    """None is left without a gradient, in any of 40 models. Two kinds have none by arithmetic: a key's bias, which
    cancels in the softmax, and a router whose one chosen expert gets all of the weight."""
    for seed in range(40):
        model = odd(seed, shape)
        tokens = drawn_ids(4, 20)
        source = drawn_ids(4, 6, seed=1) if shape == "encoder-decoder" else None
        segments = None
        if model.output_stack.embeddings.segments is not None:
            segments = tokens % 2
        loss = model(tokens, source=source, segments=segments, targets=drawn_ids(4, 20, seed=2)).loss
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, (seed, name)
            if not name.endswith(("key.bias", "router.weight")):
                assert parameter.grad.any(), (seed, name)


def seen(model: Transformer, T: int, **how: Any) -> Tensor:
    """[T, T]: whether the hidden state at t changes with the token at s."""
    tokens = drawn_ids(1, T)
    with torch.no_grad():
        before = model(tokens, **how).hidden
        found = torch.zeros(T, T, dtype=torch.bool)
        for s in range(T):
            changed = tokens.clone()
            changed[0, s] = (changed[0, s] + 1) % VOCABULARY
            found[:, s] = (model(changed, **how).hidden != before).any(-1)[0]
    return found


def one_layer(visibility: str, window: Any = None, where: str = "decoder") -> Transformer:
    """One attention, so that who sees whom is who hears of whom."""
    attention = spec.Attention(heads=2, kv_heads=2, head_dim=4, visibility=visibility, window=window)
    block = spec.Block(branches=(spec.Branch(mixer=attention, norm=None),))
    stack = spec.Stack(dim=8, depth=1, pattern=(block,), embeddings=spec.Embeddings(vocabulary=VOCABULARY))
    whole = spec.Transformer(**{where: stack}, head=spec.EmbeddingHead(), initialization=spec.Initialization(std=0.5))
    return build(whole, dtype=torch.float64, seed=0).eval()


def test_tokens_hear_of_those_that_they_may_see() -> None:
    """By changing one token at a time: causal, windows either way, full, prefixes, documents."""
    t, s = torch.arange(7)[:, None], torch.arange(7)
    assert torch.equal(seen(one_layer("causal"), 7), s <= t)
    assert torch.equal(seen(one_layer("full", where="encoder"), 7), s >= 0 * t)
    assert torch.equal(seen(one_layer("causal", (3, None)), 7), (s <= t) & (t - s < 3))
    assert torch.equal(seen(one_layer("full", (2, 3), "encoder"), 7), (t - s < 2) & (s - t < 3))
    for prefix in range(8):
        found = seen(one_layer("prefix"), 7, prefix=torch.tensor([prefix]))
        assert torch.equal(found, (s <= t) | (s < prefix))
    windowed = seen(one_layer("prefix", (2, None)), 7, prefix=torch.tensor([5]))
    assert torch.equal(windowed, ((s <= t) | (s < 5)) & (t - s < 2))
    assert torch.equal(seen(one_layer("prefix"), 7), s <= t), "without a prefix it is causal"
    first = (s < 3) == (t < 3)
    assert torch.equal(seen(one_layer("causal"), 7, documents=((3, 4),)), (s <= t) & first)
    assert torch.equal(seen(one_layer("full", None, "encoder"), 7, documents=((3, 4),)), first)


def test_prefixes_differ_by_row() -> None:
    """Each row has its own, long rows in windows included."""
    model = one_layer("prefix", (20, 4))
    tokens = drawn_ids(2, 150)
    with torch.no_grad():
        both = model(tokens, prefix=torch.tensor([3, 90])).hidden
        for row, prefix in enumerate((3, 90)):
            alone = model(tokens[row : row + 1], prefix=torch.tensor([prefix])).hidden
            assert_close([both[row]], [alone[0]])
            with kernels.use("reference"):
                assert_close([model(tokens[row : row + 1], prefix=torch.tensor([prefix])).hidden[0]], [alone[0]])


def test_positions_may_be_given() -> None:
    """Counted from anywhere: what is relative does not change, what is absolute reads the table there."""
    torch.manual_seed(0)
    tokens, shifted = drawn_ids(1, 6), torch.arange(6)[None] + 1000
    for seed in range(20):
        model = odd(seed, "decoder")
        position = model.spec.output.embeddings.position
        with torch.no_grad():
            plain, given = model(tokens).logits, model(tokens, positions=torch.arange(6)[None]).logits
            assert_close([given], [plain])
            if position is None:
                assert_close([model(tokens, positions=shifted).logits], [plain], 1e-5)
            elif isinstance(position, spec.Sinusoidal):
                assert not torch.allclose(model(tokens, positions=shifted).logits, plain)
            else:
                with pytest.raises(InputError, match="reaches position 1006, but the model has learned 64"):
                    model(tokens, positions=shifted)


def test_the_loss_is_the_mean_over_targets() -> None:
    """In nats, over those that are not -100, as float32 for a float32 model; logits are not kept."""
    model = odd(0, "decoder", torch.float32)
    tokens, targets = drawn_ids(2, 9), drawn_ids(2, 9, seed=1)
    targets[1, 4:] = -100
    out, logits = model(tokens, targets=targets), model(tokens).logits
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    assert out.logits is None and out.loss.dtype == torch.float32
    assert torch.allclose(out.loss, wanted) and int(out.target_count) == 13
    half = odd(0, "decoder", torch.bfloat16)(tokens, targets=targets).loss
    assert half.dtype == torch.float32 and torch.allclose(half, wanted, rtol=0.05)


def test_the_last_logits_alone() -> None:
    """Only what the next token needs."""
    model = odd(1, "decoder")
    assert_close([model(drawn_ids(2, 5), last=True).logits], [model(drawn_ids(2, 5)).logits[:, -1:]])


def test_balance_losses_add_up_and_leave_padding_out() -> None:
    """Two layers of experts hand up two losses; the same batch with padding around it hands up the same."""
    experts = spec.MixtureOfExperts(experts=4, top_k=2, hidden=8, balance=0.1)
    block = spec.Block(branches=(spec.Branch(mixer=experts, norm=spec.Norm(kind="rms")),))
    stack = spec.Stack(dim=8, depth=2, pattern=(block,), embeddings=spec.Embeddings(vocabulary=VOCABULARY))
    model = build(spec.Transformer(decoder=stack, head=spec.LanguageModelHead()), dtype=torch.float64, seed=0)
    tokens = drawn_ids(2, 5)
    plain = model(tokens, targets=tokens).auxiliary_loss
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), tokens), 1)
    out = model(padded, valid=torch.arange(8).expand(2, 8) >= 3)
    assert_close([out.auxiliary_loss], [plain])
    assert 0.15 < float(plain.detach()) < 0.5
    model.eval()
    assert model(tokens).auxiliary_loss == 0.0


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_near_float32(shape: str) -> None:
    """Within five percent of the largest logit, for weights that are the same numbers, by torch's own products: of more
    rows than are few."""
    rows = native.FEW // 2 + 1
    for seed in range(10):
        half = odd(seed, shape, torch.bfloat16)
        if has_experts(half):
            continue
        whole = build(half.spec, dtype=torch.float32).eval()
        whole.load_state_dict(half.float().state_dict())
        half.bfloat16()
        source = drawn_ids(2, rows, seed=1) if shape == "encoder-decoder" else None
        with torch.no_grad():
            wanted, found = (model(drawn_ids(2, rows), source=source).logits for model in (whole, half))
        assert found.dtype == torch.bfloat16
        assert (found.float() - wanted).abs().max() <= 0.05 * wanted.abs().max()


def test_bfloat16_of_few_rows_is_as_near_float32() -> None:
    """The native kernels round no more than torch's operations do: over many models, whose errors vary tenfold, the
    middle one is no larger."""
    errors: dict[str, list[float]] = {"native": [], "torch": []}
    for seed in range(24):
        half = odd(seed, "encoder-decoder", torch.bfloat16)
        if has_experts(half):
            continue
        whole = build(half.spec, dtype=torch.float32).eval()
        whole.load_state_dict(half.float().state_dict())
        half.bfloat16()
        source, tokens = drawn_ids(1, 6, seed=1), drawn_ids(1, 7)
        for name, found in errors.items():
            with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
                if name == "torch":
                    patch.setattr(native, "fits", lambda x: False)
                wanted, given = (model(tokens, source=source).logits for model in (whole, half))
            found.append(float((given.float() - wanted).abs().max() / wanted.abs().max()))
    assert (
        sorted(errors["native"])[len(errors["native"]) // 2] <= 1.2 * sorted(errors["torch"])[len(errors["torch"]) // 2]
    )
    assert errors["native"] != errors["torch"], "the native kernels were not asked"


def has_experts(model: Transformer) -> bool:
    """A rounded router may choose another expert."""
    return any("experts" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("shape", SHAPES)
def test_autocast_is_near_float32(shape: str) -> None:
    """Every kernel, forward and backward, and cached: products in bfloat16, the rest as it was."""
    tokens = drawn_ids(2, 9)
    source = tokens if shape == "encoder-decoder" else None
    for seed in range(12):
        model = odd(seed, shape, torch.float32)
        wanted = model(tokens, source=source).logits
        for name in ("auto", "reference", "online", "sdpa"):
            with torch.autocast("cpu", torch.bfloat16), kernels.use(name, fall_back=True):
                found, loss = model(tokens, source=source).logits, model(tokens, source=source, targets=tokens).loss
                if model.decoder is not None:
                    cache = model.new_cache(2)
                    model(tokens[:, :5], source=source, cache=cache)
                    last = model(tokens[:, 5:], cache=cache).logits
            assert all(gradient.isfinite().all() for gradient in gradients(model, loss))
            if not has_experts(model):
                assert (found.float() - wanted).abs().max() <= 0.1 * wanted.abs().max(), (seed, name)
                if model.decoder is not None:
                    assert (last.float() - wanted[:, 5:]).abs().max() <= 0.1 * wanted.abs().max(), (seed, name)


def test_a_compiled_model_is_the_same_model() -> None:
    """One graph without breaks, forward and backward; with padding and without; with a source."""
    torch._dynamo.reset()
    decoder, both = odd(1, "decoder", torch.float32), odd(4, "encoder-decoder", torch.float32)
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    tokens = drawn_ids(2, 8)
    for valid in (None, torch.arange(8).expand(2, 8) >= 2):
        wanted, found = (model(tokens, valid=valid, targets=tokens).loss for model in (decoder, compiled))
        assert_close([found], [wanted], 1e-5)
        assert_close(gradients(decoder, found), gradients(decoder, wanted), 1e-5)
    crossed = torch.compile(both, fullgraph=True, backend="eager")
    assert_close([crossed(tokens, source=tokens).logits], [both(tokens, source=tokens).logits], 1e-5)


def test_what_was_refused_has_not_touched_the_cache() -> None:
    """An id outside the vocabulary at the first call: the same cache takes the corrected one."""
    model, ids = odd(3, "encoder-decoder"), drawn_ids(1, 4)
    cache = model.new_cache(1)
    with pytest.raises(InputError, match="outside the vocabulary"):
        model(ids * 0 + 99, source=ids, cache=cache)
    with torch.no_grad():
        assert_close([model(ids, source=ids, cache=cache).logits], [model(ids, source=ids).logits])


def test_input_that_does_not_fit_is_refused_in_a_sentence() -> None:
    """What is wrong and what to do."""
    decoder, encoder, both = (odd(7, shape) for shape in ("decoder", "encoder", "encoder-decoder"))
    ids = drawn_ids(2, 4)
    with pytest.raises(InputError, match=r"tokens must be \[B, T\], not \[4\]; add the batch dimension"):
        decoder(ids[0])
    with pytest.raises(InputError, match="token id 99 is outside the vocabulary of 37"):
        decoder(ids * 0 + 99)
    for documents in (((4,),), ((4,), (3,)), ((2, 2), (4, 1))):
        with pytest.raises(InputError, match="documents must give lengths that sum to 4 for each of the 2 rows"):
            decoder(ids, documents=documents)
    with pytest.raises(InputError, match="this model is a decoder; only an encoder-decoder takes a source"):
        decoder(ids, source=ids)
    with pytest.raises(InputError, match="this model is an encoder; only an encoder-decoder takes a source"):
        encoder(ids, source=ids)
    with pytest.raises(InputError, match="an encoder-decoder needs source="):
        both(ids)
    with pytest.raises(InputError, match=r"this model has no tokenizer; set .*, or hand generate a tensor"):
        decoder.generate(["text"])
    with pytest.raises(InputError, match="takes a list of texts or a tensor"):
        decoder.generate(None)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="takes a list of texts"):
        decoder.generate("text")
    with pytest.raises(InputError, match=r"or a tensor of ids \[B, T\]; make one"):
        decoder.generate([[1, 2]])
    with pytest.raises(InputError, match="takes a list of texts"):
        encoder.embed("text")
    for targets in (ids[:, :3], ids[0], ids[0, 0]):
        with pytest.raises(InputError, match=r"targets must be \[2, 4\] for this head, not \["):
            decoder(ids, targets=targets)
    for wrong in (37, -1):
        with pytest.raises(InputError, match=f"target {wrong} is none of the 37 that this head knows"):
            decoder(ids, targets=torch.tensor([[1, -100, wrong, 2], [0, 0, 0, 0]]))
    with pytest.raises(InputError, match="the source has 1 rows, but the tokens have 2"):
        both(ids, source=ids[:1])
    for name in ("valid", "documents", "positions", "segments"):
        with pytest.raises(InputError, match=rf"{name} must be \[2, 4\] to fit the tokens, not \[2, 3\]"):
            decoder(ids, **{name: torch.ones(2, 3, dtype=torch.bool if name == "valid" else torch.long)})
    with pytest.raises(InputError, match=r"prefix must be \[2\] to fit the tokens, not \[1\]"):
        decoder(ids, prefix=torch.ones(1, dtype=torch.long))
    with pytest.raises(InputError, match="there are no tokens to read; give at least one"):
        decoder(ids[:, :0])
    for wrong in (ids.float(), ids.bool()):
        with pytest.raises(InputError, match="tokens must be integer ids, not torch"):
            decoder(wrong)
    with pytest.raises(InputError, match=r"valid must be bool, not torch\.int64"):
        decoder(ids, valid=torch.ones(2, 4, dtype=torch.long))
    with pytest.raises(InputError, match=r"valid must be bool, not torch\.int64"):
        both(ids, source=ids, source_valid=torch.ones(2, 4, dtype=torch.long))
    with pytest.raises(InputError, match=r"documents must be integers, not torch\.bool"):
        decoder(ids, documents=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(InputError, match="documents must give lengths that sum to 4"):
        decoder(ids, documents=((5, -1), (4,)))
