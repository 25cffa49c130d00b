"""A mixture of experts against a feed-forward of the same FLOPs a token, and what its experts specialise in."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyformer import model as models
from anyformer import planning
from anyformer.comparing.statistics import difference, sample
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import attention, decoder, held_out_loss, learn, text_ids, thinned, windows
from anyformer.inspection import trace
from anyformer.spec import FeedForward, Mixer, MixtureOfExperts, Rotary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIM, DEPTH, HEADS, EXPERTS, CHOSEN = 64, 2, 4, 8, 2
LENGTH, ROWS, STEPS, SEEDS, READ = 64, 16, 600, 4, 512
#: The router multiplies D·E numbers a token: as many as E/2 more hidden channels of a dense feed-forward do.
DENSE = FeedForward(hidden=4 * DIM + EXPERTS // 2)
MIXTURE = MixtureOfExperts(
    experts=EXPERTS, top_k=CHOSEN, hidden=4 * DIM // CHOSEN, activation="gelu", gated=False, balance=0.01
)
#: Experts have specialised in what a byte is where that settles a tenth of which expert it goes to.
SETTLED = 0.1
SHUFFLES = 20
KINDS = {
    "small letters": string.ascii_lowercase,
    "capitals": string.ascii_uppercase,
    "digits": string.digits,
    "spaces": " \t",
    "line ends": "\r\n",
    "brackets": "()[]{}<>",
    "quotes": "'\"`",
    "other signs": "".join(sign for sign in string.punctuation if sign not in "()[]{}<>'\"`"),
}


def measure(lab: Lab) -> Numbers:
    """Both from several seeds over the same batches; then whom the mixture's router sends what."""
    train, held_out = text_ids(lab)
    mixers: dict[str, Mixer] = {"dense": DENSE, "mixture": MIXTURE}
    numbers: Numbers = {"dense": {"loss": []}, "mixture": {"loss": []}, "settled": [], "kinds": [*KINDS, "other"]}
    numbers |= {"untrained": [], "swapped": []}
    for name, mixer in mixers.items():
        spec = decoder(DIM, DEPTH, attention(DIM, HEADS, position=Rotary()), mixer)
        counted = planning.parameters(spec)
        flops = sum(planning.forward_flops(spec, LENGTH).values())
        numbers[name] |= {"parameters": counted.total, "active": counted.active, "flops_a_token": flops / LENGTH}
        for seed in range(lab.seed, lab.seed + lab.times(SEEDS, least=2)):
            lab.say(f"training {name}, seed {seed}")
            model = models.build(spec, seed=seed)
            if name == "mixture":
                numbers["untrained"].append(_specialisation(model, held_out)["byte"]["true"])
            losses = learn(model, windows(train, LENGTH, ROWS, seed), lab.times(STEPS), learning_rate=3e-3)
            numbers[name]["loss"].append(held_out_loss(model, held_out, LENGTH, READ))
            numbers[name].setdefault("curve", thinned(losses))
            if name == "mixture":
                numbers["settled"].append(_specialisation(model, held_out))
                numbers.setdefault("shares", _shares(model, held_out))
                numbers["swapped"].append(_loss_with_experts_swapped(model, held_out))
    return numbers


@torch.no_grad()
def _routed(model: models.Transformer, ids: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Of bytes spread over a held-out text what may decide where they go, each [N]; and each layer's first choice."""
    begins = torch.linspace(0, len(ids) - LENGTH - 1, READ).long()[:, None]
    cut = ids[begins + torch.arange(LENGTH + 1)]
    kinds = torch.full((256,), len(KINDS))
    for index, members in enumerate(KINDS.values()):
        kinds[list(members.encode())] = index
    with trace(model, "decoder.layers.*.experts.choices") as seen:
        model(cut[:, :-1])
    parts = (begins * len(KINDS) // len(ids)).expand(-1, LENGTH)
    features = {"byte": kinds[cut[:, :-1]], "next byte": kinds[cut[:, 1:]], "part of the text": parts}
    return {name: values.flatten() for name, values in features.items()}, [
        choice[..., 0].flatten() for _, choice in seen.items()
    ]


def _specialisation(model: models.Transformer, ids: Tensor) -> dict[str, dict[str, list[float]]]:
    """What share of the entropy of a layer's choice each feature settles, and shuffled against it, by layer."""
    features, choices = _routed(model, ids)
    generator = torch.Generator().manual_seed(0)
    settled = {}
    for name, values in features.items():
        shuffled = [values[torch.randperm(len(values), generator=generator)] for _ in range(SHUFFLES)]
        chance = [sum(settles(other, choice) for other in shuffled) / SHUFFLES for choice in choices]
        settled[name] = {"true": [settles(values, choice) for choice in choices], "shuffled": chance}
    return settled


def settles(feature: Tensor, choice: Tensor) -> float:
    """The mutual information of a feature [N] and a choice [N] over the entropy of the choice (Shannon 1948)."""
    joint = torch.zeros(int(feature.max()) + 1, int(choice.max()) + 1, dtype=torch.float64)
    joint = joint.index_put((feature, choice), torch.ones((), dtype=torch.float64), accumulate=True) / len(choice)
    entropies = [-torch.special.xlogy(each, each).sum() for each in (joint, joint.sum(1), joint.sum(0))]
    both, of_feature, of_choice = entropies
    return ((of_feature + of_choice - both) / of_choice.clamp(min=1e-12)).item()


def _shares(model: models.Transformer, ids: Tensor) -> list[list[float]]:
    """Of the bytes of each kind, the share that the last layer sends to each expert, [kinds, experts]."""
    features, choices = _routed(model, ids)
    counts = torch.zeros(len(KINDS) + 1, EXPERTS)
    counts.index_put_((features["byte"], choices[-1]), torch.ones(()), accumulate=True)
    return [[round(share, 4) for share in row] for row in (counts / counts.sum(1, keepdim=True).clamp(min=1)).tolist()]


@torch.no_grad()
def _loss_with_experts_swapped(model: models.Transformer, ids: Tensor) -> float:
    """The loss where every token goes to its experts' neighbours: the same where experts are interchangeable."""
    for name, parameter in model.named_parameters():
        if name.endswith("router.weight"):
            parameter.copy_(parameter.roll(1, dims=0))
    return held_out_loss(model, ids, LENGTH, READ)


def judge(numbers: Numbers) -> Verdict:
    gain = difference(numbers["mixture"]["loss"], numbers["dense"]["loss"])
    true, shuffled = ([max(seed["byte"][how]) for seed in numbers["settled"]] for how in ("true", "shuffled"))
    part = sample([max(seed["part of the text"]["true"]) for seed in numbers["settled"]]).mean
    untrained = sample([max(seed) for seed in numbers["untrained"]]).mean
    beyond, swapped = difference(true, shuffled), difference(numbers["swapped"], numbers["mixture"]["loss"])
    assert gain.low is not None and gain.high is not None
    told = (
        f"at {numbers['mixture']['flops_a_token'] / 1e3:.0f} thousand FLOPs a token either way, the mixture's loss is "
        f"{gain.mean:+.3f} nats a byte against dense (95% interval {gain.low:+.3f} to {gain.high:+.3f}); sent to the "
        f"neighbours of their experts bytes lose {swapped.mean:.2f} more; their kind settles {sample(true).mean:.0%} "
        f"of which expert they go to (untrained {untrained:.0%}, shuffled {sample(shuffled).mean:.1%}), the part of "
        f"the text {part:.1%}"
    )
    settled = beyond.larger_than_noise and beyond.mean > 0 and sample(true).mean >= SETTLED
    differ = swapped.larger_than_noise and swapped.mean > 0
    if not (settled and differ) or (gain.larger_than_noise and gain.mean > 0):
        return does_not_hold(told)
    return holds(told) if gain.larger_than_noise else unclear(told)


def draw(numbers: Numbers, figure: Figure) -> None:
    losses, experts = figure.subplots(1, 2, width_ratios=[1, 1.6])
    pairs = list(zip(numbers["dense"]["loss"], numbers["mixture"]["loss"]))
    for pair in pairs:
        losses.plot([0, 1], pair, "o-", color="C0", alpha=0.7)
    losses.set(ylabel="held-out loss, nats a byte", xlim=(-0.4, 1.4), title=f"{len(pairs)} seeds, equal FLOPs")
    losses.set_xticks([0, 1], ["dense", f"{EXPERTS} experts,\n{CHOSEN} a token"])
    shown = experts.imshow(numbers["shares"], cmap="Blues", vmin=0, vmax=1, aspect="auto")
    experts.set_yticks(range(len(numbers["kinds"])), numbers["kinds"])
    experts.set(xlabel="expert of the last layer", title="where bytes of a kind go")
    experts.set_xticks(range(len(numbers["shares"][0])))
    experts.grid(False)
    figure.colorbar(shown, ax=experts, label="share of the kind's bytes")


EXPERIMENT = Experiment(
    name="experts",
    claim="A mixture of experts learns more than a dense feed-forward of the same FLOPs, and its experts specialise.",
    source="Shazeer et al. 2017, section 5.2 and appendix E (https://arxiv.org/abs/1701.06538)",
    refuted_by="the mixture's loss is higher by more than the noise, or its experts can be swapped or share all bytes",
    measure=measure,
    judge=judge,
    draw=draw,
    takes={"data": "a text to learn from, a file or folder (Python's own library)"},
)
