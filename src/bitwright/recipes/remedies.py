"""Remedies: what one can change in a recipe against a cause of error, each a row of data.

Source: Nagel et al., A White Paper on Neural Network Quantization, 2021, section 3.7.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bitwright.ptq import STEPS
from bitwright.recipes.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A change of a recipe.

    Attributes:
        help: what it does, one line.
        settings: `{step: {setting: value}}` to change.
        insert: steps to add, `{step: (the step that it comes after, its settings)}`; one that is there stays.
        instead_of: steps that it takes out, which do the same in another way.
        raises: give 8 bits to the sites whose findings ask for it.
    """

    help: str
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    insert: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    instead_of: tuple[str, ...] = ()
    raises: bool = False


#: Of learned rounding: a hundredth of what papers take, which is enough to see whether it helps.
LEARNED_ITERATIONS = 200

#: In the order in which they are tried: ranges, the network itself, rounding, and only then more bits.
REMEDIES: dict[str, Remedy] = {
    "per-channel": Remedy(
        help="one scale for each output channel of a weight", settings={"place": {"granularity": "channel"}}
    ),
    "mse-activations": Remedy(
        help="activation ranges of the least squared error", settings={"calibrate": {"activations": "mse"}}
    ),
    "percentile-activations": Remedy(
        help="activation ranges that leave out the largest 0.01 %",
        settings={"calibrate": {"activations": "percentile"}},
    ),
    "minmax-activations": Remedy(
        help="activation ranges that clip nothing", settings={"calibrate": {"activations": "minmax"}}
    ),
    "mse-weights": Remedy(
        help="weight ranges of the least squared error",
        settings={"calibrate": {"weights": "mse", "low_bit_weights": "mse"}},
    ),
    "equalize": Remedy(
        help="weight ranges of neighbouring layers made alike", insert={"equalize": ("fold_batchnorm", {})}
    ),
    "correct-bias": Remedy(
        help="the shifts that rounding brings are taken back from the biases",
        insert={"correct_bias": ("calibrate", {"method": "empirical"})},
    ),
    "gptq": Remedy(
        help="weights of few bits rounded in closed form",
        insert={"gptq": ("calibrate", {"most_bits": 6})},
        instead_of=("correct_bias",),
    ),
    "adaround": Remedy(
        help="rounding of weights learned, layer by layer",
        insert={"adaround": ("calibrate", {"iterations": LEARNED_ITERATIONS})},
        instead_of=("correct_bias", "gptq"),
    ),
    "qdrop": Remedy(
        help="rounding and activation steps learned, block by block",
        insert={"qdrop": ("calibrate", {"iterations": LEARNED_ITERATIONS})},
        instead_of=("correct_bias", "gptq", "adaround"),
    ),
    "raise": Remedy(help="8 bits for the sites that hurt", raises=True),
}


def remedied(recipe: Recipe, remedy: Remedy) -> Recipe | None:
    """The recipe with a remedy applied; None where it would change nothing, or has no place in it.

    Conditions of steps stay with them; what is added has none.

    Example:
        >>> recipe = Recipe(name="r", help="", steps=(("place", {}), ("calibrate", {"weights": "minmax"})))
        >>> remedied(recipe, REMEDIES["mse-activations"]).steps[1]
        ('calibrate', {'weights': 'minmax', 'activations': 'mse'})
        >>> remedied(recipe, REMEDIES["raise"]) is None
        True
    """
    entries: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
        (name, dict(own), recipe.when.get(i, ())) for i, (name, own) in enumerate(recipe.steps)
    ]
    present = {name for name, *_ in entries}
    if not present.issuperset(remedy.settings):
        return None
    for i, (name, own, conditions) in enumerate(entries):
        entries[i] = (name, own | dict(remedy.settings.get(name, {})), conditions)
    kept = [entry for entry in entries if entry[0] not in remedy.instead_of]
    for step, (anchor, added) in remedy.insert.items():
        if step in present:
            continue
        places = [i for i, (name, *_) in enumerate(kept) if name == anchor]
        if not places or step not in STEPS:
            return None
        kept.insert(places[-1] + 1, (step, dict(added), ()))
    steps = tuple((name, own) for name, own, _ in kept)
    if _in_full(steps) == _in_full(recipe.steps):
        return None
    when = {i: conditions for i, (_, _, conditions) in enumerate(kept) if conditions}
    return dataclasses.replace(recipe, steps=steps, when=when)


def _in_full(steps: tuple[tuple[str, Mapping[str, Any]], ...]) -> list[Any]:
    """Steps with all their settings, so that a default that is spelled out counts as no change."""
    return [(name, STEPS[name].load()(**{k: _plain(v) for k, v in own.items()})) for name, own in steps]


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
