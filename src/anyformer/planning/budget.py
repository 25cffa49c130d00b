"""From a budget to a model: FLOPs, hours of devices or money; what each law makes of them; and where to start."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from anyformer.errors import PlanError
from anyformer.planning.devices import Device
from anyformer.planning.plan import ATTAINED
from anyformer.planning.scaling import (
    CORRECTED,
    LEAST,
    MEASURED,
    MOST,
    PUBLISHED,
    Law,
    Optimum,
    Published,
    Smaller,
    optimum,
    smaller_models,
)
from anyformer.planning.starting import Start, start

FOLLOWED = next(published.name for published in PUBLISHED if published.fit is CORRECTED)
#: Tokens served for each one trained on, where nobody says how many are.
SERVED = 10


@dataclass(frozen=True)
class Budget:
    """FLOPs to train with, and what they come from: `hours` on so many `devices`, at a price of `money` US dollars.
    `attained`: the share of the devices' rate of products that is counted with."""

    flops: float
    devices: int = 1
    device: Device | None = None
    hours: float | None = None
    money: float | None = None
    attained: float = ATTAINED


def budget(
    *,
    flops: float | None = None,
    hours: float | None = None,
    money: float | None = None,
    device: Device | None = None,
    devices: int = 1,
    attained: float = ATTAINED,
) -> Budget:
    """What is there to spend: `flops`, or `hours` on `devices`, or the `money` that rents them. Where the device is
    known, each is told in the others' terms.

    Raises `PlanError` where it is not exactly one of the three, or one that nothing can be done with.
    """
    given = {name: value for name, value in (("flops", flops), ("hours", hours), ("money", money)) if value is not None}
    if len(given) != 1:
        raise PlanError(f"a budget is one of flops, hours and money, not {' and '.join(given) or 'none of them'}")
    ((name, value),) = given.items()
    if not 0 < value < float("inf"):
        raise PlanError(f"a budget of {value:g} {name} cannot be spent; it has to be above 0 and finite")
    rate = None
    if device is not None:
        rate = attained * device.rate(device.precision) * devices
    elif flops is None:
        raise PlanError(f"{name} buy FLOPs on a device; name one (h100, say)")
    price = device.price * devices if device is not None and device.price is not None else None
    if money is not None:
        if price is None:
            named = device.name if device is not None else "that device"
            raise PlanError(f"no price is listed for {named}; give one, in dollars an hour for each: --price 2")
        hours = money / price
    if hours is not None and rate is not None:
        flops = hours * 3600 * rate
    elif flops is not None and rate is not None:
        hours = flops / rate / 3600
    assert flops is not None
    if not LEAST <= flops <= MOST:
        raise PlanError(f"{flops:.3g} FLOPs are beyond what any law here is about; give {LEAST:g} to {MOST:g}")
    return Budget(flops, devices, device, hours, hours * price if hours and price else None, attained)


@dataclass(frozen=True)
class Spending:
    """What a budget is best spent on.

    - `optima`: parameters and tokens, under every published fit, and under one's own.
    - `loss`: what the budget buys in nats a token, under the fit that is `followed`.
    - `smaller`: sizes that reach it by longer training, with what training and serving `served` tokens cost.
    - `start`: a spec and a recipe.
    """

    budget: Budget
    optima: tuple[Optimum, ...]
    followed: str
    loss: float
    served: float
    smaller: tuple[Smaller, ...]
    start: Start

    @property
    def is_extrapolated(self) -> bool:
        """Whether the budget lies beyond those of the runs behind the published laws."""
        return not MEASURED[0] <= self.budget.flops <= MEASURED[1]

    def to_data(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        spec = self.start.spec
        assert spec.decoder is not None
        return {
            "budget": asdict(self.budget),
            "fits": [{**asdict(each), "tokens_per_parameter": each.tokens_per_parameter} for each in self.optima],
            "extrapolated": self.is_extrapolated,
            "followed": self.followed,
            "loss": self.loss,
            "smaller": {"served": self.served, "models": [asdict(each) for each in self.smaller]},
            "start": {"spec": spec.model_dump(mode="json"), "recipe": self.start.recipe},
        }


def spend(
    spent: Budget,
    *,
    own: Published | None = None,
    law: Law = CORRECTED,
    served: float | None = None,
    name: str = "recipe.toml",
) -> Spending:
    """What a budget is best spent on, by every published fit, and by one's `own`.

    - `law`: what is followed to where to start: the corrected fit of Hoffmann et al.'s runs, or that of one's own.
    - `served`: tokens that the model will give in its life (ten for each that it is trained on, unless given).
    - `name`: what the recipe is to be called.
    """
    parameters = law.parameters(spent.flops)
    tokens = spent.flops / 6 / parameters
    served = SERVED * tokens if served is None else served
    fits = (*([own] if own is not None else []), *PUBLISHED)
    return Spending(
        budget=spent,
        optima=tuple(optimum(fit, spent.flops) for fit in fits),
        followed=own.name if own is not None else FOLLOWED,
        loss=law.loss(parameters, tokens),
        served=served,
        smaller=tuple(smaller_models(law, spent.flops, served)),
        start=start(spent.flops, parameters, device=spent.device, devices=spent.devices, name=name),
    )
