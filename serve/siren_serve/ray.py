"""A guard on a Ray cluster: replicas of the server in Ray Serve, and a function for Ray Data.

    serve.run(guard_deployment("guards/minilm").options(num_replicas=4).bind())
    dataset.map_batches(BatchScorer, fn_constructor_args=("guards/minilm",), concurrency=4)

What names a bundle must be found on every node: a folder that all share, or a hub repository's id.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt
from ray import serve

from siren_runtime import Guard, SirenError
from siren_runtime.bundle.arguments import check_choice
from siren_runtime.errors import InputError
from siren_runtime.text.rules import one_text

from .app import make_app
from .gate import Gate
from .messages import checked_count
from .settings import Settings

Errors = Literal["raise", "column"]
# Of a server that listens by itself, which a replica does not.
_OF_LISTENERS = "workers", "max_connections", "body_timeout_s", "send_timeout_s", "drain_s"

Batch = dict[str, npt.NDArray[Any]]


def guard_deployment(guards: str | Mapping[str, str], **settings: Any) -> serve.Deployment:
    """Make a Ray Serve deployment of which each replica is a whole `siren serve`.

    All its routes answer over HTTP. Over a handle, `score` and `score_batch` do, with results as
    `ScoreResult.to_dict`. Texts of all callers of a replica share engine runs, so it takes
    `max_calls` requests at once, and as many wait; over that Ray answers 503.

    A session of `/v1/streams` lives in one replica: with several, use the WebSocket.
    `/admin/reload` reaches one replica too: deploy again.

    Args:
        guards: what `Guard.load` takes; or several by name, the first one the default.
        settings: as `Settings` has them: threads, runs, max_calls, keys_file and so on, but for
            what Ray says: workers, max_connections, body_timeout_s, send_timeout_s, drain_s.

    Raises:
        TypeError: there is no such setting.
        InputError: one is of another type, or Ray's to say.
    """
    named = {"guard": guards} if isinstance(guards, str) else dict(guards)
    made = _checked(Settings(guards=named, **settings), settings)

    def build() -> Gate:
        return make_app(made)

    @serve.deployment(max_ongoing_requests=made.max_calls, max_queued_requests=made.max_calls)
    @serve.ingress(build)
    class SirenServe:
        app: Gate  # Ray's, which runs its lifespan

        async def score(
            self,
            text: str | None = None,
            *,
            prompt: str | None = None,
            response: str | None = None,
            model: str | None = None,
        ) -> dict[str, Any]:
            one_text(text, prompt, response)
            given = text if text is not None else (prompt, response)
            (result,) = await self.app.guards.get(model).score_all([given], deadline=made.timeout_s)
            return result.to_dict()

        async def score_batch(self, texts: list[Any], *, model: str | None = None) -> list[Any]:
            served = self.app.guards.get(model)
            texts = checked_count(texts, made.max_texts)
            results = await served.score_all(texts, deadline=made.timeout_s)
            return [result.to_dict() for result in results]

    return SirenServe


def _checked(made: Settings, given: Mapping[str, Any]) -> Settings:
    """Settings of the right types, and of a replica; else as `guard_deployment` raises."""
    for name in _OF_LISTENERS:
        if name in given:
            raise InputError(f"{name}: a replica does not listen, Ray does (serve.start, .options)")
    try:
        return Settings.decode(made.encode())
    except msgspec.ValidationError as error:
        raise InputError(f"the settings of a replica: {error}") from None


class BatchScorer:
    """Scores a column of texts; for `Dataset.map_batches`.

    The batch gets the columns `score` (float64), `is_harmful` (bool, None where too little is
    known) and `tier`.
    """

    def __init__(
        self,
        guard: str,
        column: str = "text",
        *,
        threads: int = 1,
        errors: Errors = "raise",
        **options: Any,
    ) -> None:
        """Load the guard, once a worker.

        Args:
            guard: what `Guard.load` takes.
            column: of the texts.
            threads: CPU threads of the engine; the worker's `num_cpus` should be as many.
            errors: what becomes of a text that cannot be scored: the job ends with its error, or
                the column `error` has it, beside a score of NaN and no verdict.
            options: as `Guard.load`.

        Raises:
            SirenError: as `Guard.load`, or `errors` is none of the two.
        """
        check_choice("errors", errors, get_args(Errors))
        self._guard = Guard.load(guard, threads=threads, **options)
        self._column, self._errors = column, errors

    def __call__(self, batch: Batch) -> Batch:
        """Score a batch.

        Raises:
            SirenError: the first that a text has, unless `errors` is "column".
        """
        texts = [*batch[self._column]]
        if self._errors == "raise":
            results: list[Any] = [*self._guard.score_batch(texts)]
        else:
            results = [*self._guard.score_each(texts)]
        bad = [isinstance(result, SirenError) for result in results]
        pairs = [*zip(results, bad, strict=True)]
        columns: Batch = {
            "score": np.array([np.nan if b else r.score for r, b in pairs], np.float64),
            "is_harmful": np.array([None if b else r.is_harmful for r, b in pairs], np.object_),
            "tier": np.array([None if b else r.tier for r, b in pairs], np.object_),
        }
        if self._errors == "column":
            columns["error"] = np.array([str(r) if b else None for r, b in pairs], np.object_)
        return {**batch, **columns}
