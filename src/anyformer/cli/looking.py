"""anyformer inspect --text: what is seen inside a model while it reads, as tables, JSON and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyformer.cli.common import Dtype, new_table, open_reader, print_json, print_table, waiting
from anyformer.errors import InputError

if TYPE_CHECKING:
    from anyformer.inspection.heads import HeadScores
    from anyformer.inspection.looking import Look

#: Where several positions have an answer, so many stand side by side; of one position, so many answers.
ACROSS, LIKELIEST = 8, 3


def look_inside(
    model: str, text: str, target: str | None, out: Path | None, dtype: Dtype | None, device: str, as_json: bool
) -> None:
    """Look inside, write the page, and print what is seen."""
    place = out if out is not None else Path("inspect.html")
    if place.is_dir() or not place.absolute().parent.is_dir():
        raise InputError(f"no page can be written to {place}; give --out a file in a directory that there is")
    opened = open_reader(model, dtype, device)
    with waiting("looking inside"):
        from anyformer.inspection.looking import look, write_page

        seen = look(opened, text, target)
        write_page(seen, Path(model).name, place)
    if as_json:
        print_json({"model": model, "page": str(place), **_facts(seen)})
        return
    _print_lens(seen)
    _print_heads(seen)
    print(f"\npictures  {place}")


def _facts(seen: Look) -> dict[str, Any]:
    """What was seen, as JSON: of the lens all layers and positions, of heads all scores."""
    return {
        "shape": seen.model.spec.shape,
        "tokens": seen.tokens,
        "lens": _lens_facts(seen),
        "heads": {
            name: dict(zip(scores.branches, score.nan_to_num().tolist()))
            for scores in _scored(seen)
            for name, score in scores.scores.items()
        },
        "norms": {site: norms.tolist() for site, norms in seen.norms.items()},
        "routing": {branch: loads.mean(1).tolist() for branch, loads in seen.routing.items()},
    }


def _lens_facts(seen: Look) -> dict[str, Any] | None:
    if (found := seen.lens) is None:
        return None
    return {
        "sites": found.sites,
        "positions": seen.positions(),
        "answers": [[[seen.piece(id) for id in ids] for ids in layer] for layer in found.answers[:, 0].tolist()],
        "probabilities": found.probabilities[:, 0].tolist(),
        "entropy": found.entropy[:, 0].tolist(),
        "divergence": found.divergence[:, 0].tolist(),
        "settled": found.settled()[0].tolist(),
    }


def _print_lens(seen: Look) -> None:
    """What each layer would answer where it matters: its likeliest answers at one place, or its first at several."""
    if (found := seen.lens) is None:
        kind = seen.model.spec.head.kind
        print(f"no lens: this model's head ({kind}) answers with no tokens; heads and norms are seen all the same\n")
        return
    positions = seen.positions()[:ACROSS]
    pieces, several = seen.tokens[seen.stack], len(positions) > 1
    names = [pieces[at].strip() for at in positions] if several else ["first", "", "then", "", "then", ""]
    table = new_table("would answer", *names)
    for row, site in enumerate(found.sites):
        cells: list[str] = []
        for at in positions:
            likely = zip(found.answers[row, 0, at].tolist(), found.probabilities[row, 0, at].tolist())
            for id, share in list(likely)[: 1 if several else LIKELIEST]:
                said = (repr(seen.piece(id)), f"{share:.1%}")
                cells += [" ".join(said)] if several else said
        table.add_row(f"layer {site.split('.')[2]}" if ".layers." in site else "embeddings", *cells)
    print_table(table)
    print()


def _print_heads(seen: Look) -> None:
    """Of each habit the heads that have most of it."""
    table = new_table("looks most at", "head", "score", "head", "score", "head", "score")
    for scores in _scored(seen):
        for name in scores.scores:
            best = [(f"{branch}.{head}", f"{score:.2f}") for branch, head, score in scores.best(name, 3)]
            table.add_row(name, *(part for both in best for part in both))
    if table.row_count:
        print_table(table)


def _scored(seen: Look) -> list[HeadScores]:
    return [scores for scores in (seen.heads, seen.repeats) if scores is not None]
