"""Score trajectories of agents: by one bundle, or by the mean of several's scores."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from siren_runtime.backends.outputs import FloatArray
from siren_runtime.backends.readout import Readout
from siren_runtime.errors import InputError, SirenError
from siren_runtime.text.reading import Window
from siren_runtime.text.trajectory import Trajectory, trajectory_of
from siren_runtime.text.trajectory_reading import TrajectoryReader, TrajectoryReading

from .call import Call
from .result import ScoreResult
from .scorer import Scorer
from .text_score import TextScore
from .verdict import Judge
from .windows import Scored


def trajectories_of(given: Iterable[Any], method: str) -> list[Trajectory | SirenError]:
    """Each as a trajectory, or why it is none.

    Raises:
        InputError: `given` is one string or one object, or no list; `method` is what was called.
    """
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise InputError(f"{method} takes a list of trajectories, found {type(given).__name__}")
    return [_trajectory(one) for one in given]


def score_trajectories(
    scorers: Sequence[Scorer],
    judge: Judge,
    trajectories: Sequence[Trajectory | SirenError],
    call: Call,
) -> list[ScoreResult | SirenError]:
    """The verdict on each trajectory; an error among them is its own result.

    Raises:
        InputError: the bundles score texts.
        BackendError, InterruptedCall: as `Scorer.run`.
    """
    readings = [[_read(reader_of(scorer), one, call) for one in trajectories] for scorer in scorers]
    by_member = [
        _scores(scorer, of_member, call)
        for scorer, of_member in zip(scorers, readings, strict=True)
    ]
    verdicts = judge.verdicts(by_member, call)
    return [
        result if isinstance(result, SirenError) else replace(result, omitted=_omitted(of_members))
        for result, of_members in zip(verdicts, zip(*readings, strict=True), strict=True)
    ]


def reader_of(scorer: Scorer) -> TrajectoryReader:
    """What reads trajectories for a scorer.

    Raises:
        InputError: its bundle scores texts.
    """
    if scorer.trajectories is None:
        raise InputError(
            f"the guard of {scorer.manifest.backbone.id} scores texts, and no trajectories: its "
            "head was not fitted on them; use score"
        )
    return scorer.trajectories


def trajectory_score(
    readout: Readout, reading: TrajectoryReading, row: FloatArray, features: FloatArray
) -> TextScore:
    """What the engine makes of a trajectory, as of a text that is read at once.

    Args:
        row: float32 [width], as `siren_runtime.backends.readout` has it.
        features: float32 [n_features], what the head read; empty where nobody asked.
    """
    return TextScore(
        heads=readout.heads(row),
        features=features,
        tokens=reading.tokens,
        truncated=reading.omitted is not None,
        unknown=reading.unknown,
    )


def _trajectory(given: Any) -> Trajectory | SirenError:
    try:
        return trajectory_of(given)
    except InputError as error:
        return error


def _read(
    reader: TrajectoryReader, trajectory: Trajectory | SirenError, call: Call
) -> TrajectoryReading | SirenError:
    call.deadline.check("before all trajectories were tokenized")
    try:
        return (
            trajectory
            if isinstance(trajectory, SirenError)
            else reader.read(trajectory, call.limits)
        )
    except SirenError as error:
        return error


def _scores(
    scorer: Scorer, readings: Sequence[TrajectoryReading | SirenError], call: Call
) -> list[TextScore | SirenError]:
    windows = {
        place: Window(one.ids)
        for place, one in enumerate(readings)
        if isinstance(one, TrajectoryReading)
    }
    scored = scorer.run(windows, call.token_budget, call.deadline.check)
    return [
        trajectory_score(scorer.readout, one, found.row, found.features)
        if isinstance(one, TrajectoryReading) and isinstance(found := scored[place], Scored)
        else cast("SirenError", scored.get(place, one))
        for place, one in enumerate(readings)
    ]


def _omitted(readings: Sequence[TrajectoryReading | SirenError]) -> tuple[int, int] | None:
    """What the first member that truncated did not read; one verdict has the place of one."""
    good = (one for one in readings if isinstance(one, TrajectoryReading))
    return next((one.omitted for one in good if one.omitted is not None), None)
