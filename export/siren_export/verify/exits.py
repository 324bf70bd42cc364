"""Compare a bundle's segments, run one after the other, with the whole graph; exits with llm-siren.

Behind each exit nothing leaves here, so the last segment's score is that of the whole guard.
"""

import msgspec

from siren_export.passes.table import Bound
from siren_runtime.backends.batching import right_pad
from siren_runtime.backends.onnxruntime.cascade import CascadeBackend
from siren_runtime.backends.onnxruntime.session import CPU
from siren_runtime.backends.outputs import BoolArray, FloatArray, TokenArray
from siren_runtime.bundle.graphs import exit_spec
from siren_runtime.bundle.reader import Bundle
from siren_runtime.bundle.report import Verification
from siren_runtime.scoring.engines import Request, open_backend
from siren_runtime.text.rules import clean
from siren_runtime.text.tokenizer import Tokenizer

from .reference import Reference
from .scores import head_report
from .texts import TEXTS


def with_exit_verification(
    bundle: Bundle,
    tokenizer: Tokenizer,
    report: Verification,
    bound: Bound,
    reference: Reference | None,
) -> Verification:
    """Add to a report how far the segments' scores are from the whole graph's, and exits' own.

    The bound of the precision is for the largest |difference| to the whole graph, which has the
    same weights; and as for any head for an exit's differences to the reference, where that has
    the exit's scores.
    """
    cascade = bundle.manifest.cascade
    assert cascade is not None
    whole = open_backend(bundle, Request("cpu", spans_graph=False))
    segments = CascadeBackend(bundle, CPU)
    texts = (
        list(TEXTS)
        if reference is None
        else [text for text, _ in reference.scored if isinstance(text, str)]
    )
    rows: list[list[float]] = []  # of each text the scores of the exits
    differences = []
    for ids in tokenizer.encode_batch([clean(text) for text in texts]):
        scores: list[float] = []

        def stay(
            _: int, rows: TokenArray, found: FloatArray, scores: list[float] = scores
        ) -> BoolArray:
            scores.append(float(found[0]))
            return rows < 0

        tokens = right_pad([ids])
        _, outputs = segments.run_leaving(*tokens, stay)
        assert outputs is not None
        differences.append(abs(float(outputs.score[0] - whole.run(*tokens).score[0])))
        rows.append(scores)
    report = msgspec.structs.replace(
        report,
        exit_texts=len(differences),
        exit_bound=bound.value,
        exit_max_difference=max(differences),
    )
    if reference is None:
        return report
    further = dict(report.further)
    for place, one in enumerate(cascade.exits):
        name = exit_spec(one.depth).name
        if name in reference.rows:
            expected = [row[0] for row in reference.rows[name]]
            found = [row[place] for row in rows]
            further[name] = head_report(
                found, expected, bundle.manifest.threshold, reference.scored, bound
            )
    passed = all(head.passed for head in further.values()) and report.status == "passed"
    return msgspec.structs.replace(
        report, further=further, status="passed" if passed else "drifted"
    )
