"""A prefix's target: the expected harm of the responses that go on from it.

of labels      the mean label of the labelled responses that begin with the prefix. One of them
               is a Monte Carlo estimate of one sample: 0 or 1.
of rollouts    the mean score that a guard gives to prompt, prefix and continuation, over
               continuations that a generator draws (StreamGuard, arXiv 2604.03962).
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from hashlib import sha256
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from siren_runtime import Guard
from siren_runtime.bundle.files import write_whole
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.errors import BackendError, InputError, SirenError
from siren_train.store.journal import Journal
from siren_train.store.locks import locked

from .generator import Api, Generator
from .prefixes import Prefix

SETTINGS_FILE = "settings.json"
CONTINUATIONS_FILE, SCORES_FILE = "continuations.jsonl", "scores.jsonl"
_JUDGED_TOGETHER = 256
_MOST_REFUSED = 1 / 10  # of what was asked; a generator that refuses more is not the right one
_FEW = 20  # refusals that say nothing yet, of many prefixes

Refusals = dict[int, str]  # the place of a prefix that is left out, and why


class Target(msgspec.Struct, frozen=True):
    """A line of what siren rollouts writes.

    Attributes:
        target: expected harm of what follows, 0 to 1.
        rollouts: how many responses that is the mean of.
        source: "label", or the generator's name.
    """

    prompt: str
    prefix: str
    target: float
    rollouts: int
    source: str
    split: str


class RunSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What decides the targets of a run. Where the generator is does not.

    Attributes:
        prefixes: digest of all of them.
        rollouts: continuations of each.
        judge: digest of the guard's manifest.
        seed: of the first continuation; each further one has the next.
        engine: digest of the generator's model, where it is known.
    """

    prefixes: str
    model: str
    api: Api
    rollouts: int
    max_tokens: int
    temperature: float
    judge: str
    seed: int
    engine: str = ""


class _Continuation(msgspec.Struct, frozen=True):
    place: int  # of its prefix
    number: int
    text: str


class _Score(msgspec.Struct, frozen=True):
    place: int
    number: int
    score: float


def label_targets(prefixes: Iterable[Prefix]) -> list[Target]:
    """Return the targets by the labels of the responses that begin with each prefix."""
    return [
        Target(p.prompt, p.text, float(np.mean(p.labels)), len(p.labels), "label", p.split)
        for p in prefixes
    ]


def rollout_targets(
    prefixes: Sequence[Prefix],
    generator: Generator,
    judge: Guard,
    settings: RunSettings,
    work: Path,
    *,
    concurrency: int,
    progress: Progress = silent,
) -> tuple[list[Target], list[str]]:
    """Let the generator go on from every prefix, judge what comes, and return the targets.

    Args:
        work: holds every continuation and its score. A run that was interrupted goes on from
            there, and nothing that is there is asked for again.
        concurrency: continuations under way at once.

    Returns:
        The targets; and of each prefix that is left out why the generator or the judge cannot take
        it.

    Raises:
        InputError: `work` holds a run with other settings, or one that is under way; or no prefix
            can be taken.
        BackendError: the generator or the judge fails, or the generator refuses more than a tenth
            of what it is asked, and more than a few. What was done is kept.
    """
    advice = f"remove the folder {work}, whose other files go by this one, to begin anew"
    with locked(work, "siren rollouts"):
        _check_settings(work / SETTINGS_FILE, settings)
        refusals = _checked(prefixes, generator, progress)
        with Journal(work / CONTINUATIONS_FILE, _Continuation, advice) as continuations:
            refusals |= _continue(
                continuations, prefixes, generator, settings, refusals, concurrency, progress
            )
        with Journal(work / SCORES_FILE, _Score, advice) as scores:
            refusals |= _judge(scores, continuations.entries, prefixes, judge, progress)
    if len(refusals) == len(prefixes):
        raise InputError(f"no prefix can be taken, the first since {refusals[0]}")
    by_place: list[list[float]] = [[] for _ in prefixes]
    for one in scores.entries:
        by_place[one.place].append(one.score)
    targets = [
        Target(p.prompt, p.text, float(np.mean(found)), len(found), settings.model, p.split)
        for place, (p, found) in enumerate(zip(prefixes, by_place, strict=True))
        if place not in refusals
    ]
    return targets, [*refusals.values()]


def write_targets(path: Path, targets: Iterable[Target]) -> None:
    """Write a JSON object a line.

    Raises:
        InputError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = b"".join(msgspec.json.encode(target) + b"\n" for target in targets)
    write_whole(path, lines, InputError)


def digest(*parts: object) -> str:
    """Return a digest of what can be written as JSON."""
    return sha256(msgspec.json.encode(parts)).hexdigest()


def _check_settings(path: Path, settings: RunSettings) -> None:
    """Write the settings of a run, or see that the one that is there has the same."""
    if not path.exists():
        write_whole(path, msgspec.json.encode(settings), InputError)
        return
    try:
        there = msgspec.json.decode(path.read_bytes(), type=RunSettings)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged: {error}; remove the folder to begin anew") from None
    for field in settings.__struct_fields__:
        found, asked = getattr(there, field), getattr(settings, field)
        if found != asked:
            raise InputError(
                f"{path.parent}: holds a run with other settings: {field} was {found!r}, asked for "
                f"{asked!r}; choose another output, or remove the folder"
            )


def _checked(prefixes: Sequence[Prefix], generator: Generator, progress: Progress) -> Refusals:
    """The prefixes that the generator cannot be asked, which it tells without a token."""
    refusals: Refusals = {}
    for place, prefix in enumerate(prefixes):
        progress("prefixes", place, len(prefixes))
        try:
            generator.check(prefix.prompt, prefix.text)
        except InputError as error:
            refusals[place] = str(error)
    progress("prefixes", len(prefixes), len(prefixes))
    return refusals


def _continue(
    journal: Journal[_Continuation],
    prefixes: Sequence[Prefix],
    generator: Generator,
    settings: RunSettings,
    left_out: Refusals,
    concurrency: int,
    progress: Progress,
) -> Refusals:
    """Ask for the continuations that are missing. After a failure those under way are kept.

    Returns:
        The prefixes that the generator refuses.
    """
    there = {(one.place, one.number) for one in journal.entries}
    total = (len(prefixes) - len(left_out)) * settings.rollouts
    refusals: Refusals = {}
    missing = (
        (place, number)
        for place in range(len(prefixes))
        for number in range(settings.rollouts)
        if (place, number) not in there and place not in left_out and place not in refusals
    )
    progress("continuations", len(there), total)
    running: dict[Future[str], tuple[int, int]] = {}
    failure: SirenError | None = None
    with ThreadPoolExecutor(concurrency) as pool:
        while True:
            for place, number in islice(missing, 0 if failure else concurrency - len(running)):
                prefix, seed = prefixes[place], settings.seed + number
                asked = pool.submit(generator.go_on, prefix.prompt, prefix.text, seed)
                running[asked] = place, number
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                place, number = running.pop(future)
                try:
                    journal.add(_Continuation(place, number, future.result()))
                except InputError as error:
                    refusals[place] = str(error)
                    answered = {one.place for one in journal.entries}
                    asked_of = len(answered | refusals.keys())
                    failure = failure or _too_many(refusals, asked_of, len(prefixes))
                except SirenError as error:
                    failure = failure or error
            progress("continuations", len(journal.entries), total)
    if failure is not None:
        raise type(failure)(
            f"{failure}; {len(journal.entries):,} of {total:,} continuations are kept, and the "
            "same command goes on from there"
        ) from failure
    return refusals


def _too_many(refusals: Refusals, asked: int, prefixes: int) -> BackendError | None:
    """The error for a generator that refuses more than a few of the prefixes that it was asked."""
    few = min(_FEW, max(int(prefixes * _MOST_REFUSED), 1))
    if len(refusals) <= max(few, int(asked * _MOST_REFUSED)):
        return None
    first = next(iter(refusals.values()))
    return BackendError(f"the generator refused {len(refusals)} of {asked:,} prefixes: {first}")


def _judge(
    journal: Journal[_Score],
    continuations: Sequence[_Continuation],
    prefixes: Sequence[Prefix],
    judge: Guard,
    progress: Progress,
) -> Refusals:
    """Score the continuations that have no score.

    Returns:
        The prefixes of those that the judge cannot read.
    """
    there = {(one.place, one.number) for one in journal.entries}
    missing = [one for one in continuations if (one.place, one.number) not in there]
    refusals: Refusals = {}
    for start in range(0, len(missing), _JUDGED_TOGETHER):
        progress("judging", len(journal.entries), len(continuations))
        chunk = missing[start : start + _JUDGED_TOGETHER]
        texts = [_text(prefixes[one.place], one.text) for one in chunk]
        for one, result in zip(chunk, judge.score_each(texts), strict=True):
            if isinstance(result, InputError):
                refusals[one.place] = f"the judge cannot read it: {result}"
            elif isinstance(result, SirenError):
                raise result
            else:
                journal.add(_Score(one.place, one.number, result.score))
    progress("judging", len(journal.entries), len(continuations))
    return refusals


def _text(prefix: Prefix, continuation: str) -> str | tuple[str, str]:
    response = prefix.text + continuation
    if not prefix.prompt:
        return response
    return (prefix.prompt, response) if response.strip() else prefix.prompt
