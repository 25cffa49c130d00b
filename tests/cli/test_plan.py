"""anyformer plan: the answer first, figures that are planning's, and a recipe that trains."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from anyformer import families, planning

POINTS = Path(__file__).parents[3] / "shared" / "data" / "chinchilla_points.csv"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Runs that follow a law."""
    lines = ["parameters,flops,loss"]
    for flops in (1e15, 1e16, 1e17):
        for factor in (0.25, 0.5, 0.8, 1.25, 2, 4):
            parameters = planning.spend(planning.budget(flops=flops)).optima[3].parameters * factor
            tokens = flops / 6 / parameters
            lines.append(f"{parameters},{flops},{1.8 + 480 / parameters**0.35 + 2000 / tokens**0.37}")
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_model(anyformer: Callable) -> None:
    """Parameters, FLOPs and bytes without a device; with one, the verdicts come first."""
    ran = anyformer("plan", "llama:135m")
    assert ran.code == 0 and "134,515,008" in ran.out and "23,040 B of keys and values a token" in ran.out
    assert "add --device h100" in ran.out
    on = anyformer("plan", "llama:135m", "--device", "h100").out
    assert on.splitlines()[0] == "llama:135m: 135 M parameters, decoder, 30 layers on H100 SXM 80 GB"
    assert on.splitlines()[2].startswith("train  fits: ") and "of 72 GB usable" in on.splitlines()[2]
    assert "40% of the peak rate" in on and "serve  fits: " in on


def test_columns_stand_under_each_other(anyformer: Callable) -> None:
    """Figures of a table end where their header does."""
    lines = anyformer("plan", "mixtral:8x7b", "--device", "h200").out.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("GB to train"))
    assert len({len(line) for line in lines[start : start + 4]}) == 1
    parts = [line for line in lines if line.endswith("%") and "," in line]
    assert len(parts) == 6 and len({len(line) for line in parts}) == 1
    assert any(line.startswith("active for a token") and "12,879,925,248" in line for line in lines)


def test_what_does_not_fit(anyformer: Callable) -> None:
    """The answer says what to change."""
    ran = anyformer("plan", "llama:8b", "--device", "h100")
    assert "train  does not fit: " in ran.out and "to fit: 4 devices: shard" in ran.out
    assert "or: a device with more memory: B200" in ran.out
    sharded = anyformer("plan", "llama:8b", "--device", "h100", "--devices", 8, "--checkpoint-activations").out
    assert "8 x H100" in sharded and "train  fits" in sharded


def test_json(anyformer: Callable) -> None:
    """All of it, by the names that the plan has in Python."""
    said = ("--device", "h100", "--rows", 4, "--length", 1024, "--mesh", "shard=2", "--batch", 3, "--dtype", "float32")
    facts = json.loads(anyformer("plan", "llama:135m", "--json", *said, "--utilisation", 0.5, "--tokens", 1e9).out)
    plan = planning.plan(
        "llama:135m",
        device="h100",
        rows=4,
        length=1024,
        mesh=planning.Mesh(shard=2),
        batch=3,
        dtype="float32",
        attained=0.5,
        tokens=1e9,
    )
    assert facts == json.loads(json.dumps({"model": "llama:135m", **plan.to_data()}))
    assert facts["parameters"]["total"] == 134_515_008 and facts["kv_bytes_per_token"] == 46_080


def test_a_checkpoint_and_a_file_of_weights(anyformer: Callable, talker: Path, smollm2: Path) -> None:
    """A directory's own dtype is served; a GGUF file's header says what it is."""
    facts = json.loads(anyformer("plan", talker, "--json").out)
    tiny = families.llama("tiny", tie_word_embeddings=False)
    assert facts["parameters"]["total"] == planning.count(tiny) and facts["dtype"] == "float32"
    assert json.loads(anyformer("plan", smollm2, "--json").out)["parameters"]["total"] == 134_515_008


def test_a_recipe(anyformer: Callable) -> None:
    """Its model, batches and precision; options win over it."""
    recipe = Path(__file__).parents[2] / "recipes" / "cluster.toml"
    training = json.loads(anyformer("plan", recipe, "--json", "--device", "h100").out)["training"]
    assert training["step"]["tokens"] == 8192 and training["step"]["checkpoint_activations"]
    assert training["tokens"] == 100_000_000_000 and training["step"]["mesh"]["tensor"] == 2
    asked = json.loads(anyformer("plan", recipe, "--json", "--rows", 1).out)["training"]["step"]
    assert asked["rows"] == 1 and asked["tokens"] == 8192
    spread = json.loads(anyformer("plan", recipe, "--json", "--devices", 8).out)["training"]["step"]["mesh"]
    assert (spread["shard"], spread["tensor"]) == (4, 2)
    paid = json.loads(anyformer("plan", recipe, "--json", "--device", "h100", "--hours", 1).out)["training"]
    assert paid["flops"] == pytest.approx(0.4 * 989e12 * 3600, rel=1e-6)


def test_a_budget(anyformer: Callable) -> None:
    """Every fit side by side, smaller models, and where to start; in money and hours too."""
    ran = anyformer("plan", "--flops", "1e19")
    assert ran.code == 0 and ran.out.startswith("1e+19 FLOPs\n")
    for published in ("1: envelope", "2: IsoFLOP", "3: law of loss", "Besiroglu 2024", "DeepSeek 2024", "Kaplan 2020"):
        assert published in ran.out
    assert "least" in ran.out and "to start from" in ran.out
    rented = anyformer("plan", "--money", 100, "--device", "a100", "--devices", 2, "--price", 2, "--served", 1e12).out
    assert "25 hours on 2 x A100 SXM 80 GB at 40% of the peak rate · $100.00" in rented and "serve 1 T" in rented
    facts = json.loads(anyformer("plan", "--hours", 3, "--device", "l4", "--json").out)
    assert facts["budget"]["flops"] == pytest.approx(3 * 3600 * 0.4 * 121e12) and len(facts["fits"]) == 6


def test_the_recipe_of_a_budget_trains(anyformer: Callable, tmp_path: Path) -> None:
    """As it was written, but for its text and its length."""
    recipe, texts, run = tmp_path / "first.toml", tmp_path / "texts.txt", tmp_path / "run"
    ran = anyformer("plan", "--flops", "1e13", "--out", recipe)
    assert ran.code == 0 and f"the recipe is {recipe}" in ran.err
    texts.write_text("".join(f"{number} times {number} is {number * number}.\n" for number in range(3000)))
    said = (
        "--set",
        f'data.train="{texts}"',
        "--set",
        f'run.directory="{run}"',
        "--set",
        "run.samples=0",
        "--set",
        "run.watch=[]",
    )
    trained = anyformer("train", recipe, *said, "--set", "data.held_out=0.3", "--steps", 2, "--json")
    assert trained.code == 0, trained.err
    assert json.loads(trained.out)["finished"] and json.loads(trained.out)["step"] == 2
    planned = json.loads(anyformer("plan", run, "--json").out)
    assert planned["parameters"]["total"] == pytest.approx(2.2e5, rel=0.2)


def test_a_law_of_ones_own(anyformer: Callable, table: Path, tmp_path: Path) -> None:
    """Fitted, drawn, and followed where a budget is given."""
    plot = tmp_path / "law.svg"
    ran = anyformer("plan", "--fit", table, "--plot", plot)
    assert ran.code == 0 and "fitted to 18 runs" in ran.out and "by 3 IsoFLOP curves" in ran.out
    assert plot.read_text().startswith("<svg") and f"the plot is {plot}" in ran.err
    facts = json.loads(anyformer("plan", "--fit", table, "--json").out)
    assert facts["law"]["alpha"] == pytest.approx(0.35, abs=0.01) and facts["runs"] == 18
    assert facts["isoflop"]["exponent"] == pytest.approx(facts["exponent"], abs=0.05)
    followed = anyformer("plan", "--fit", table, "--flops", "1e18").out
    assert "yours, 18 runs" in followed and "to start from, by yours" in followed
    assert "extrapolated: its runs took 1.0e+15 to 1.0e+17 FLOPs" in followed
    assert "beyond 1.0e+17 FLOPs" in ran.out and "cannot be told from 0" not in ran.out


@pytest.mark.skipif(not POINTS.exists(), reason="the points of Hoffmann et al.'s figure are not beside the repository")
def test_chinchillas_runs(anyformer: Callable) -> None:
    """The corrected law, from the command line."""
    facts = json.loads(anyformer("plan", "--fit", POINTS, "--drop-worst", 5, "--json").out)
    logs = facts["logs"]
    assert [logs[name] for name in ("ln A", "ln B", "ln E")] == pytest.approx([6.169, 7.670, 0.597], abs=2e-3)
    assert [logs["alpha"], logs["beta"]] == pytest.approx([0.3473, 0.3671], abs=2e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name a model (llama:135m, say), a budget"),
        (("llama:135m", "gpt2:small"), "name one model, not 2"),
        (("llama:135m", "--device", "h1000"), "there is no device 'h1000'; did you mean h100"),
        (("llama:135m", "--utilisation", 40), "--utilisation is a share"),
        (("llama:135m", "--mesh", "shard"), "write it as shard=4,tensor=2"),
        (("llama:135m", "--mesh", "tensor=3", "--devices", 8), "does not make up the 8"),
        (("llama:135m", "--out", "x.toml"), "--out writes the recipe for a budget"),
        (("llama:135m", "--plot", "x.svg"), "fit one with --fit RUNS"),
        (("llama:3m",), "llama has no size '3m'"),
        (("nowhere",), "there is no file or directory 'nowhere'"),
        (("--flops", "1e19", "--hours", 3), "a budget is one of flops, hours and money, not flops and hours"),
        (("--hours", 3), "hours buy FLOPs on a device"),
        (("--flops", "-1"), "cannot be spent"),
        (("--money", 5, "--device", "rtx3090"), "no price is listed for RTX 3090 24 GB; give one"),
        (("gpt2:small", "--context", 2048), "a context of 2,048 tokens is longer than the 1,024 positions"),
        (("llama:135m", "--served", "1e9"), "--served is of a budget's model"),
        (("llama:135m", "--price", 2), "--price is a device's"),
        (("--flops", "1e19", "--rows", 4, "--mesh", "shard=2"), "--rows, --mesh: a model's, and none is named"),
        (("--flops", "1e19", "--out", "recipe.json"), "a recipe's name ends in .toml"),
        (("--fit",), "no runs to fit a law to"),
        (("--fit", "nowhere"), "there is no file or directory 'nowhere' of runs"),
    ],
)
def test_what_cannot_be_planned(anyformer: Callable, arguments: tuple, said: str) -> None:
    """One sentence, exit code 2."""
    ran = anyformer("plan", *arguments)
    assert ran.code == 2 and said in ran.err and ran.err.count("\n") == 1 and not ran.out


def test_too_few_runs_say_how_many_more(anyformer: Callable, table: Path) -> None:
    """And nothing is drawn."""
    table.write_text("\n".join(table.read_text().splitlines()[:6]) + "\n")
    ran = anyformer("plan", "--fit", table, "--plot", table.with_suffix(".svg"))
    assert ran.code == 2 and "here are 5, of 5 and 5: train at least 3 more" in ran.err
    assert not table.with_suffix(".svg").exists()
    assert (
        "is an .svg or .html file" in anyformer("plan", "--fit", POINTS, "--plot", "x.png").err or not POINTS.exists()
    )


def test_no_torch(command: list[str]) -> None:
    """The command itself never waits for it."""
    code = command[2].replace("main()", "main(['plan', 'llama:135m', '--device', 'h100'])")
    watched = f"import sys, atexit; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    ran = subprocess.run([command[0], "-c", watched], capture_output=True, text=True)
    assert ran.stdout.endswith("False\n"), ran.stderr
