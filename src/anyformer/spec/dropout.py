"""Dropout, wherever a spec has it (Srivastava et al. 2014), set by one number."""

from __future__ import annotations

from typing import Any, TypeVar

from anyformer.spec.base import Part
from anyformer.spec.mixers import Mixer
from anyformer.spec.transformer import Branch, Embeddings

P = TypeVar("P", bound=Part)


def with_dropout(part: P, rate: float | None, attention: float | None = None) -> P:
    """A copy of a spec, or of a part of one, that drops out with probability `rate`: the embeddings and what each
    branch adds to the stream (Vaswani et al. 2017, section 5.4), and wherever else it drops out anything by now.

    Attention weights are dropped with probability `attention`; where that is None, as all else, if they are by now.
    None for `rate` leaves things as they are.
    """
    return _dropping(part, rate, rate if attention is None else attention, forced=attention is not None)


def _dropping(value: Any, rate: float | None, attention: float | None, forced: bool) -> Any:
    if isinstance(value, tuple):
        return tuple(_dropping(each, rate, attention, forced) for each in value)
    if not isinstance(value, Part):
        return value
    fields = {name: _dropping(getattr(value, name), rate, attention, forced) for name in type(value).model_fields}
    if "dropout" in fields:
        attends = isinstance(value, Mixer) and value.name.endswith("attention")
        wanted = attention if attends else rate
        always = forced if attends else isinstance(value, Branch | Embeddings)
        if wanted is not None and (always or fields["dropout"]):
            fields["dropout"] = wanted
    return value.replace(**fields)
