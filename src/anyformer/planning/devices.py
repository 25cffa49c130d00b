"""Devices that a plan can be made for, as their makers describe them."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from anyformer.errors import PlanError

GB = 1e9
#: What the command line measures instead of looking it up here.
THIS = "this"


@dataclass(frozen=True)
class Device:
    """An accelerator, or a machine.

    - `flops`: products a second in bfloat16, dense; `flops_float32`: in float32.
    - `memory`: bytes. `bandwidth`: bytes a second from memory.
    - `near`: bytes a second that it sends to those of its machine, of which there are `together`; `far`: to others.
    - `fused`: it has the kernels of accelerators, which keep less (`activations.Pass`).
    - `price`: US dollars an hour to rent one, by the second and without a commitment; None where nobody lists one.
    """

    name: str
    flops: float
    flops_float32: float
    memory: float
    bandwidth: float
    near: float
    far: float
    together: int = 8
    fused: bool = True
    price: float | None = None

    @property
    def precision(self) -> str:
        """That of the products it is best at."""
        return "bfloat16" if self.flops > 1.5 * self.flops_float32 else "float32"

    def rate(self, precision: str) -> float:
        """Products a second in a precision of training or a dtype of serving."""
        return self.flops_float32 if precision in ("float32", "float64") else self.flops


#: By the makers' data sheets: dense rates (those sheets' "with sparsity" halved), each way of a link. NVLink and one
#: adapter of 400 Gb/s each (A100: 200 Gb/s) where there are SXM modules; PCIe cards send over PCIe, and to other
#: machines over one adapter of 100 Gb/s. Prices: of an hour by modal.com's list a second, May 2026, to the cent;
#: they change, so where money matters give one's own.
DEVICES = {
    "b200": Device("B200 SXM 180 GB", 2250e12, 75e12, 180 * GB, 8.0e12, 900 * GB, 50 * GB, price=6.25),
    "h200": Device("H200 SXM 141 GB", 989e12, 67e12, 141 * GB, 4.8e12, 450 * GB, 50 * GB, price=4.54),
    "h100": Device("H100 SXM 80 GB", 989e12, 67e12, 80 * GB, 3.35e12, 450 * GB, 50 * GB, price=3.95),
    "a100": Device("A100 SXM 80 GB", 312e12, 19.5e12, 80 * GB, 2.039e12, 300 * GB, 25 * GB, price=2.50),
    "a100-40": Device("A100 SXM 40 GB", 312e12, 19.5e12, 40 * GB, 1.555e12, 300 * GB, 25 * GB, price=2.10),
    "mi300x": Device("MI300X 192 GB", 1307e12, 163.4e12, 192 * GB, 5.3e12, 448 * GB, 50 * GB),
    "l40s": Device("L40S 48 GB", 362e12, 91.6e12, 48 * GB, 0.864e12, 32 * GB, 12.5 * GB, price=1.95),
    "a10": Device("A10 24 GB", 125e12, 31.2e12, 24 * GB, 0.6e12, 32 * GB, 12.5 * GB, price=1.10),
    "l4": Device("L4 24 GB", 121e12, 30.3e12, 24 * GB, 0.3e12, 32 * GB, 12.5 * GB, price=0.80),
    "rtx5090": Device("RTX 5090 32 GB", 209.5e12, 104.8e12, 32 * GB, 1.792e12, 64 * GB, 12.5 * GB, together=2),
    "rtx4090": Device("RTX 4090 24 GB", 165.2e12, 82.6e12, 24 * GB, 1.008e12, 32 * GB, 12.5 * GB, together=2),
    "rtx3090": Device("RTX 3090 24 GB", 71e12, 35.6e12, 24 * GB, 0.936e12, 32 * GB, 12.5 * GB, together=2),
}


def find(name: str) -> Device:
    """The device of a name. Raises `PlanError` naming the nearest, or all that there are."""
    wanted = name.lower().replace(" ", "").replace("_", "-")
    if wanted in DEVICES:
        return DEVICES[wanted]
    if wanted == THIS:
        raise PlanError("'this' has to be measured: in Python, give device=af.machine.this_device(spec)")
    near = get_close_matches(wanted, DEVICES, cutoff=0.5)
    nearest = f"did you mean {' or '.join(near)}? There are" if near else "there are"
    raise PlanError(f"there is no device '{name}'; {nearest} {', '.join(DEVICES)}, and {THIS}, which is measured")
