"""Temperature scaling (Guo et al. 2017, arXiv 1706.04599) of an engine's scores."""

import numpy as np

from siren_runtime.bundle.heads import HARMFUL

from .base import FloatArray, Outputs, StreamOutputs


def tempered_scores(outputs: Outputs | StreamOutputs, temperature: float) -> FloatArray:
    """Return the scores, float32 of the shape of `outputs.score`, at a calibrated temperature.

    The logits are divided by it before the softmax; at 1 the engine's own scores are returned. A
    score that is not finite stays so: it marks outputs that the engine did not write.
    """
    if temperature == 1.0:
        return outputs.score
    logits = outputs.logits / np.float32(temperature)
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: FloatArray = shares[..., HARMFUL] / shares.sum(axis=-1)
    return np.where(np.isfinite(outputs.score), scores, outputs.score)
