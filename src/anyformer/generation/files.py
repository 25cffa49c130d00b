"""What a file says of generation: a checkpoint's `generation_config.json`, or an old `config.json`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

#: Keys that are read, and what they are called here.
NAMES = {
    "max_new_tokens": "max_new_tokens",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "num_beams": "beams",
    "num_beam_groups": "beam_groups",
    "diversity_penalty": "diversity_penalty",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
    "num_return_sequences": "answers",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "encoder_no_repeat_ngram_size": "encoder_no_repeat_ngram",
    "min_new_tokens": "min_new_tokens",
    "min_length": "min_length",
    "exponential_decay_length_penalty": "exponential_decay",
    "penalty_alpha": "penalty_alpha",
    "stop_strings": "stop",
    "bad_words_ids": "bad_words",
    "suppress_tokens": "suppress",
    "begin_suppress_tokens": "begin_suppress",
    "forced_bos_token_id": "forced_bos",
    "forced_eos_token_id": "forced_eos",
    "bos_token_id": "bos",
    "eos_token_id": "eos",
    "pad_token_id": "pad",
    "decoder_start_token_id": "start",
}
#: Keys that would change what is said, but that nothing here knows, and their value where they change nothing.
_UNKNOWN = {
    "encoder_repetition_penalty": 1.0,
    "sequence_bias": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": None,
    "guidance_scale": 1.0,
    "renormalize_logits": False,
    "watermarking_config": None,
    "token_healing": False,
    "dola_layers": None,
    "forced_decoder_ids": None,
    "force_words_ids": None,
    "constraints": None,
    "max_time": None,
}


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a file gives, by their names here. Warns of those that nothing here knows, where they would
    change what is said."""
    found = {name: config[key] for key, name in NAMES.items() if config.get(key) is not None}
    if config.get("do_sample"):
        found["temperature"] = config.get("temperature") or 1.0
        found.pop("penalty_alpha", None)
    # Of a decoder, most files only say how long its context is.
    if isinstance(longest := config.get("max_length"), int) and "start" in found and longest > 1:
        found.setdefault("max_new_tokens", longest - 1)
    unknown = [key for key, neutral in _UNKNOWN.items() if config.get(key) not in (None, neutral, [], {})]
    if unknown:
        warnings.warn(
            f"the file's settings of generation ask for {', '.join(unknown)}, which nothing here knows: answers may be "
            f"others than in transformers; take that out of generation_config.json if it may be left out",
            stacklevel=4,
        )
    return found


def meant(name: str, settings: Iterable[str]) -> str:
    """What an unknown setting is called among the `settings` here, or what it may have meant."""
    if name in NAMES:
        return f"it is called {NAMES[name]} here"
    if name == "do_sample":
        return "a temperature above 0 samples, 0 does not"
    near = get_close_matches(name, settings, n=3, cutoff=0.5) or ["temperature", "top_p", "beams"]
    return f"there are {', '.join(near)} among others"
