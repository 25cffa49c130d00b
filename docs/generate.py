"""What pages say of families and experiments, read off the code and its results: the table of families in README.md,
docs/families.md, what an experiment found on the page of its concept, and the table of all of them.

    python docs/generate.py

What is generated stands between marks in its page; what stands around it is written by hand. What was measured of the
families is in families/parity.json, which `python benchmarks/parity.py --write` fills. tests/test_docs.py holds the
pages to the code.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import lcm
from pathlib import Path
from typing import Any, NamedTuple

import evidence

from anyformer import families
from anyformer.cli.list import PARITY, parity
from anyformer.cli.list import families as listed
from anyformer.families import Family
from anyformer.families.difference import differences
from anyformer.planning import parameters
from anyformer.spec import Attention, Block, Branch, Mixer, Stack, Transformer
from anyformer.spec.base import Part

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
SOURCE = ROOT / "src" / "anyformer" / "families"
#: Numbers that presets of one family choose differently. Whether there is such a number at all is a part of the family.
SIZES = frozenset(
    (
        *("dim", "depth", "vocabulary", "size", "heads", "head_dim", "hidden", "shared_hidden", "experts", "top_k"),
        *("window", "base", "eps", "scale", "soft_cap", "factor", "max_distance", "buckets", "segments"),
    )
)
#: What a family's presets choose differently and no part.
CHOICES = frozenset({"tied", "context", "repeat"})
#: What goes without saying where a part is spelled out, and fields whose value says all.
UNSAID, SPEAKING = frozenset({"kind", "source", "dropout", "balance"}), frozenset({"visibility", "activation"})
#: Of eight query heads, how many have keys and values of their own, to compare by.
SHARED = {"multi-head": 8, "multi-query": 1, "grouped-query": 2}
FORMULAS = {
    "pre": "x + {}(norm(x))",
    "post": "norm(x + {}(x))",
    "output": "x + norm({}(x))",
    "both": "x + norm'({}(norm(x)))",
}


class Difference(NamedTuple):
    """A part of two specs, and what it is in each. `weight`: how much that is, 1 for a field; for parts of different
    kinds, what the one that says more says."""

    part: str
    first: str
    second: str
    weight: int = 1


def families_table() -> str:
    """`anyformer list families` in Markdown, and what its figures mean."""
    lines = [
        "| " + " | ".join(("family", "", "sizes", "reads", "GGUF", *PARITY)) + " |",
        "|---" * (5 + len(PARITY)) + "|",
    ]
    for row in (row for row in listed() if row["family"] in known()):
        figures = (_figure(row[column]) for column in PARITY)
        names = (f"`{row['family']}`", f"[{row['title']}]({row['paper']})", ", ".join(row["sizes"]))
        lines.append("| " + " | ".join((*names, ", ".join(row["reads"]), ", ".join(row["gguf"]), *figures)) + " |")
    measured = parity()
    lines += [
        "",
        f"Measured against transformers {measured['transformers']} on {measured['seeds']} odd random models of each "
        "architecture: largest difference over largest reference, float32. The bars are 1e-5 for logits, cached or "
        "not, and 1e-4 for loss and gradient norm. `anyformer list families` shows the same table, and "
        "[docs/families.md](docs/families.md) says what distinguishes each.",
    ]
    return "\n".join(lines) + "\n"


def _figure(value: Any) -> str:
    if isinstance(value, bool):
        return "identical" if value else "DIFFER"
    return "-" if value is None else f"{value:.0e}" if isinstance(value, float) else str(value)


def families_page() -> str:
    """Every family: its parts, what it alone has, its nearest relative and the difference, its sizes, its lines."""
    sections = [_section(family, known()) for family in known().values()]
    return "\n\n".join([_lines_table(known()), *sections]) + "\n"


def known() -> dict[str, Family]:
    """The families of this package, which have their file here."""
    return {name: family for name, family in families.registered().items() if (SOURCE / f"{name}.py").is_file()}


def _lines_table(known: Mapping[str, Family]) -> str:
    own = {name: _count(SOURCE / f"{name}.py") for name in known}
    common = sorted(path.name for path in SOURCE.glob("*.py") if path.stem not in known)
    rows = [
        f"| [{known[name].title}](#{_anchor(known[name])}) | {_link(name)} | {count} |" for name, count in own.items()
    ]
    shared = ", ".join(f"`{name}` {_count(SOURCE / name)}" for name in common)
    middle = sorted(own.values())[len(own) // 2]
    counted = f"{len(own)} families in {sum(own.values()):,} lines, the middle one of {middle}."
    total = f"{counted} Beside them, what several share or one alone has: {shared}."
    return "\n".join(["## Lines", "", "| family | file | lines |", "|---|---|---|", *rows, "", total])


def _count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _link(name: str) -> str:
    return f"[`families/{name}.py`](../src/anyformer/families/{name}.py)"


def _anchor(family: Family) -> str:
    return re.sub(r"[^\w -]", "", family.title.lower()).replace(" ", "-")


def _example(family: Family) -> Transformer:
    """The spec that stands for a family: its first published size."""
    return family(next((size for size in family.presets if size != "tiny"), "tiny"))


def _section(family: Family, known: Mapping[str, Family]) -> str:
    spec = _example(family)
    reads = ", ".join(f"`{name}`" for name in family.model_types)
    known_as = ", ".join(f"`{name}`" for name in family.gguf.architectures) if family.gguf is not None else ""
    gguf = f" · GGUF {known_as}" if known_as else ""
    lines = [f"## {family.title}", "", f"[Paper]({family.paper}) · {_link(family.name)} · reads {reads}{gguf}", ""]
    lines += [f"{_a(spec.shape).capitalize()}, {_head(spec)}:", ""]
    lines += ["| layer | what it does | its parts |", "|---|---|---|", *_drawn(spec), "", *_order(spec)]
    relatives = list(_relatives(family, known))
    if alone := _alone([found for _, found in relatives]):
        lines += [f"No other {spec.shape} here has {_and(alone)}.", ""]
    lines += [*_nearest(family, relatives), ""]
    return "\n".join([*lines, *_sizes(family)])


def _head(spec: Transformer) -> str:
    embeddings = spec.output.embeddings
    parts = [_shown(embeddings.position) + " positions"] if embeddings.position is not None else []
    parts += ["token types"] if embeddings.segments else []
    parts += ["a scale"] if embeddings.scale is not None else []
    parts += [f"{_shown(embeddings.norm)} norm"] if embeddings.norm is not None else []
    ends = f"{_shown(spec.output.norm)} norm, then " if spec.output.norm is not None else ""
    begins = f"tokens with {_and(parts)}" if parts else "tokens alone"
    return f"from {begins} to {ends}{_a(spec.head.kind.replace('_', ' '))} head"


def _drawn(spec: Transformer) -> Iterator[str]:
    """A row for each branch of each kind of layer."""
    for name, stack in spec.stacks().items():
        kinds = _kinds(stack)
        for index, block in enumerate(kinds):
            layer = name + (f" {chr(ord('A') + index)}" if len(kinds) > 1 else "")
            for branch in block.branches:
                does = FORMULAS[branch.placement] if branch.norm is not None else "x + {}(x)"
                together = " (in parallel)" if block.parallel else ""
                norm = [] if branch.norm is None else [f"norm {_shown(branch.norm)}"]
                parts = ", ".join([*_fields(branch.mixer), *norm])
                yield f"| {layer} | `{does.format(branch.name)}`{together} | {parts} |"
                layer = ""
        if stack.relative is not None:
            yield f"| {name} | all layers | {_shown(stack.relative)} |"


def _order(spec: Transformer) -> Iterator[str]:
    """How the kinds of layers follow each other, where there are several."""
    for name, stack in spec.stacks().items():
        if len(_kinds(stack)) > 1:
            again = ", and again" if sum(block.repeat for block in stack.pattern) < stack.depth else ""
            yield f"The {stack.depth} layers of the {name} follow each other as {_letters(stack)}{again}."
            yield ""


def _letters(stack: Stack) -> str:
    kinds = _kinds(stack)
    letters = [chr(ord("A") + kinds.index(_kind(block))) for block in stack.pattern]
    return ", ".join(
        f"{block.repeat} × {letter}" if block.repeat > 1 else letter for block, letter in zip(stack.pattern, letters)
    )


def _fields(part: Part) -> Iterator[str]:
    """What a part says beyond its defaults; of a number, only that there is one."""
    for name, field in type(part).model_fields.items():
        value, word = getattr(part, name), name.replace("_", " ")
        is_number = isinstance(value, int | float | tuple) and not isinstance(value, bool)
        if name == "kv_heads":
            yield _sharing(part)
        elif name in SPEAKING:
            yield _shown(value)
        elif name in UNSAID or value == field.default or (name in SIZES and field.is_required()):
            continue
        elif is_number and name != "offset":
            if isinstance(part, Mixer) or field.default is None:
                yield word
        elif value is True:
            yield word
        else:
            yield f"not {word}" if value is False else f"no {word}" if value is None else f"{word} {_shown(value)}"


def _sharing(mixer: Any) -> str:
    if mixer.kv_heads == mixer.heads:
        return "multi-head"
    return "multi-query" if mixer.kv_heads == 1 else "grouped-query"


def _shown(value: Any) -> str:
    """A value in the words of the spec."""
    if isinstance(value, Part):
        kind = getattr(value, "kind", type(value).__name__).replace("_", " ")
        inner = ", ".join(_fields(value))
        return f"{kind} ({inner})" if inner else kind
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value).replace("_", " ")


def _kinds(stack: Stack) -> tuple[Block, ...]:
    """The kinds of layers of a stack, each once."""
    return tuple(dict.fromkeys(map(_kind, stack.pattern)))


def _kind(block: Block) -> Block:
    """A layer, however often it is repeated, with sizes made comparable."""
    return block.replace(repeat=1, branches=tuple(map(_comparable, block.branches)))


def _comparable(branch: Branch) -> Branch:
    """A branch whose key/value heads say how they are shared and not how many there are."""
    mixer = branch.mixer
    if not isinstance(mixer, Attention):
        return branch
    return branch.replace(mixer=mixer.replace(heads=8, kv_heads=SHARED[_sharing(mixer)]))


def compared(first: Transformer, second: Transformer) -> list[Difference]:
    """The parts in which two specs of one shape differ. What differs alike in encoder and decoder is one difference."""
    first, second, kinds = _side_by_side(first, second)
    counted: Counter[tuple[str, Difference]] = Counter()
    for path, one, other in differences(first, second, guidance=False):
        field = [step for step in path.split(".") if not step.isdigit()][-1]
        if field not in CHOICES and not (field in SIZES and one and other):
            stack, _, inside = path.partition(".")
            part = _part(inside, first.stacks()[stack]) if stack in kinds else path
            said = [len(list(_fields(side))) for side in (one, other) if isinstance(side, Part)]
            difference = Difference(part, _value(field, one), _value(field, other), max([1, *said]))
            counted[stack if stack in kinds else "", difference] += 1
    found: dict[Difference, list[str]] = {}
    for (stack, difference), count in counted.items():
        if difference.part.startswith("layer.") and count < kinds[stack]:
            difference = difference._replace(part=f"{difference.part} (in {count} of {kinds[stack]} kinds of layer)")
        found.setdefault(difference, []).append(stack)
    return [
        each._replace(part=f"{stacks[0]}.{each.part}") if stacks[0] and len(stacks) < len(kinds) else each
        for each, stacks in found.items()
    ]


def _side_by_side(first: Transformer, second: Transformer) -> tuple[Transformer, Transformer, dict[str, int]]:
    """Two specs with the kinds of layers of their stacks one against one, those of the one that has fewer again and
    again, as a stack does; and how many each stack then has."""
    sides, lengths = [first, second], dict[str, int]()
    for name in first.stacks():
        kinds = [_kinds(side.stacks()[name]) for side in sides]
        lengths[name] = lcm(*map(len, kinds))
        sides = [
            side.replace(**{name: side.stacks()[name].replace(pattern=blocks * (lengths[name] // len(blocks)))})
            for side, blocks in zip(sides, kinds)
        ]
    return sides[0], sides[1], lengths


def _value(field: str, value: Any) -> str:
    """A value; of a size, only that there is one."""
    if field == "kv_heads":
        return next(name for name, shared in SHARED.items() if shared == value)
    return ("yes" if value else "none") if field in SIZES and not isinstance(value, Part) else _shown(value)


def _part(path: str, stack: Stack) -> str:
    """A path in the words of a person: pattern.0.branches.1.mixer.gated is layer.feed_forward.gated."""
    steps = path.split(".")
    if steps[0] != "pattern":
        return path
    if steps[2:3] != ["branches"] or len(steps) < 4:
        return ".".join(["layer", *steps[2:]])
    branch = stack.pattern[int(steps[1])].branches[int(steps[3])]
    return ".".join(["layer", branch.name, *(step for step in steps[4:] if step != "mixer")])


def _relatives(family: Family, known: Mapping[str, Family]) -> Iterator[tuple[Family, list[Difference]]]:
    """The other families of its shape, and in what it differs from each."""
    spec = _example(family)
    for other in known.values():
        if other is not family and _example(other).shape == spec.shape:
            yield other, compared(spec, _example(other))


def _alone(others: Sequence[Sequence[Difference]]) -> list[str]:
    """What a family has that none of the others has, by its differences from each."""
    counts = Counter(has for found in others for has in {(each.part, each.first): None for each in found})
    alone = [has for has, count in counts.items() if count == len(others) > 1 and has[1] not in ("none", "no")]
    # What is so in several branches is said once.
    said = {(re.sub(r"^(\w+coder\.)?layer\.(\w+\.(?=\w))?", "", part), value): None for part, value in alone}
    return [f"`{part}`" + (f" {value}" if value != "yes" else "") for part, value in said]


def _nearest(family: Family, relatives: Iterable[tuple[Family, Sequence[Difference]]]) -> Iterator[str]:
    """Its nearest relative, and the difference."""
    nearest, found = min(relatives, key=lambda pair: sum(each.weight for each in pair[1]))
    link = f"[{nearest.title}](#{_anchor(nearest)})"
    if not found:
        yield f"Nearest relative: {link}, of the very same parts; names of tensors, attributes and sizes differ."
        return
    yield f"Nearest relative: {link}, which differs in {len(found)} part{'s' if len(found) > 1 else ''}:"
    yield ""
    yield f"| part | {family.title} | {nearest.title} |"
    yield "|---|---|---|"
    yield from (f"| `{each.part}` | {each.first} | {each.second} |" for each in found)


def _sizes(family: Family) -> Iterator[str]:
    yield "| size | parameters | layers | width | context |"
    yield "|---|---|---|---|---|"
    for size in family.presets:
        spec = family(size)
        held = parameters(spec)
        active = f" ({held.active:,} active)" if held.active < held.total else ""
        layers = " + ".join(str(stack.depth) for stack in spec.stacks().values())
        context = f"{spec.context:,}" if spec.context is not None else ""
        yield f"| {size} | {held.total:,}{active} | {layers} | {spec.output.dim:,} | {context} |"


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _and(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def put(page: str, mark: str, text: str) -> str:
    """A page with `text` between its marks of that name."""
    begins, ends = rf"<!-- {mark}: [^\n]*? -->\n", rf"<!-- /{mark} -->"
    return re.sub(rf"({begins}).*?({ends})", lambda found: found[1] + text + found[2], page, flags=re.DOTALL)


def pages() -> Iterable[tuple[Path, str]]:
    """Each page, as it should read."""
    readme, families_md = ROOT / "README.md", DOCS / "families.md"
    yield readme, put(readme.read_text(encoding="utf-8"), "families", families_table())
    yield families_md, put(families_md.read_text(encoding="utf-8"), "generated", families_page())
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        for name in evidence.named(page):
            page = put(page, f"experiment {name}", evidence.block(name))
        yield path, put(page, "experiments", evidence.table()) if path.name == "experiments.md" else page


def write() -> None:
    """Bring all pages up to date."""
    for path, text in pages():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
