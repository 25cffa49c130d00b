"""anyformer bench: how fast a model is here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from anyformer.cli import settings
from anyformer.cli.common import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelArgument,
    QuantizeOption,
    ThreadsOption,
    new_table,
    open_model,
    print_json,
    print_table,
    progress,
)

if TYPE_CHECKING:
    from anyformer.inspection.bench import Phase, Report, Spread

#: What leaves fewer bytes to read than a type of number does.
FEWER_BYTES = {
    "float64": "--dtype float32",
    "float32": "--dtype bfloat16, --quantize int8",
    "bfloat16": "--quantize int8",
    "float16": "--quantize int8",
    "Q8_0": "--quantize int4",
}
#: What three digits round up to a thousand.
ROUNDED = 999.5


def bench(
    model: ModelArgument,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", "-p", min=1, help="Tokens of each prompt.")] = 128,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", "-n", min=1, help="Tokens to add to each; an encoder adds none.")
    ] = 64,
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="Prompts at a time.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often each side does all of it.")] = 5,
    against: Annotated[
        str,
        typer.Option("--against", help="Others to run in turn with it: transformers,llama.cpp.", show_default=False),
    ] = "",
    as_json: JsonOption = False,
    quantize_cache: settings.QuantizeCache = None,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Measure how fast a model reads prompts and adds tokens here, and what limits it.

    Speeds stand beside what this machine reads and multiplies at its best, measured in the same minutes; memory, and
    the bytes of weights and cache, beside them. With --against, the same weights run in other projects too, in turn, on
    the same ids and as many threads. An encoder embeds the prompts.
    """
    from anyformer.inspection import bench as benches

    names = benches.there(name.strip() for name in against.split(",") if name.strip())
    loaded = open_model(model, dtype, device, quantize)
    work = benches.Work(
        loaded.spec.output.embeddings.vocabulary,
        prompt_tokens,
        new_tokens if loaded.decoder else 0,
        batch,
        "int8" if quantize_cache else None,
    )
    with progress() as bars:
        task = bars.add_task("", total=None)
        report = benches.bench(
            benches.Opened(loaded, model),
            work,
            against=names,
            rounds=rounds,
            progress=lambda doing: bars.update(task, description=doing),
        )
    if as_json:
        print_json(_as_data(report))
    else:
        _print(report)


def _as_data(report: Report) -> dict[str, Any]:
    ours, others = _sides(report)
    return {
        "model": report.model,
        "device": report.device,
        "threads": report.threads,
        "dtype": report.sides[ours]["dtype"],
        "prompt_tokens": report.work.prompt_tokens,
        "new_tokens": report.work.new_tokens,
        "batch": report.work.batch,
        "rounds": report.rounds,
        "weight_bytes": report.weight_bytes,
        "weight_bytes_per_step": report.step_weight_bytes,
        "quantize_cache": report.work.quantize_cache,
        "cache_bytes": report.cache_bytes,
        "peak_bytes": report.peak_bytes,
        "machine": {"read_bytes_per_second": report.read_rate, "matrix_flops_per_second": report.matrix_rate},
        "phases": {phase.name: _phase_data(report, phase) for phase in report.phases},
        "against": {
            name: report.sides[name]
            | {
                phase.name: {
                    f"{phase.unit}_per_second": phase.seconds.rate(name, phase.count)._asdict(),
                    "times_as_fast": phase.seconds.ratio(ours, name)._asdict(),
                }
                for phase in report.phases
            }
            for name in others
        },
    }


def _phase_data(report: Report, phase: Phase) -> dict[str, Any]:
    ours, _ = _sides(report)
    reading, computing = report.shares(phase)
    return {
        "seconds": phase.seconds.seconds[ours],
        f"{phase.unit}_per_second": phase.seconds.rate(ours, phase.count)._asdict(),
        "bytes": phase.bytes,
        "flops": phase.flops,
        "share_of_read_rate": reading,
        "share_of_matrix_rate": computing,
        "limited_by": report.limit(phase),
    }


def _sides(report: Report) -> tuple[str, list[str]]:
    ours, *others = report.sides
    return ours, others


def _print(report: Report) -> None:
    ours, others = _sides(report)
    work = report.work
    asked = f"{work.batch} x {work.prompt_tokens:,} tokens" + (f" + {work.new_tokens:,}" if work.new_tokens else "")
    threads = f"{report.threads} thread" + ("s" if report.threads > 1 else "")
    print(f"{report.model}, {report.sides[ours]['dtype']}: {asked}; {report.device}, {threads}\n")
    speeds = new_table("", "median", "lowest", "highest", "of reading", "of multiplying")
    for phase in report.phases:
        shares = (f"{share:.0%}" for share in report.shares(phase))
        speeds.add_row(f"{phase.name}, {phase.unit}/s", *_cells(phase.seconds.rate(ours, phase.count)), *shares)
        if phase.name == "prefill":
            speeds.add_row("first token after, ms", *_cells(_milliseconds(phase, ours)))
    print_table(speeds)
    if others:
        print()
        print_table(_beside(report))
    print()
    facts = new_table("", "")
    facts.show_header = False
    facts.columns[1].justify = "left"
    for name, fact in _facts(report).items():
        facts.add_row(name, fact)
    print_table(facts)
    for phase in report.phases:
        print(f"\n{_sentence(report, phase)}", end="")
    print()


def _beside(report: Report) -> Any:
    """How many times as fast as each of the others."""
    ours, others = _sides(report)
    table = new_table("times as fast as", "median", "lowest", "highest", "there, a second")
    for name in others:
        side = report.sides[name]
        for phase in report.phases:
            ratio = (f"{figure:.2f}" for figure in phase.seconds.ratio(ours, name))
            there = phase.seconds.rate(name, phase.count).median
            table.add_row(f"{name} {side['version']}, {side['dtype']}: {phase.name}", *ratio, _figure(there))
    return table


def _facts(report: Report) -> dict[str, str]:
    facts = {"weights": _bytes(report.weight_bytes)}
    if report.work.new_tokens:
        facts["weights"] += f", of which a step of decoding reads {_bytes(report.step_weight_bytes)}"
        bits = " in 8 bits" if report.work.quantize_cache else ""
        facts["cache"] = f"{_bytes(report.cache_bytes)}{bits} in the end"
    if report.peak_bytes is not None:
        facts["peak memory"] = f"{_bytes(report.peak_bytes)}, all of the process"
    facts["this machine"] = (
        f"reads {report.read_rate / 1e9:.1f} GB/s, multiplies {report.matrix_rate / 1e9:,.0f} GFLOP/s"
    )
    return facts


def _sentence(report: Report, phase: Phase) -> str:
    """What limits a phase, and what would help."""
    ours, _ = _sides(report)
    took = phase.seconds.median(ours) / phase.steps * 1e3
    reading, computing = report.shares(phase)
    read = f"reading {_bytes(phase.bytes // phase.steps)} takes {reading * took:.3g}"
    computed = f"multiplying {phase.flops / phase.steps / 1e9:.3g} GFLOP takes {computing * took:.3g}"
    step = f"each step's {took:.3g} ms" if phase.name == "decode" else f"{took:.3g} ms"
    match report.limit(phase):
        case "memory" if reading > 1:
            return f"{phase.name} is limited by memory, or by caches that are faster: of {step}, {read} from memory."
        case "memory":
            options = FEWER_BYTES.get(report.sides[ours]["dtype"])
            advice = f"; fewer bytes would be faster ({options})" if options else ""
            return f"{phase.name} is limited by memory: of {step}, {read}{advice}."
        case "arithmetic":
            return f"{phase.name} is limited by arithmetic: of {step}, {computed}."
        case _:
            return (
                f"{phase.name} is limited by neither memory nor arithmetic: of {step}, {read}, and {computed}; the "
                f"rest is shared by more work at a time (--batch)."
            )


def _milliseconds(phase: Phase, ours: str) -> Spread:
    from anyformer.inspection.bench import spread

    return spread([seconds * 1e3 for seconds in phase.seconds.seconds[ours]])


def _cells(figures: Spread) -> list[str]:
    return [_figure(figure) for figure in figures]


def _figure(figure: float) -> str:
    """Three digits at least."""
    return f"{figure:,.0f}" if figure >= ROUNDED else f"{figure:#.3g}".rstrip(".")


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < ROUNDED:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
