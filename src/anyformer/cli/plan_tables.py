"""Plans as people read them: the answer first, then short tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from anyformer.planning.describe import scaled
from anyformer.planning.feasibility import Verdict
from anyformer.planning.plan import ROWS, Plan
from anyformer.planning.scaling import MEASURED

if TYPE_CHECKING:
    from anyformer.laws import FittedLaw, IsoFlop
    from anyformer.planning import Budget, Spending

#: The moments of a step, and the parts of serving, that take the most memory.
BINDING = {
    "loss": "after the forward pass, with the loss",
    "layers": "at the end of the backward pass",
    "update": "as the optimizer steps",
    "weights": "mostly weights",
    "cache": "mostly cache",
    "working": "mostly what prompts take on their way",
}
WAYS = {"kept": "activations kept", "computed_again": "computed again", "whole_loss": "kept, all logits at once"}


class Table:
    """Lines whose columns stand under each other: words to the left, then figures to the right. Plain text, for rich
    takes longer to start than a plan to be made."""

    def __init__(self, *header: str) -> None:
        self.rows = [header]

    def add(self, *cells: str) -> None:
        """One more line."""
        self.rows.append(cells)

    def print(self) -> None:
        """All lines."""
        widths = [max(map(len, column)) for column in zip(*self.rows)]
        for first, *figures in self.rows:
            aligned = (figure.rjust(width) for figure, width in zip(figures, widths[1:]))
            print("  ".join([first.ljust(widths[0]), *aligned]).rstrip())


def print_plan(name: str, plan: Plan) -> None:
    """All of a plan."""
    on = f" on {_several(plan.training.step.mesh.devices, plan.device.name)}" if plan.device is not None else ""
    print(f"{name}: {scaled(plan.parameters.total, '')} parameters, {_shape(plan)}{on}\n")
    if plan.device is not None:
        _print_verdicts(plan)
    _print_parameters(plan)
    _print_flops(plan)
    _print_training_memory(plan)
    _print_serving(plan)
    if plan.device is None:
        print("\ndoes it fit, how long, what does it cost? add --device h100 (or this, to measure this machine)")


def _shape(plan: Plan) -> str:
    layers = " + ".join(str(stack.depth) for stack in plan.spec.stacks().values())
    return f"{plan.spec.shape}, {layers} layer{'' if layers == '1' else 's'}"


def _several(count: int, name: str) -> str:
    return name if count == 1 else f"{count:,} x {name}"


def _print_verdicts(plan: Plan) -> None:
    training, serving = plan.training, plan.serving
    assert training.verdict is not None and serving.verdict is not None and training.time is not None
    _say("train", training.verdict)
    cost = f", ${training.cost:,.2f}" if training.cost is not None else ""
    rate = training.time.tokens / training.time.seconds
    print(f"       {scaled(training.tokens, '')} tokens in {duration(training.hours or 0)}{cost}")
    print(f"       {rate:,.0f} tokens/s at {plan.attained:.0%} of the peak rate ({training.time.mfu:.0%} MFU)\n")
    _say("serve", serving.verdict)
    assert serving.time is not None
    line = f"       {_seconds(serving.time.prefill)} to read {_loaded(plan)}"
    if serving.time.tokens_per_second is not None:
        line += f", then {serving.time.tokens_per_second:,.0f} tokens/s"
    dollars = serving.dollars_per_million_tokens
    print(line + (f", ${dollars:,.2f} a million" if dollars is not None else "") + "\n")


def _loaded(plan: Plan) -> str:
    load = plan.serving.load
    return f"{load.context:,} tokens" if load.batch == 1 else f"{load.batch:,} x {load.context:,} tokens"


def _say(what: str, verdict: Verdict) -> None:
    answer = "fits" if verdict.fits else "does not fit"
    figures = f"{scaled(verdict.needed, 'B')} of {scaled(verdict.usable, 'B')} usable"
    print(f"{what}  {answer}: {figures}, {BINDING[verdict.binding]}")
    if not verdict.fits:
        for index, change in enumerate(verdict.changes or ("nothing that could be changed here would do",)):
            print(f"       {'or:' if index else 'to fit:' if verdict.changes else ''} {change}".rstrip())


def _print_parameters(plan: Plan) -> None:
    parameters = plan.parameters
    table = Table("parameters", f"{parameters.total:,}", "")
    for part, number in parameters.parts.items():
        table.add(f"  {part.replace('_', ' ')}", f"{number:,}", f"{number / parameters.total:.0%}")
    if parameters.active < parameters.total:
        table.add("active for a token", f"{parameters.active:,}", f"{parameters.active / parameters.total:.0%}")
    table.print()


def _print_flops(plan: Plan) -> None:
    flops = plan.flops
    print()
    table = Table(f"FLOPs a token, of {plan.context:,}", "forward", "backward", "")
    for part, number in flops.parts.items():
        share = f"{number / flops.forward_per_token:.0%}"
        table.add(f"  {part.replace('_', ' ')}", scaled(number, ""), scaled(2 * number, ""), share)
    table.add("all", scaled(flops.forward_per_token, ""), scaled(flops.backward_per_token, ""), "")
    if flops.decode_per_token is not None:
        table.add("one more, on a cache", scaled(flops.decode_per_token, ""), "", "")
    table.print()


def _print_training_memory(plan: Plan) -> None:
    step, training = plan.training.step, plan.training
    unit, size = _unit(training.by_rows[ROWS[0]]["kept"])
    print()
    title = f"{unit} to train in {step.precision}, rows of {step.tokens:,} at a time:"
    table = Table(title, *(str(rows) for rows in ROWS))
    for way, words in WAYS.items():
        table.add(f"  {words}", *(f"{training.by_rows[rows][way] / size:,.1f}" for rows in ROWS))
    table.print()
    standing = training.memory["update"]
    parts = ("weights", "gradients", "moments", "average")
    said = " · ".join(f"{part} {scaled(standing[part], 'B')}" for part in parts if standing[part])
    each = " on each device" if step.mesh.devices > 1 else ""
    print(f"  of which stand{each}: {said}")


def _print_serving(plan: Plan) -> None:
    serving = plan.serving
    unit, size = _unit(serving.bytes)
    print()
    table = Table(f"{unit} to serve in {plan.dtype}{_kept(plan)}, {_loaded(plan)}", f"{serving.bytes / size:,.1f}")
    for part, bytes_ in serving.memory.items():
        table.add(f"  {part}", f"{bytes_ / size:,.1f}")
    table.print()
    if plan.kv_bytes_per_token:
        print(f"  {plan.kv_bytes_per_token:,} B of keys and values a token, {scaled(plan.kv_bytes, 'B')} a sequence")


def _kept(plan: Plan) -> str:
    """What the cache is in, where that is not what the weights are."""
    kept = plan.serving.load.quantize_cache
    return f", cache in {kept}" if kept is not None else ""


def _unit(bytes_: int) -> tuple[str, float]:
    """What bytes are told in: gigabytes, or megabytes where there are few."""
    return ("GB", 1e9) if bytes_ >= 2e9 else ("MB", 1e6)


def print_spending(spending: Spending) -> None:
    """What a budget is best spent on."""
    print(f"{_budget(spending.budget)}\n")
    table = Table("compute-optimal by", "parameters", "80% interval", "tokens", "a parameter", "loss")
    for each in spending.optima:
        interval = f"{scaled(each.low, '')} to {scaled(each.high, '')}" if each.low and each.high else "-"
        loss = f"{each.loss:.3f}" if each.loss is not None else "-"
        figures = (scaled(each.parameters, ""), interval, scaled(each.tokens, ""), f"{each.tokens_per_parameter:.3g}")
        table.add(each.name, *figures, loss)
    table.print()
    for each in spending.optima:
        if each.note:
            print(f"  {each.name}: {each.note}")
    if spending.is_extrapolated:
        low, high = MEASURED
        print(
            f"  extrapolated: the runs behind Hoffmann's laws and their correction took {low:.0e} to {high:.0e} FLOPs"
        )
    largest = spending.smaller[0]
    print()
    title = f"the same loss, {spending.loss:.3f}, by"
    table = Table(title, "tokens", "to train", f"to train and serve {scaled(spending.served, '')}", "")
    for each in spending.smaller:
        least = "least" if each.lifetime == min(one.lifetime for one in spending.smaller) else ""
        table.add(
            f"  {scaled(each.parameters, '')} parameters ({each.share:.0%})",
            scaled(each.tokens, ""),
            f"{each.training / largest.training:.2f} x",
            f"{each.lifetime / largest.lifetime:.2f} x",
            least,
        )
    table.print()
    _print_start(spending)


def _budget(budget: Budget) -> str:
    said = [f"{budget.flops:.3g} FLOPs"]
    if budget.device is not None and budget.hours is not None:
        on = _several(budget.devices, budget.device.name)
        said.append(f"{duration(budget.hours)} on {on} at {budget.attained:.0%} of the peak rate")
    if budget.money is not None:
        said.append(f"${budget.money:,.2f}")
    return " · ".join(said)


def _print_start(spending: Spending) -> None:
    from anyformer.planning import count

    spec, training = spending.start.spec, spending.start.recipe["training"]
    stack = spec.decoder
    assert stack is not None
    attention = next(stack.attentions())
    print(f"\nto start from, by {spending.followed}:")
    print(f"  {count(spec):,} parameters: {stack.depth} layers {stack.dim:,} wide, {attention.heads} heads over")
    print(f"  {attention.kv_heads} of keys and values, {stack.embeddings.vocabulary:,} tokens of vocabulary")
    print(f"  steps of {training['batch_tokens']:,} tokens in rows of {training['sequence_length']:,}, ", end="")
    print(f"{training['micro_batch_tokens']:,} at a time, {training['precision']}")


def law_data(law: FittedLaw, curves: IsoFlop) -> dict[str, Any]:
    """A law as plain data, for JSON."""
    from anyformer.laws.fitting import central

    a, b, e, alpha, beta = law.logs
    line = {"scale": curves.scale, "exponent": curves.exponent}
    return {
        "runs": law.runs,
        "logs": {"ln A": a, "ln B": b, "ln E": e, "alpha": alpha, "beta": beta},
        "law": {name: asdict(law.law)[name] for name in ("A", "B", "E", "alpha", "beta")},
        "exponent": law.law.exponent,
        "intervals": {name: list(ends) for name, ends in law.intervals().items()},
        "objective": law.objective,
        "budgets": list(law.budgets),
        "isoflop": {
            **line,
            "interval": list(central(curves.samples)) if len(curves.samples) else None,
            "curves": [
                {"flops": each.flops, "parameters": each.best, "runs": len(each.losses)} for each in curves.parabolas
            ],
        },
    }


def print_law(law: FittedLaw, curves: IsoFlop) -> None:
    """A law and its intervals, and what it says of budgets beyond its runs, beside what the published ones say."""
    from anyformer.laws.fitting import central
    from anyformer.planning.scaling import PUBLISHED

    said, intervals = law.law, law.intervals()
    print(f"L(N, D) = {said.E:.3f} + {said.A:.4g} / N^{said.alpha:.4f} + {said.B:.4g} / D^{said.beta:.4f}", end="")
    print(f"        fitted to {law.runs} runs\n")
    table = Table("", "fitted", "80% interval")
    for name, value in {**asdict(said), "exponent": said.exponent}.items():
        if name in intervals:
            low, high = intervals[name]
            table.add({"exponent": "N ∝ C^"}.get(name, name), f"{value:.4g}", f"{low:.4g} to {high:.4g}")
    if curves.exponent is not None:
        low, high = central(curves.samples)
        title = f"N ∝ C^ by {len(curves.parabolas)} IsoFLOP curves"
        table.add(title, f"{curves.exponent:.4g}", f"{low:.4g} to {high:.4g}")
    table.print()
    if curves.exponent is None:
        print("no IsoFLOP curves: those take five runs or more at each of two budgets, around the best size of each")
    if intervals["E"][0] < UNSEEN:
        print(
            "E, what no model gets below, cannot be told from 0 by these runs; larger ones, on more tokens, would tell"
        )
    print()
    most = law.budgets[1]
    budgets = [most * factor for factor in BEYOND]
    table = Table("compute-optimal parameters at", *(f"{flops:.1e}" for flops in budgets))
    table.add("yours", *(scaled(law.parameters(flops), "") for flops in budgets))
    for name, end in (("  80% interval, from", 0), ("  to", 1)):
        table.add(name, *(scaled(law.interval(flops)[end], "") for flops in budgets))
    for published in PUBLISHED:
        table.add(published.name, *(scaled(published.fit.parameters(flops), "") for flops in budgets))
    table.print()
    print(f"  beyond {most:.1e} FLOPs, what the largest of your runs took, your law is extrapolated")


#: How far beyond one's largest run laws are set side by side: by these factors of its FLOPs.
BEYOND = (1, 10, 100, 1000)
#: Nats a token that nobody tells from none.
UNSEEN = 1e-3


def duration(hours: float) -> str:
    """Hours as people say them."""
    if hours < 1 / 60:
        return f"{hours * 3600:,.3g} s"
    limits = ((1, 60, "minute"), (48, 1, "hour"), (24 * 730, 1 / 24, "day"))
    size, unit = next(((size, unit) for limit, size, unit in limits if hours < limit), (1 / 24 / 365.25, "year"))
    figure = f"{hours * size:,.3g}"
    return f"{figure} {unit}" if figure == "1" else f"{figure} {unit}s"


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:,.3g} ms" if seconds < 1 else duration(seconds / 3600)
