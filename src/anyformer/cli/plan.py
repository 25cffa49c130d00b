"""anyformer plan: what a model costs, what a budget is best spent on, and a law of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anyformer.cli import settings
from anyformer.cli.common import DebugOption, Dtype, JsonOption, note, print_json, waiting
from anyformer.errors import PlanError

if TYPE_CHECKING:
    from anyformer.laws import FittedLaw, IsoFlop
    from anyformer.planning import Budget, Device
    from anyformer.planning.scaling import Published
    from anyformer.spec import Transformer


def plan(
    named: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL | RUNS...]",
            help="A preset, a spec.json, a recipe, a checkpoint; with --fit, run directories and CSV files.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="h100, h200, a100 ...; this: measure this machine.", show_default=False),
    ] = None,
    devices: Annotated[int | None, typer.Option("--devices", min=1, help="How many.", show_default=False)] = None,
    price: Annotated[
        float | None,
        typer.Option("--price", min=0, help="Dollars an hour for each; the table's unless given.", show_default=False),
    ] = None,
    utilisation: Annotated[
        float | None,
        typer.Option(
            "--utilisation", help="The share of the peak rate attained; 0.4 unless given.", show_default=False
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", min=1, help="Count FLOPs and serve at so many tokens.", show_default=False),
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option("--dtype", help="Serve in this type.", show_default=False)] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences served at once.")] = 1,
    quantize_cache: settings.QuantizeCache = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="Rows trained on at a time (1).", show_default=False)
    ] = None,
    length: Annotated[
        int | None, typer.Option("--length", min=1, help="Tokens of a training row (2,048).", show_default=False)
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option("--batch-tokens", min=1, help="Tokens of a step (524,288).", show_default=False)
    ] = None,
    tokens: Annotated[
        float | None,
        typer.Option("--tokens", min=1, help="Tokens to train on; 20 a parameter unless given.", show_default=False),
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="float32 or bfloat16, of training.", show_default=False)
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", help="adamw or muon (adamw).", show_default=False)
    ] = None,
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations", help="Compute activations again.")
    ] = False,
    mesh: Annotated[
        str | None, typer.Option("--mesh", help="shard=4,tensor=2 ...: how devices divide it.", show_default=False)
    ] = None,
    flops: Annotated[float | None, typer.Option("--flops", help="A budget: FLOPs.", show_default=False)] = None,
    hours: Annotated[float | None, typer.Option("--hours", help="A budget: hours.", show_default=False)] = None,
    money: Annotated[float | None, typer.Option("--money", help="A budget: dollars.", show_default=False)] = None,
    served: Annotated[
        float | None, typer.Option("--served", min=0, help="Tokens it will give in its life.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the recipe to start from.", show_default=False)
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Fit a scaling law to RUNS.")] = False,
    drop_worst: Annotated[
        int, typer.Option("--drop-worst", min=0, help="Leave so many runs of highest loss out of the fit.")
    ] = 0,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the law to an .svg or .html file.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """What a model costs to train and to serve, and whether it fits; or what a budget is best spent on.

    plan MODEL [--device h100]: parameters, FLOPs, memory, time, money.

    plan --flops 1e19, or --hours 24 --device this, or --money 1000 --device h100: how large, on how much data, under
    every published fit, and a recipe to start from.

    plan --fit RUNS...: a scaling law of your own.
    """
    from anyformer.cli import plan_tables
    from anyformer.planning.plan import ATTAINED

    if utilisation is not None and not 0 < utilisation <= 1:
        raise PlanError(f"--utilisation is a share of the peak rate, above 0 and up to 1, not {utilisation:g}")
    attained = ATTAINED if utilisation is None else utilisation
    is_budget = any(value is not None for value in (flops, hours, money))
    spec = _spec(named) if named and not fit else None
    found = _device(device, price, spec)
    if out is not None and (spec is not None or not is_budget):
        raise PlanError("--out writes the recipe for a budget; give one, without a model: --flops 1e19")
    if (plot is not None or drop_worst) and not fit:
        raise PlanError("--plot and --drop-worst are of a law; fit one with --fit RUNS")
    if served is not None and (spec is not None or not is_budget):
        raise PlanError("--served is of a budget's model; give a budget, without a model: --flops 1e19")
    if price is not None and device is None:
        raise PlanError("--price is a device's; name one with --device")
    if spec is None:
        _check_no_model_is_meant(
            context=context,
            dtype=dtype,
            batch=None if batch == 1 else batch,
            quantize_cache=quantize_cache,
            rows=rows,
            length=length,
            batch_tokens=batch_tokens,
            tokens=tokens,
            precision=precision,
            optimizer=optimizer,
            checkpoint_activations=checkpoint_activations or None,
            mesh=mesh,
        )
    spent = _budget(flops, hours, money, found, devices or 1, attained) if is_budget else None
    if fit:
        law, curves = _fit(named or [], drop_worst, plot)
        if spent is None:
            print_json(plan_tables.law_data(law, curves)) if as_json else plan_tables.print_law(law, curves)
            return
        _spend(spent, served, out, as_json, law)
    elif spec is not None:
        asked = {
            "context": context,
            "dtype": dtype.value if dtype is not None else _dtype(named or []),
            "batch": batch,
            "quantize_cache": quantize_cache and quantize_cache.value,
            "rows": rows,
            "length": length,
            "batch_tokens": batch_tokens,
            "tokens": tokens,
            "flops": spent.flops if spent is not None else None,
            "precision": precision,
            "optimizer": optimizer,
            "checkpoint_activations": checkpoint_activations or None,
            "mesh": _mesh(mesh if mesh is not None else _recipe_mesh(named or []), devices),
        }
        _plan((named or [""])[0], spec, {**asked, "device": found, "attained": attained}, as_json)
    elif spent is not None:
        _spend(spent, served, out, as_json)
    else:
        raise PlanError(
            "name a model (llama:135m, say), a budget (--flops, or --hours or --money with --device), or runs to --fit"
        )


def _spec(named: list[str]) -> Transformer:
    """The spec of the one model that is named. Only what has to be opened as a checkpoint waits for torch."""
    if len(named) > 1:
        raise PlanError(f"name one model, not {len(named)}; several are runs, for --fit")
    from anyformer.planning.reading import find_spec

    found = find_spec(named[0])
    if found is None:
        with waiting(f"reading {named[0]}"):
            from anyformer import checkpoints

            found = checkpoints.open(named[0]).spec
    return found


def _check_no_model_is_meant(**said: Any) -> None:
    stray = [f"--{name.replace('_', '-')}" for name, value in said.items() if value is not None]
    if stray:
        raise PlanError(f"{', '.join(stray)}: a model's, and none is named; name one (llama:135m, say)")


def _dtype(named: list[str]) -> str | None:
    from anyformer.planning.reading import dtype_of

    return dtype_of(named[0])


def _device(name: str | None, price: float | None, spec: Transformer | None) -> Device | None:
    from dataclasses import replace

    from anyformer.planning.devices import THIS, find

    if name is None:
        return None
    if name.lower() == THIS:
        with waiting("measuring this machine"):
            from anyformer.machine import this_device
            from anyformer.planning.starting import spec_of_size

            found = this_device(spec if spec is not None else spec_of_size(1e8))
    else:
        found = find(name)
    return found if price is None else replace(found, price=price)


def _budget(
    flops: float | None,
    hours: float | None,
    money: float | None,
    device: Device | None,
    devices: int,
    attained: float,
) -> Budget:
    from anyformer.planning import budget

    return budget(flops=flops, hours=hours, money=money, device=device, devices=devices, attained=attained)


def _recipe_mesh(named: list[str]) -> str | None:
    """How a recipe's devices divide the work, as `--mesh` says it."""
    from anyformer.planning.reading import read_recipe, step_of_recipe

    if not named[0].endswith(".toml"):
        return None
    sizes = vars(step_of_recipe(read_recipe(Path(named[0])), named[0])["mesh"])
    return ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or None


def _mesh(text: str | None, devices: int | None) -> Any:
    """`shard=4,tensor=2` as a mesh; None where nothing was said."""
    from anyformer.planning.plan import mesh_of

    if text is None and devices is None:
        return None
    sizes = {}
    for part in filter(None, (text or "").split(",")):
        axis, equals, size = part.partition("=")
        if not equals or not size.strip().isdecimal():
            raise PlanError(f"--mesh {text} does not say how many devices along what; write it as shard=4,tensor=2")
        sizes[axis.strip()] = int(size)
    return mesh_of(sizes, devices)


def _plan(name: str, spec: Transformer, asked: dict[str, Any], as_json: bool) -> None:
    from anyformer.cli import plan_tables
    from anyformer.planning import plan
    from anyformer.planning.reading import read_recipe, step_of_recipe

    said = step_of_recipe(read_recipe(Path(name)), name) if name.endswith(".toml") else {}
    given = {key: value for key, value in asked.items() if value is not None}
    if {"tokens", "flops"} & {*given}:
        said = {key: value for key, value in said.items() if key not in ("tokens", "flops")}
    found = plan(spec, **{**{key: value for key, value in said.items() if value is not None}, **given})
    if as_json:
        print_json({"model": name, **found.to_data()})
    else:
        plan_tables.print_plan(name, found)


def _fit(sources: list[str], drop_worst: int, plot: Path | None) -> tuple[FittedLaw, IsoFlop]:
    with waiting("fitting"):
        from anyformer.laws import fit, isoflop, read_runs
        from anyformer.laws.plot import check_plot, write_plot

        if plot is not None:
            check_plot(plot)
        runs = read_runs(sources)
        law, curves = fit(runs.without_worst(drop_worst)), isoflop(runs)
        if plot is not None:
            write_plot(plot, runs, law, curves)
    if plot is not None:
        note(f"the plot is {plot}")
    return law, curves


def _spend(spent: Budget, served: float | None, out: Path | None, as_json: bool, law: FittedLaw | None = None) -> None:
    from anyformer import disk
    from anyformer.cli import plan_tables
    from anyformer.planning import spend
    from anyformer.planning.scaling import CORRECTED

    if out is not None and out.suffix != ".toml":
        raise PlanError(f"--out {out}: a recipe's name ends in .toml")
    name = str(out) if out is not None else "recipe.toml"
    own = _own(law, spent) if law is not None else None
    found = spend(spent, own=own, law=law.law if law is not None else CORRECTED, served=served, name=name)
    if out is not None:
        disk.write(out, found.start.text.encode())
    if as_json:
        print_json(found.to_data())
    else:
        plan_tables.print_spending(found)
    if out is not None:
        note(f"the recipe is {out}; name your texts and train: anyformer train {out} --set 'data.train=\"texts\"'")


def _own(law: FittedLaw, spent: Budget) -> Published:
    from anyformer.planning.scaling import Published

    low, high = law.budgets
    note = "" if low <= spent.flops <= high else f"extrapolated: its runs took {low:.1e} to {high:.1e} FLOPs"
    return Published(f"yours, {law.runs} runs", "", law, note)
