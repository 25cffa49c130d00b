"""The laptop speedrun: how long until a character-level model is as good as nanoGPT's, on one text.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/speedrun.py --nanogpt nanoGPT --text ../shared/data/gutenberg/melville-moby_dick.txt --rounds 3

nanoGPT's recipe for a CPU is 4 layers, 128 wide, context 64, batch 12, 2,000 steps of AdamW from 1e-3 to 1e-4. Its
model and optimizer run as they are, and nothing but training is on its clock: no validation and no saving. Ours is the
whole command `anyformer train recipes/laptop.toml` as a user calls it, validation and saved model included. Both clocks
begin before Python does. Each model is then asked for the bits per byte of the same held-out end of the text.

The sides take turns; what is printed is each round's ratio of their times, with both losses.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = Path(__file__).parents[1] / "recipes" / "laptop.toml"
STEPS, BATCH, CONTEXT = 2000, 12, 64
HELD_OUT = 0.1


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT")
    options.add_argument("--text", type=Path, required=True, help="one text, UTF-8")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--theirs", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--set", action="append", default=[], help="a key of our recipe, as anyformer train takes it")
    given = options.parse_args()
    if given.theirs is not None:
        train_theirs(given.nanogpt, given.theirs)
        return
    with tempfile.TemporaryDirectory() as place:
        part(given.text, Path(place))
        rounds = [one_round(given.nanogpt, Path(place), index, given.set) for index in range(given.rounds)]
    ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in rounds]
    print(f"ours in {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times less time")
    for name, side in (("ours", 0), ("nanoGPT", 1)):
        losses = [each[side]["bits_per_byte"] for each in rounds]
        print(f"{name}: {statistics.median(losses):.4f} bits per byte ({min(losses):.4f} to {max(losses):.4f})")


def part(text: Path, place: Path) -> None:
    """The text's beginning and its held-out end, as two files."""
    whole = text.read_text(encoding="utf-8").replace("\r\n", "\n")
    cut = int(len(whole) * (1 - HELD_OUT))
    (place / "train.txt").write_text(whole[:cut], encoding="utf-8")
    (place / "validation.txt").write_text(whole[cut:], encoding="utf-8")


def one_round(nanogpt: Path, place: Path, index: int, settings: list[str]) -> list[dict[str, float]]:
    """Both sides once, the order turned each time; seconds and bits per byte of each."""
    sides = {"ours": lambda: ours(place, index, settings), "nanoGPT": lambda: theirs(nanogpt, place)}
    found = {}
    for name in sorted(sides, reverse=bool(index % 2)):
        found[name] = sides[name]()
        seconds, bits = found[name]["seconds"], found[name]["bits_per_byte"]
        print(f"round {index + 1}, {name}: {seconds:.1f} s, {bits:.4f} bits per byte", flush=True)
    return [found["ours"], found["nanoGPT"]]


def ours(place: Path, index: int, settings: list[str]) -> dict[str, float]:
    run = place / f"run{index}"
    keys = [
        f'run.directory="{run}"',
        f"run.seed={index}",
        f'data.train="{place}/train.txt"',
        f'data.validation="{place}/validation.txt"',
        *settings,
    ]
    command = [str(Path(sys.executable).with_name("anyformer")), "train", str(RECIPE), "--json"]
    begun = time.perf_counter()
    subprocess.run([*command, *(word for key in keys for word in ("--set", key))], check=True, capture_output=True)
    seconds = time.perf_counter() - begun
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {"seconds": seconds, "bits_per_byte": row["validation_bits_per_byte"]}


def theirs(nanogpt: Path, place: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--nanogpt", str(nanogpt), "--text", "-", "--theirs", str(place)]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("trained"):
            seconds = time.perf_counter() - begun
        elif line.startswith("bits"):
            bits = float(line.split()[1])
    if process.wait():
        raise SystemExit("nanoGPT's side failed")
    return {"seconds": seconds, "bits_per_byte": bits}


def train_theirs(nanogpt: Path, place: Path) -> None:
    """nanoGPT's training loop without its validations, then the held-out text in windows of its context."""
    import numpy as np
    import torch

    sys.path.insert(0, str(nanogpt))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    texts = {name: (place / f"{name}.txt").read_text(encoding="utf-8") for name in ("train", "validation")}
    characters = sorted(set(texts["train"] + texts["validation"]))
    number = {character: index for index, character in enumerate(characters)}
    data = {name: np.array([number[c] for c in text], dtype=np.uint16) for name, text in texts.items()}
    torch.manual_seed(1337)
    config = GPTConfig(
        n_layer=4, n_head=4, n_embd=128, block_size=CONTEXT, bias=False, vocab_size=len(characters), dropout=0.0
    )
    model = GPT(config)
    optimizer = model.configure_optimizers(1e-1, 1e-3, (0.9, 0.99), "cpu")
    train = data["train"]

    def rate(step: int) -> float:
        if step < 100:
            return 1e-3 * (step + 1) / 101
        share = (step - 100) / (STEPS - 100)
        return 1e-4 + 0.5 * (1.0 + math.cos(math.pi * share)) * 9e-4

    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        begins = torch.randint(len(train) - CONTEXT, (BATCH,))
        x = torch.stack([torch.from_numpy(train[i : i + CONTEXT].astype(np.int64)) for i in begins])
        y = torch.stack([torch.from_numpy(train[i + 1 : i + 1 + CONTEXT].astype(np.int64)) for i in begins])
        _, loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
    print("trained", flush=True)

    held_out = torch.from_numpy(data["validation"].astype(np.int64))
    windows = (len(held_out) - 1) // CONTEXT
    x = held_out[: windows * CONTEXT].view(windows, CONTEXT)
    y = held_out[1 : windows * CONTEXT + 1].view(windows, CONTEXT)
    model.eval()
    with torch.no_grad():
        nats = sum(float(model(a, b)[1]) * len(a) for a, b in zip(x.split(64), y.split(64))) * CONTEXT
    print("bits", nats / math.log(2) / len(texts["validation"][1 : windows * CONTEXT + 1].encode()), flush=True)


if __name__ == "__main__":
    main()
