"""`POST /v1/trajectories`: what agents did, for the guard of a trajectory head."""

from typing import Annotated, Any

import msgspec
from litestar import post
from litestar.datastructures import State

from siren_runtime.errors import SirenError
from siren_serve.errors import RefusedRequest
from siren_serve.messages import checked_count


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an agent did: messages as an OpenAI client has them, and the tools that it has."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


class TrajectoryRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to score, and how.

    Attributes:
        messages, tools: one trajectory; the answer is its result.
        inputs: a list of such objects; the answer is a list.
        model: the guard's name; None is the server's first.
        threshold: as `Guard.score_trajectory`.
    """

    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    inputs: list[Run] | None = None
    model: str | None = None
    threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


def _given(request: TrajectoryRequest, limit: int) -> list[dict[str, Any]]:
    if (request.messages is None) == (request.inputs is None) or (
        request.inputs is not None and request.tools is not None
    ):
        raise RefusedRequest(
            422, "cannot_be_scored", "give messages, with their tools, or inputs: one of these"
        )
    if request.inputs is None:
        return [{"messages": request.messages, "tools": request.tools}]
    runs = [{"messages": run.messages, "tools": run.tools} for run in request.inputs]
    return checked_count(runs, limit)


@post("/v1/trajectories", status_code=200, tags=["score"])
async def trajectories(data: TrajectoryRequest, state: State) -> dict[str, Any]:
    """Score what an agent did, or a list of that, in which what cannot be scored has an error."""
    served = state.guards.get(data.model)
    given = _given(data, state.settings.max_texts)
    settings = {"threshold": data.threshold, "deadline": state.settings.timeout_s}
    results = await served.score_trajectories(given, **settings)
    if data.inputs is None:
        (result,) = results
        if isinstance(result, SirenError):
            raise result
        return {"model": served.name, **result.to_dict()}
    return {
        "model": served.name,
        "results": [
            served.told_error(one) if isinstance(one, SirenError) else one.to_dict()
            for one in results
        ],
    }
