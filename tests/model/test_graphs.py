"""Steps that are recorded on a device and replayed say what a pass without a cache says.

Without a GPU a stand-in takes the place of the graph, which keeps the operations and the tensors that they work on, and
nothing else of what the host knew. What only a GPU can show is marked `gpu`."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from odd_specs import odd_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from anyformer import families, spec
from anyformer.model import Transformer, build, graphs, recording
from anyformer.parts import kernels, positions
from anyformer.parts.cache import Cache

VOCABULARY = 37
gpu = pytest.mark.gpu
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here to record on")


class Tape(TorchDispatchMode):
    """Notes torch's operations as they are made. What would wait for a device fails."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Any, Any, Any, Any]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("the host reads a number")
        out = func(*args, **(kwargs or {}))
        self.made.append((func, args, kwargs or {}, out))
        return out

    def play(self, last: Tensor) -> Tensor:
        """Make them again; what then stands where `last` stood."""
        now: dict[int, Any] = {}

        def current(given: Any) -> Any:
            return now.get(id(given), given)

        for func, args, kwargs, before in self.made:
            args, kwargs = tree_map(current, (args, kwargs))
            after = func(*args, **kwargs)
            pairs = zip(tree_leaves(before), tree_leaves(after), strict=True)
            now.update((id(old), new) for old, new in pairs if old is not None)
        return now[id(last)]


class Taped:
    """A stand-in for a graph: the operations as they were made once, made again on the same tensors. Numbers that the
    host had are burned in, as they are on a GPU."""

    made: ClassVar[list[Taped]] = []

    def __init__(self, device: torch.device) -> None:
        self.replays = 0
        Taped.made.append(self)

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        work()
        with Tape() as self.tape:
            self.last = work()
        self.out = self.last.clone()
        return self.out

    def replay(self) -> None:
        self.replays += 1
        self.out.copy_(self.tape.play(self.last))

    @property
    def operations(self) -> set[str]:
        """By name."""
        return {func.name() for func, *_ in self.tape.made}


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs record as GPUs do, in small buckets, and not as CPUs do; and are told constants once."""
    monkeypatch.setitem(graphs.GRAPHS, "cpu", Taped)
    monkeypatch.setattr(graphs, "LEAST", 8)
    monkeypatch.setattr(recording, "recordable", lambda *_: False)
    monkeypatch.setattr(positions, "constants", positions._kept)
    monkeypatch.setattr(Taped, "made", [])


def odd(seed: str, shape: str) -> Transformer:
    return build(odd_model(random.Random(seed), shape), dtype=torch.float64, seed=0).eval()


def drawn(*shape: int, seed: int = 0, vocabulary: int = VOCABULARY) -> Tensor:
    return torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def follow(model: Transformer, draw: random.Random) -> Cache:
    """A ragged prompt, and then steps of one token, some of them taken back, rows reordered once: after each, the
    logits are those of a pass without a cache."""
    rows, longest, steps = draw.randint(1, 3), draw.randint(1, 6), draw.randint(6, 14)
    rest: dict[str, Tensor] = {}
    if model.encoder is not None:
        valid = torch.tensor([[index < draw.randint(1, 6) or index == 0 for index in range(6)] for _ in range(rows)])
        rest = {"source": drawn(rows, 6, seed=1), "source_valid": valid}
    lengths = [draw.randint(1, longest) if draw.random() < 0.7 else longest for _ in range(rows)]
    told = [[draw.randrange(VOCABULARY) for _ in range(length)] for length in lengths]
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in told])
    valid = torch.tensor([[t >= longest - length for t in range(longest)] for length in lengths])
    cache = model.new_cache(rows, capacity=draw.choice([None, longest + steps]), margin=2)
    model(ids, cache=cache, valid=None if bool(valid.all()) else valid, **rest)
    for step in range(steps):
        new = [draw.randrange(VOCABULARY) for _ in range(rows)]
        told = [[*row, token] for row, token in zip(told, new)]
        found = model(torch.tensor(new)[:, None], cache=cache).logits
        wanted = [
            model(torch.tensor([row]), **{k: v[i : i + 1] for k, v in rest.items()}) for i, row in enumerate(told)
        ]
        for row, each in zip(found, wanted, strict=True):
            assert torch.allclose(row[-1], each.logits[0, -1], rtol=0, atol=1e-10), step
        if step % 5 == 4 and min(map(len, told)) > 2:
            told = [row[: len(row) - draw.randint(0, 2)] for row in told]
            cache.truncate([len(row) for row in told])
        if step == 7:
            order = [draw.randrange(rows) for _ in range(rows)]
            cache.reorder(torch.tensor(order))
            told, rest = [list(told[row]) for row in order], {name: each[order] for name, each in rest.items()}
    return cache


@pytest.mark.parametrize("kernel", ["auto", "sdpa"])
@pytest.mark.parametrize("shape", ["decoder", "encoder-decoder"])
def test_replayed_steps_of_random_models(on_cpu: None, shape: str, kernel: str) -> None:
    """5 models of each shape: windows (rings), heads in groups, every kind of position, ALiBi, relative buckets,
    sinks, soft caps, experts, padded sources; ragged rows, with a capacity and without, taken back and reordered:
    logits within 1e-10, by the kernel of CPUs and by the one of GPUs; and nearly all steps are replayed."""
    with torch.no_grad(), kernels.use(kernel, fall_back=True):
        for seed in range(5):
            name = f"graphs {shape} {seed}"
            cache = follow(odd(name, shape), random.Random(name))
            assert graphs.why_not(cache) is None
    assert sum(graph.replays for graph in Taped.made) > 5 * 2
    # Nothing in them comes from the host.
    assert not {name for graph in Taped.made for name in graph.operations if "lift" in name}


LLAMA = families.llama("tiny", vocab_size=VOCABULARY)
MODELS: dict[str, spec.Transformer] = {
    "llama": LLAMA,
    "gemma2": families.gemma2("tiny", vocab_size=VOCABULARY),
    "bloom": families.bloom("tiny", vocab_size=VOCABULARY),
    "t5": families.t5("tiny", vocab_size=VOCABULARY),
    "mixtral": families.mixtral("tiny", vocab_size=VOCABULARY),
    "deepseek_v3": families.deepseek_v3("tiny", vocab_size=VOCABULARY),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_generated_is_the_same(request: pytest.FixtureRequest, name: str) -> None:
    """Greedy and drawn tokens of a ragged batch, in float32: recorded as on a GPU, and as ever."""
    model = build(MODELS[name], seed=0).eval()
    valid = torch.tensor([[index >= gap for index in range(9)] for gap in (0, 4, 7)])
    settings = [{"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9, "seed": 3}]
    given = {"max_new_tokens": 20, "start": 1, "eos": ()}
    ids = drawn(3, 9)
    before = [model.generate(ids, valid=valid, **given, **each) for each in settings]
    request.getfixturevalue("on_cpu")
    after = [model.generate(ids, valid=valid, **given, **each) for each in settings]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    # Per answer: one step is too few, and two buckets are outgrown, of which each step but one replays.
    assert sum(graph.replays for graph in Taped.made) >= 2 * 12


def test_keys_in_8_bits(request: pytest.FixtureRequest) -> None:
    """They are rounded within the recorded step as they are without one: logits within 1e-4 of each other."""
    model, ids = build(LLAMA, seed=0).eval(), drawn(2, 20)

    def logits() -> Tensor:
        with torch.no_grad():
            cache = model.new_cache(2, quantize="int8")
            return torch.cat([model(part, cache=cache).logits for part in ids.split([4, *[1] * 16], 1)], 1)

    before = logits()
    request.getfixturevalue("on_cpu")
    assert torch.allclose(logits(), before, rtol=0, atol=1e-4)
    assert sum(graph.replays for graph in Taped.made) == 15


def test_angles_that_follow_the_length(on_cpu: None) -> None:
    """With LongRoPE and with dynamic NTK, steps are replayed as long as the angles stay what they were."""
    scalings = [
        spec.LongRopeScaling(factor=4.0, original_context=12, short=(1.0, 1.5), long=(2.0, 4.0)),
        spec.DynamicScaling(factor=2.0, original_context=12),
    ]
    ids = drawn(2, 30)
    for scaling in scalings:
        attention = spec.Attention(
            heads=2, kv_heads=1, head_dim=4, visibility="causal", position=spec.Rotary(scaling=scaling)
        )
        block = spec.Block(branches=(spec.Branch(mixer=attention, norm=spec.Norm(kind="rms")),))
        stack = spec.Stack(dim=8, depth=2, pattern=(block,), embeddings=spec.Embeddings(vocabulary=VOCABULARY))
        model = build(spec.Transformer(decoder=stack, head=spec.LanguageModelHead()), dtype=torch.float64).eval()
        Taped.made.clear()
        with torch.no_grad():
            cache = model.new_cache(2)
            for at in range(30):
                found = model(ids[:, at : at + 1], cache=cache).logits
                wanted = model(ids[:, : at + 1]).logits
                assert torch.allclose(found[:, -1], wanted[:, -1], rtol=0, atol=1e-10), at
        assert Taped.made


def test_a_step_that_waits_for_the_device_runs_as_ever(
    on_cpu: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried once, the reason is kept, and what comes out is right."""
    caplog.set_level("DEBUG", "anyformer")
    model = build(LLAMA, dtype=torch.float64, seed=0).eval()
    layer = model.output_stack.layers[0]
    plain, ids = layer.forward, drawn(1, 12)
    tries = []

    def waits(x: Tensor, *rest: object) -> Tensor:
        out = plain(x, *rest)
        tries.append(bool(out.isfinite().all()))
        return out

    monkeypatch.setattr(layer, "forward", waits)
    with torch.no_grad():
        cache = model.new_cache(1)
        found = [model(token, cache=cache).logits for token in ids.split(1, 1)]
        wanted = model(ids).logits
    assert torch.allclose(torch.cat(found, 1), wanted, rtol=0, atol=1e-10)
    assert len(Taped.made) == 1 and (reason := graphs.why_not(cache))
    assert reason in caplog.text, "it is said where anybody asks for it (--debug)"
    assert len(tries) <= 12 + 2 + 1


def test_a_hook_sees_every_step(on_cpu: None) -> None:
    """Steps that somebody watches are not replayed, and are again once nobody does."""
    model = build(LLAMA, seed=0).eval()
    seen: list[int] = []
    with torch.no_grad():
        cache = model.new_cache(1)
        model(drawn(1, 5), cache=cache)
        model.generate(drawn(1, 3), max_new_tokens=4, eos=())
        for at in range(8):
            handle = None
            if at in (0, 1, 4):
                handle = model.output_stack.layers[1].register_forward_hook(lambda *_, at=at: seen.append(at))
            model(drawn(1, 1), cache=cache)
            if handle is not None:
                handle.remove()
    assert seen == [0, 1, 4]


def test_a_bucket_wastes_little() -> None:
    """It holds what it must, at most a quarter more or the smallest, and few serve a long text."""
    sizes = [graphs.bucket(length) for length in range(1, 1 << 15)]
    assert all(0 <= size - length < max(graphs.LEAST, length / 4 + 1) for length, size in enumerate(sizes, 1))
    assert all(size % graphs.LEAST == 0 for size in sizes) and len(set(sizes)) <= 30
    assert graphs.bucket(700, capacity=701) == 701


@gpu
@no_gpu
@pytest.mark.parametrize("name", MODELS)
def test_a_gpu_replays_what_it_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy tokens of a ragged batch on a GPU are those of the same steps made there one by one, and of the CPU; and
    300 of them go through more than one bucket."""
    model = build(MODELS[name], seed=0).eval()
    valid = torch.tensor([[index >= gap for index in range(9)] for gap in (0, 4, 7)])
    ids, given = drawn(3, 9), {"start": 1, "eos": ()}
    by_cpu = model.generate(ids, valid=valid, max_new_tokens=40, **given)
    model = model.to("cuda")
    replayed = model.generate(ids, valid=valid.cuda(), max_new_tokens=300, **given)
    monkeypatch.setattr(graphs, "GRAPHS", {})
    one_by_one = model.generate(ids, valid=valid.cuda(), max_new_tokens=40, **given)
    assert replayed.shape == (3, 300)
    assert torch.equal(replayed[:, :40].cpu(), by_cpu) and torch.equal(one_by_one.cpu(), by_cpu)


@gpu
@no_gpu
def test_a_gpu_is_not_waited_for() -> None:
    """A replayed step of a LLaMA raises nothing where any wait is an error, and was recorded."""
    model = build(LLAMA, device=torch.device("cuda"), seed=0).eval()
    with torch.no_grad():
        cache, token = model.new_cache(2), drawn(2, 1).cuda()
        for _ in range(4):
            model.next_logits(token, cache)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(4):
                token = model.next_logits(token, cache).argmax(-1, keepdim=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert graphs.why_not(cache) is None and any(
            isinstance(each, graphs.Step) for each in cache.recordings.values()
        )
