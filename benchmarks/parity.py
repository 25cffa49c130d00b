"""Every registered family beside transformers, on odd random models: the table in the README.

    python benchmarks/parity.py [--seeds 4] [--write]

The largest difference found over all of a family's architectures and seeds; --write puts the table into README.md.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import odd  # noqa: E402
import pairs  # noqa: E402
import transformers  # noqa: E402

from anyformer import families  # noqa: E402

HEADER = """\
| family | sizes | logits | loss | gradient norm | cached logits | greedy tokens | tensors both ways |
|---|---|---|---|---|---|---|---|
"""


def row(family: str, seeds: int) -> str:
    """The family's line: its worst over everything."""
    worst: dict[str, list[float]] = {"logits": [], "loss": [], "norm": [], "cached": []}
    greedy, tensors = [], []
    for architecture in (name for known, name in odd.architectures() if known == family):
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory() as again:
                pair = pairs.make(family, architecture, seed, Path(directory))
                worst["logits"].append(pairs.logits(pair))
                loss, norm = pairs.loss_and_gradients(pair)
                worst["loss"].append(loss)
                worst["norm"].append(norm)
                if pair.ours.decoder is not None and pair.head == "language_model":
                    worst["cached"].append(pairs.cached_logits(pair))
                    greedy.append(pairs.greedy_tokens(pair))
                tensors.append(pairs.tensors_both_ways(pair, Path(again)))
    numbers = [f"{max(found):.0e}" if found else "-" for found in worst.values()]
    verdicts = [("identical" if all(found) else "DIFFER") if found else "-" for found in (greedy, tensors)]
    chosen = families.named(family)
    return f"| [{chosen.title}]({chosen.paper}) | {', '.join(chosen.presets)} | {' | '.join((*numbers, *verdicts))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    arguments = parser.parse_args()
    rows = [row(family, arguments.seeds) for family in families.registered()]
    table = HEADER + "\n".join(rows) + "\n"
    note = (
        f"\nMeasured against transformers {transformers.__version__} on {arguments.seeds} odd random models of each "
        "architecture: largest difference over largest reference, float32. The bars are 1e-5 for logits, cached or "
        "not, and 1e-4 for loss and gradient norm.\n"
    )
    print(table + note)
    if arguments.write:
        readme = ROOT / "README.md"
        marked = r"(<!-- parity:.*?-->\n).*?(<!-- /parity -->)"
        readme.write_text(re.sub(marked, lambda m: m[1] + table + note + m[2], readme.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()
