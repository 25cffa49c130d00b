"""What experiments found, as pages show it: read from experiments/NAME.json, never written by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anyformer import experiments

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "experiments"


def result(name: str) -> dict[str, Any] | None:
    """What an experiment's committed run wrote; None where there is none yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def block(name: str) -> str:
    """The claim, the plot, the verdict and why, what it took: of one experiment, for its page."""
    found = result(name)
    if found is None:
        known = experiments.experiment(name) if name in experiments.names() else None
        claim = "" if known is None else _claim(known.claim, known.source, known.refuted_by)
        return f"{claim}Not run yet: `anyformer experiment {name}` puts it to the test.\n"
    run = " ".join((f"`anyformer experiment {name}`", *_given(found)))
    claim = _claim(found["claim"], found["source"], found["refuted_by"])
    return (
        f"{claim}![{_plain(found['claim'])}](experiments/{name}.svg)\n\n"
        f"**{found['verdict'].capitalize()}:** {found['because']}\n\n"
        f"{run}: {_took(found)} on {_machine(found)} ([numbers](experiments/{name}.json))\n"
    )


def table() -> str:
    """All experiments: what each claims, where that comes from, what the numbers say of it, how long that took."""
    rows = [
        "| experiment | claim, and where it comes from | verdict | took |",
        "|---|---|---|---|",
        *map(_row, experiments.names()),
    ]
    return "\n".join(rows) + "\n"


def _row(name: str) -> str:
    experiment, found = experiments.experiment(name), result(name)
    verdict, took = (found["verdict"], _took(found)) if found is not None else ("not run yet", "")
    page = next((path.name for path in sorted(DOCS.glob("*.md")) if name in named(path.read_text("utf-8"))), None)
    link = f"[`{name}`]({page})" if page is not None else f"`{name}`"
    return f"| {link} | {_cell(experiment.claim)} *{_cell(_linked(experiment.source))}* | {verdict} | {took} |"


def named(page: str) -> list[str]:
    """The experiments that a page has a block for, in order."""
    return re.findall(r"^<!-- experiment ([a-z-]+): ", page, re.MULTILINE)


def _claim(claim: str, source: str, refuted_by: str) -> str:
    return f"**Claim:** {claim} From {_linked(source)}.\n\n**What would refute it:** {refuted_by.rstrip('.')}.\n\n"


def _given(found: dict[str, Any]) -> Iterator[str]:
    """How the run was not the default one."""
    if found["scale"] != 1:
        yield f"at scale {found['scale']:g}"
    for what, value in found["given"].items():
        yield f"with {what} {Path(value).name}"


def _took(found: dict[str, Any]) -> str:
    seconds = found["seconds"]
    return f"{seconds:.0f}\u00a0s" if seconds < 100 else f"{seconds / 60:.0f}\u00a0min"


def _machine(found: dict[str, Any]) -> str:
    machine = found["machine"]
    cores = f"{machine['threads']} core{'s' if machine['threads'] > 1 else ''}"
    return f"{cores} of an {machine['processor']}, {machine['began'].partition(' ')[0]}"


def _linked(text: str) -> str:
    """A text whose addresses are links."""
    text = re.sub(r"https://arxiv\.org/abs/([\w.]+\w)", r"[arXiv:\1](\g<0>)", text)
    return re.sub(r"(?<!\()https?://[^\s)]+", r"<\g<0>>", text)


def _plain(text: str) -> str:
    return text.replace("[", "(").replace("]", ")")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
