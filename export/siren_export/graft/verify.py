"""What grafting must not change, and what it must give: checked in the engine itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from siren_runtime.bundle.progress import Progress
from siren_runtime.errors import BundleError
from siren_runtime.generation.engine import Engine
from siren_runtime.generation.manifest import NEURONS_OUTPUT, GraftCheck

PROMPTS = (
    "The history of bread begins",
    "How can I sleep better? Name three ways.\n1.",
    "Привет! 你好，今天",
)
_TOKENS = 24  # that are generated from each
_GREEDY: dict[str, Any] = {"do_sample": False}
# The picked neurons are values of the states, unchanged; a second run of the states may round.
_TOLERANCE = 1e-3


def generated(folder: Path, outputs: list[str]) -> list[list[np.ndarray]]:
    """Generate from each prompt and return tokens and outputs, int64 and float32.

    Returns:
        Of each prompt: the tokens, and of each output its values at all tokens that the engine
        has read, [tokens, ...].

    Raises:
        BundleError: the logits are no numbers, so that the tokens say nothing.
        BackendError: the engine failed.
    """
    engine = Engine(folder)
    results = []
    for prompt in PROMPTS:
        tokens = engine.encode(prompt)
        run = engine.run(len(tokens) + _TOKENS, _GREEDY)
        run.append(tokens)
        if np.isnan(run.output_of_pass(engine.model.logits)).any():
            raise BundleError(
                f"{folder}: its logits are not all numbers after {prompt!r}; a weight is damaged, "
                "make the model anew"
            )
        values = {name: [run.output(name)[0]] for name in outputs}
        chosen = [run.step()]
        while not run.is_done and len(chosen) < _TOKENS:
            chosen.append(run.step())
            for name in outputs:
                values[name].append(run.output(name)[0])
        results.append([np.array(chosen), *(np.concatenate(values[name]) for name in outputs)])
    return results


@dataclass(frozen=True)
class Folders:
    """What is compared: a model folder as it was, grafted, and one that gives states whole."""

    plain: Path
    grafted: Path
    whole: Path


def check_graft(
    folders: Folders,
    channels: list[np.ndarray],
    projection: np.ndarray | None,
    states: list[str],
    progress: Progress,
) -> GraftCheck:
    """Compare what three folders generate.

    Args:
        channels: of each state, those that the head reads.
        projection: what the neurons are multiplied by.
        states: the outputs that hold states, whole.

    Raises:
        BundleError: the graft changes the tokens, or its neurons are not those of the states.
        BackendError: one cannot be run.
    """
    progress("generate", 0, 3)
    grafted = folders.grafted
    before = [tokens for (tokens,) in generated(folders.plain, [])]
    progress("generate", 1, 3)
    after = generated(grafted, [NEURONS_OUTPUT])
    progress("generate", 2, 3)
    reference = generated(folders.whole, states)
    difference, count = 0.0, 0
    for prompt, old, (new, found), (_, *values) in zip(
        PROMPTS, before, after, reference, strict=True
    ):
        if not np.array_equal(old, new):
            raise BundleError(
                f"{grafted}: after {prompt!r} it generates other tokens than before the graft "
                f"({new.tolist()[:8]}…, before {old.tolist()[:8]}…)"
            )
        expected = np.concatenate(
            [state[:, picked] for state, picked in zip(values, channels, strict=True)], axis=1
        )
        if projection is not None:
            expected = expected @ projection
        if found.shape != expected.shape or not np.isfinite(found).all():
            raise BundleError(
                f"{grafted}: its neurons are {found.shape} and not all finite, expected finite "
                f"ones {expected.shape}"
            )
        scale = np.maximum(np.abs(expected), np.abs(expected).mean())
        difference = max(difference, float((np.abs(found - expected) / scale).max()))
        count += len(found)
    if not difference <= _TOLERANCE:
        raise BundleError(
            f"{grafted}: its neurons are up to {difference:.2e} from the engine's own states"
        )
    progress("generate", 3, 3)
    return GraftCheck(prompts=len(PROMPTS), tokens=count, max_difference=difference)
