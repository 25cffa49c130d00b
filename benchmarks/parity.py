"""Every registered family beside transformers, on odd random models: the table in the README.

    python benchmarks/parity.py [FAMILY ...] [--seeds 4] [--write]

The largest difference found over all of a family's architectures and seeds. --write keeps the figures in
families/parity.json, from where `anyformer list families` and, by docs/generate.py, the README have them; those of
families that were not asked for stay as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "docs")]

import generate  # noqa: E402
import odd  # noqa: E402
import pairs  # noqa: E402
import transformers  # noqa: E402

from anyformer import families  # noqa: E402
from anyformer.cli.list import PARITY, parity  # noqa: E402

FIGURES = ROOT / "src" / "anyformer" / "families" / "parity.json"


def measure(family: str, seeds: int) -> dict[str, Any]:
    """The family's worst over everything, by the columns of the table."""
    found: dict[str, list[Any]] = {column: [] for column in PARITY}
    for architecture in (name for known, name in odd.architectures() if known == family):
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory() as again:
                pair = pairs.make(family, architecture, seed, Path(directory))
                loss, norm = pairs.loss_and_gradients(pair)
                figures = {"logits": pairs.logits(pair), "loss": loss, "gradient norm": norm}
                if pair.ours.decoder is not None and pair.head == "language_model":
                    figures |= {"cached logits": pairs.cached_logits(pair), "greedy tokens": pairs.greedy_tokens(pair)}
                figures["tensors both ways"] = pairs.tensors_both_ways(pair, Path(again))
                for column, figure in figures.items():
                    found[column].append(figure)
    return {column: _worst(figures) if figures else None for column, figures in found.items()}


def _worst(figures: list[Any]) -> Any:
    return all(figures) if isinstance(figures[0], bool) else float(f"{max(figures):.0e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="only these; all unless given")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--write", action="store_true", help="keep the figures, and put the table into README.md")
    arguments = parser.parse_args()
    measured = {}
    for name in arguments.families or families.registered():
        measured[name] = measure(name, arguments.seeds)
        print(json.dumps({name: measured[name]}), flush=True)
    if arguments.write:
        kept = {**parity()["families"], **measured}
        lines = [
            f"    {json.dumps(name)}: {json.dumps(kept[name])}"
            for name in sorted(kept)
            if name in families.registered()
        ]
        about = {"transformers": transformers.__version__, "seeds": arguments.seeds}
        head = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in about.items())
        FIGURES.write_text(f'{{\n{head}  "families": {{\n' + ",\n".join(lines) + "\n  }\n}\n", encoding="utf-8")
        generate.write()


if __name__ == "__main__":
    main()
