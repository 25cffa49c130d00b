"""A model card: the README.md of a repository, with the front matter by which a hub files it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from anyformer.checkpoints.directory import expressible
from anyformer.planning import describe, summary
from anyformer.spec import Transformer

#: The hub's name for what a model with this head does, and transformers' class that loads it.
TASKS = {
    "language_model": ("text-generation", "AutoModelForCausalLM"),
    "masked_language_model": ("fill-mask", "AutoModelForMaskedLM"),
    "sequence_classification": ("text-classification", "AutoModelForSequenceClassification"),
    "token_classification": ("token-classification", "AutoModelForTokenClassification"),
    "embedding": ("feature-extraction", "AutoModel"),
}


def write(
    spec: Transformer,
    repository: str,
    *,
    family: str | None = None,
    origin: str | None = None,
    license: str | None = None,
) -> str:
    """The card of the model that `spec` describes, to stand in `repository`: what it is, drawn and in figures, and how
    it is loaded. `origin` is named as its base model where that is a repository too (`org/name@commit`)."""
    chosen = expressible(spec, family)
    task, loader = TASKS[spec.head.kind]
    if spec.shape == "encoder-decoder":
        # What it makes of a text (a translation, a summary) is not known here, and a task that says neither is gone.
        task, loader = None, "AutoModelForSeq2SeqLM"
    base = re.fullmatch(r"([\w.-]+/[\w.-]+)@[0-9a-f]{40}(/.+)?", origin or "")
    front = {
        "library_name": "transformers" if chosen is not None else "anyformer",
        "pipeline_tag": task,
        "license": license,
        "base_model": base[1] if base is not None else None,
    }
    lines = ["---", *(f"{key}: {value}" for key, value in front.items() if value is not None), "tags:", "- anyformer"]
    lines += [f"- {chosen.name}"] if chosen is not None else []
    lines += [
        "---",
        "",
        f"# {repository.rpartition('/')[2]}",
        "",
        _sentence(spec, chosen.title if chosen else None),
        "",
    ]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _figures(spec)), ""]
    lines += ["```", describe(spec).rstrip(), "```", "", "## How to load it", "", "```python", "import anyformer as af"]
    lines += ["", f'model = af.load("{repository}")', "```", ""]
    if chosen is not None:
        lines += ["```python", f"from transformers import {loader}", ""]
        lines += [f'model = {loader}.from_pretrained("{repository}")', "```", ""]
    else:
        lines += ["No other tool has words for all of its parts; `spec.json` describes it.", ""]
    return "\n".join(lines)


def _sentence(spec: Transformer, title: str | None) -> str:
    form = f"in the form of {title}" if title is not None else "of a form of its own"
    return f"A Transformer {form}: {'an' if spec.shape[0] == 'e' else 'a'} {spec.shape}."


def _figures(spec: Transformer) -> Iterator[tuple[str, str]]:
    facts = summary(spec)
    parameters = facts["parameters"]
    yield "parameters", f"{parameters['total']:,}"
    if parameters["active"] < parameters["total"]:
        yield "active for a token", f"{parameters['active']:,}"
    yield "layers", " + ".join(f"{depth} ({name})" for name, depth in facts["layers"].items())
    yield "width", f"{spec.output.dim:,}"
    yield "vocabulary", f"{spec.output.embeddings.vocabulary:,}"
    if facts["trained_context"] is not None:
        yield "context", f"{facts['trained_context']:,} tokens"
    yield "head", spec.head.kind.replace("_", " ")
