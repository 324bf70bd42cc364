"""Search the head's shape and training with Optuna: TPE, pruned, cross-validated, resumable.

The history is a file of finished trials, one JSON object a line. The sampler of a trial is seeded
by the search's seed and the trial's number, and sees finished trials only. So a search that was
killed ends as an undisturbed one.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import TrialState

from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.errors import InputError
from siren_train.measure.metrics import macro_f1_by_dataset
from siren_train.store.features import FeatureSet, FloatArray, IntArray
from siren_train.store.journal import Journal, read_entries

from .folds import FOLDS
from .head import HeadConfig, fit_head, head_logits
from .kept import Arrays, kept_arrays
from .probe import Probe
from .selection import gather, select_layers
from .settings import LayerWeighting
from .workers import worker_pool

_STARTUP_TRIALS = 5  # drawn at random, and never pruned
_ADVICE = "remove it"  # where a history is damaged


@dataclass(frozen=True)
class Choice:
    """What the search finds.

    Attributes:
        share: of each probe's |weight|, which the channels that are selected hold.
        config: of the head.
    """

    share: float
    config: HeadConfig


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A finished trial.

    Attributes:
        number: from 0.
        params: drawn by the sampler.
        scores: the mean macro-F1 of each fold; of the first folds alone if it was pruned.
        pruned: whether it was stopped early.
    """

    number: int
    params: dict[str, Any]
    scores: list[float]
    pruned: bool

    @property
    def score(self) -> float:
        return float(np.mean(self.scores))


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """What heads are cross-validated on, and how.

    Attributes:
        features: train and validation rows.
        folds: int64 [rows], as make_folds returns them.
        probes: of each fold, fitted without its rows. A selection by probes that have seen the
            labels held out would flatter the score.
        weighting: how layers are weighted.
        seed: of the heads.
        work: the run's folder, where the logits of a choice's folds are kept.
        workers: folds that train at once.
    """

    features: FeatureSet
    folds: IntArray
    probes: Sequence[Sequence[Probe]]
    weighting: LayerWeighting
    seed: int
    work: Path
    workers: int

    @property
    def count(self) -> int:
        """How many folds there are."""
        return int(self.folds.max()) + 1


def search_head(
    setup: CrossValidation,
    history: Path,
    *,
    trials: int,
    shares: Sequence[float],
    hidden: Sequence[int],
    progress: Progress = silent,
) -> tuple[Choice, list[Trial]]:
    """Run the trials that `history` lacks, and return the best choice and all trials.

    Args:
        setup: its seed is that of the search, too.
        history: a file of finished trials, which is added to.
        trials: how many there are in all; more of them in `history` are left aside.
        shares: of each probe's |weight|, those that a trial may draw.
        hidden: widths of the first hidden layer, those that a trial may draw.
        progress: its stage is "search", and it counts folds.

    Raises:
        InputError: `history` is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(_STARTUP_TRIALS, n_warmup_steps=1),
    )
    distributions = _distributions(shares, hidden)
    folds = trials * setup.count
    with Journal(history, Trial, _ADVICE) as journal:
        _check_order(journal.entries, history)
        for finished in journal.entries[:trials]:
            study.add_trial(_frozen(finished, distributions))
        earlier = len(study.trials)
        progress("search", earlier * setup.count, folds)
        for number in range(earlier, trials):
            study.sampler = optuna.samplers.TPESampler(
                seed=setup.seed * 10_000 + number,
                n_startup_trials=_STARTUP_TRIALS,
                multivariate=True,
            )

            def told(of_trial: int, before: int = number * setup.count) -> None:
                progress("search", before + of_trial, folds)

            journal.add(_run(study, distributions, setup, told))
            progress("search", len(journal.entries) * setup.count, folds)
        done = journal.entries[:trials]
    return make_choice(best_trial(done).params), done


def best_trial(trials: Sequence[Trial]) -> Trial:
    """Return the trial of the best score that was not pruned; the first of equally good ones."""
    return max((trial for trial in trials if not trial.pruned), key=lambda trial: trial.score)


def make_choice(params: Mapping[str, Any]) -> Choice:
    """Read a trial's parameters."""
    return Choice(
        params["share"],
        HeadConfig(
            hidden=(params["hidden_1"], params["hidden_2"]),
            dropout=params["dropout"],
            input_dropout=params["input_dropout"],
            learning_rate=params["learning_rate"],
            epochs=params["epochs"],
            balance=params["balance"],
        ),
    )


def cross_validate(
    setup: CrossValidation,
    choice: Choice,
    proceed: Callable[[Sequence[float]], bool] = lambda scores: True,
) -> list[float]:
    """Return the mean macro-F1 of each fold. Copies train with their originals, unmeasured.

    Args:
        proceed: is given the scores so far after each fold; no further fold is scored once it
            returns False.
    """
    features = setup.features

    def score(fold: int) -> float:
        held_out, logits = held_out_logits(setup, choice, fold)
        return macro_f1_by_dataset(
            features.labels[held_out],
            features.decided(logits, features.labels[held_out]),
            features.datasets[held_out],
            features.names,
        ).mean

    scores: list[float] = []
    with worker_pool(setup.workers) as pool:
        pending: list[Future[float]] = [pool.submit(score, fold) for fold in range(setup.count)]
        for future in pending:
            scores.append(future.result())
            if not proceed(scores):
                for other in pending:
                    other.cancel()
                break
    return scores


def held_out_logits(
    setup: CrossValidation, choice: Choice, fold: int
) -> tuple[NDArray[np.bool_], FloatArray]:
    """Train a head without a fold.

    Returns:
        The rows of the fold that are no copies, a mask bool [rows], and the head's logits for
        them, float32 [rows of the mask, classes].
    """
    features, folds = setup.features, setup.folds
    layers = select_layers(setup.probes[fold], share=choice.share, weighting=setup.weighting)
    fitting, held_out = folds != fold, (folds == fold) & ~features.is_copy
    head = fit_head(features, layers, choice.config, rows=fitting, seed=setup.seed)
    return held_out, head_logits(head, gather(features.pooled, layers, held_out))


def all_held_out_logits(
    setup: CrossValidation, choice: Choice, members: int, progress: Progress, stage: str
) -> tuple[IntArray, FloatArray]:
    """Train a head without each fold in turn, where the work folder does not keep its logits.

    Args:
        members: of each fold's head, as the final one will have.
        stage: what progress calls it.

    Returns:
        The rows that are no copies, int64 [rows], and for each the logits of the head that did not
        see it, float32 [rows, classes].
    """
    choice = replace(choice, config=replace(choice.config, members=members))

    def kept(fold: int) -> tuple[NDArray[np.bool_], FloatArray]:
        def compute() -> Arrays:
            held_out, logits = held_out_logits(setup, choice, fold)
            return {"held_out": held_out, "logits": logits}

        arrays = kept_arrays(setup.work / f"logits.{fold}.npz", asdict(choice), compute)
        return arrays["held_out"], arrays["logits"]

    found = []
    progress(stage, 0, setup.count)
    with worker_pool(setup.workers) as pool:
        folds = pool.map(kept, range(setup.count))
        for done, of_fold in enumerate(folds, start=1):
            found.append(of_fold)
            progress(stage, done, setup.count)
    rows = np.concatenate([np.flatnonzero(mask) for mask, _ in found])
    return rows, np.concatenate([logits for _, logits in found])


def _run(
    study: optuna.Study,
    distributions: Mapping[str, optuna.distributions.BaseDistribution],
    setup: CrossValidation,
    told: Callable[[int], None],
) -> Trial:
    """Run a trial, and tell of each fold that is done how many are."""
    trial = study.ask(dict(distributions))
    pruned = False

    def proceed(scores: Sequence[float]) -> bool:
        nonlocal pruned
        told(len(scores))
        trial.report(float(np.mean(scores)), len(scores) - 1)
        pruned = len(scores) < FOLDS and bool(trial.should_prune())
        return not pruned

    scores = cross_validate(setup, make_choice(trial.params), proceed)
    state = TrialState.PRUNED if pruned else TrialState.COMPLETE
    study.tell(trial, None if pruned else float(np.mean(scores)), state=state)
    return Trial(trial.number, dict(trial.params), scores, pruned)


def _distributions(
    shares: Sequence[float], hidden: Sequence[int]
) -> dict[str, optuna.distributions.BaseDistribution]:
    d = optuna.distributions
    return {
        "share": d.CategoricalDistribution(tuple(shares)),
        "hidden_1": d.CategoricalDistribution(tuple(hidden)),
        "hidden_2": d.CategoricalDistribution((32, 64)),
        "dropout": d.FloatDistribution(0.2, 0.6, step=0.1),
        "input_dropout": d.FloatDistribution(0.0, 0.3, step=0.1),
        "learning_rate": d.FloatDistribution(3e-4, 3e-3, log=True),
        "epochs": d.IntDistribution(5, 20, step=5),
        "balance": d.FloatDistribution(0.0, 1.0, step=0.25),
    }


def _frozen(
    finished: Trial, distributions: Mapping[str, optuna.distributions.BaseDistribution]
) -> optuna.trial.FrozenTrial:
    means = np.cumsum(finished.scores) / np.arange(1, len(finished.scores) + 1)
    return optuna.trial.create_trial(
        state=TrialState.PRUNED if finished.pruned else TrialState.COMPLETE,
        value=float(means[-1]),
        params=finished.params,
        distributions=dict(distributions),
        intermediate_values={fold: float(mean) for fold, mean in enumerate(means)},
    )


def read_history(path: Path) -> list[Trial]:
    """Read the finished trials of a search, without a change of the file.

    Raises:
        InputError: the file is damaged.
    """
    done, _ = read_entries(path, Trial, _ADVICE)
    _check_order(done, path)
    return done


def _check_order(done: Sequence[Trial], path: Path) -> None:
    if [trial.number for trial in done] != list(range(len(done))):
        raise InputError(f"{path}: trials are missing or out of order; {_ADVICE}")
