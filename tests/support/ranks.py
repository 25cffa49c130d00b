"""Runs of many processes on this machine, started as torchrun starts them. As a script, it is one of them.

A job is what `train` takes, and besides: `interrupt`, [rank, step], a SIGTERM that one rank gets in a step; `kill`, a
step in which every rank kills itself. Or it is `begin`, a recipe whose model is made and looked at, and not trained; or
`wait`, where to say that the others have waited for the first.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

Job = dict[str, Any]


def start(count: int, jobs: list[Job], place: Path, *, killed: bool = False) -> None:
    """Run jobs one after another in `count` processes, which must end well, or all be `killed` by the last job."""
    path = place / f"jobs-{count}.json"
    path.write_text(json.dumps(jobs), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(path)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    said = [process.communicate()[1] for process in started]
    ends = {process.returncode for process in started}
    assert ends == {-signal.SIGKILL if killed else 0}, "\n".join(said)[-6000:]


def begin(recipe: Job) -> None:
    """Make the model that a recipe begins with; leave in `begin-RANK.json` of its run whether its numbers are those
    that one process makes, and the most bytes held meanwhile beside this rank's share and the largest parameter."""
    import torch
    from held import Held

    from anyformer import text
    from anyformer.model.laid import local, whole
    from anyformer.training.prepare import starting_model
    from anyformer.training.recipe import read_recipe
    from anyformer.training.scale.ranks import joined

    chosen = read_recipe(recipe)
    with joined(chosen.scale) as ranks:
        with Held() as held:
            model = starting_model(chosen, text.byte_level(), ranks=ranks)
        alone = dict(starting_model(chosen, text.byte_level()).named_parameters())
        made = dict(model.named_parameters())
        found = {
            "same": made.keys() == alone.keys() and all(torch.equal(whole(made[name]), alone[name]) for name in alone),
            "most": held.most,
            "share": sum(local(parameter).nbytes for parameter in made.values()),
            "largest": max(parameter.nbytes for parameter in alone.values()),
        }
        place = chosen.run.directory
        place.mkdir(exist_ok=True)
        (place / f"begin-{ranks.rank}.json").write_text(json.dumps(found), encoding="utf-8")


def wait(place: Path) -> None:
    """Have the first rank take longer than a collective may last; leave in `place` a file of each that got through."""
    from datetime import timedelta

    from torch.distributed.distributed_c10d import _set_pg_timeout, default_pg_timeout

    from anyformer.training.recipe import Scale
    from anyformer.training.scale.ranks import joined

    with joined(Scale()) as ranks:
        _set_pg_timeout(timedelta(seconds=1))
        ranks.first(lambda: time.sleep(2) if ranks.leads else None)
        _set_pg_timeout(default_pg_timeout)
        (place / f"waited-{ranks.rank}").touch()


def run(job: Job, rank: int) -> None:
    """Run one job in this process."""
    if "begin" in job:
        begin(job["begin"])
        return
    if "wait" in job:
        wait(Path(job["wait"]))
        return
    from anyformer.training import train
    from anyformer.training.trainer import Trainer

    whose, at = job.pop("interrupt", (rank, None))
    killed_at, real = job.pop("kill", None), Trainer.update

    def update(self: Trainer, step: int, rate: float) -> Any:
        if step + 1 == killed_at:
            time.sleep(0.5)  # until all are here: one that waited for a dead one would end otherwise
            os.kill(os.getpid(), signal.SIGKILL)
        if step + 1 == at and rank == whose:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, step, rate)

    Trainer.update = update
    train(**job, progress=False)
    Trainer.update = real


if __name__ == "__main__":
    import torch.distributed

    torch.distributed.init_process_group("gloo")
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        run(job, int(os.environ["RANK"]))
    torch.distributed.destroy_process_group()
