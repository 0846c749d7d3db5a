"""Logits in, one token id out.

Every step is a pure function ``float32 (V,) -> float32 (V,)`` in which -inf marks a removed token.
``make_sampler`` does not run them: it narrows to the few candidates that can survive and works on
those, about ten times faster at V = 50257. The steps, joined by ``process_logits``, are its slow,
obvious twin; the tests say that both leave the same tokens with the same probabilities.

Order: repetition penalty, temperature, top-k, top-p, min-p, as the logits processors of Hugging
Face's ``GenerationMixin`` run. The penalty has to see the model's own scores, because it treats
positive and negative ones differently. Temperature comes before the filters, so that ``top_p`` and
``min_p`` speak of the probabilities that are then drawn from. Top-k comes before top-p, which
therefore measures its share of what top-k left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..export.errors import NumericsError, RequestError
from ..export.sampling_ranges import check_sampling

Logits: TypeAlias = NDArray[np.float32]
TokenIds: TypeAlias = NDArray[np.intp]
Weights: TypeAlias = NDArray[np.float64]

Sampler: TypeAlias = Callable[[Logits, Sequence[int]], int]
"""Takes logits (V,) and all token ids so far (prompt and generated), returns the next token id.

The ids are looked at only with a repetition penalty. A sampler owns its random state: one per
generation, not shared between threads. It never writes to the logits.
"""

_LARGEST = np.finfo(np.float32).max
_TINY = float(np.finfo(np.float32).tiny)
_BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How the next token is chosen; the defaults sample from the model's own distribution.

    ``temperature`` 0 is greedy: the filters and the seed then have no effect. ``seed`` None takes
    fresh entropy; the same seed, options and logits give the same tokens. Neutral values:
    ``temperature=1.0, top_k=None, top_p=1.0, min_p=0.0, repetition_penalty=1.0``.

    Raises RequestError, naming the option, for a value of another type or outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        check_sampling(**vars(self))


# ---- the steps: logits (V,) -> logits (V,) ----


def apply_repetition_penalty(logits: Logits, token_ids: Sequence[int], penalty: float) -> Logits:
    """Makes every token in ``token_ids`` less likely (penalty > 1); 1.0 changes nothing.

    CTRL (Keskar et al. 2019, arXiv:1909.05858, section 4.1), in the form Hugging Face gave it: a
    positive logit is divided by the penalty, a negative one multiplied, each token once however
    often it occurred. Raises RequestError for an id outside 0..V-1.
    """
    if penalty == 1.0 or not len(token_ids):
        return logits
    ids = np.asarray(token_ids, dtype=np.int64)
    if ids.min() < 0 or ids.max() >= logits.size:
        wrong = next(int(i) for i in ids if not 0 <= i < logits.size)
        raise RequestError(
            f"token id {wrong} is among the ids so far, expected 0 to {logits.size - 1}, the "
            "tokens the model scores; use the tokenizer of the model folder"
        )
    scores = logits[ids].astype(np.float64)
    with np.errstate(over="ignore"):
        penalised = np.where(scores < 0, scores * penalty, scores / penalty)
    penalised = np.clip(penalised, -_LARGEST, _LARGEST)  # an extreme penalty must not make an inf
    result = logits.copy()
    result[ids] = np.where(np.isfinite(scores), penalised, scores)  # equal ids, equal values
    return result


def apply_temperature(logits: Logits, temperature: float) -> Logits:
    """(logits - max) / temperature; 1.0 changes nothing.

    Softmax does not see the shift; with it a tiny temperature cannot overflow to +inf.
    Temperature 0 has no distribution and is not accepted here: it is the greedy sampler.
    """
    assert temperature > 0, "temperature 0 is argmax, not a step"
    if temperature == 1.0:
        return logits
    return _scale(logits, _largest(logits), temperature)


def top_k(logits: Logits, k: int | None) -> Logits:
    """Keeps the ``k`` largest logits; None, or k >= V, changes nothing. Ties: lowest id stays.

    Fan et al. 2018 (arXiv:1805.04833, section 5.4). Exactly k stay, so that k = 1 is greedy.
    """
    if k is None or k >= logits.size:
        return logits
    return _keep(logits, np.argsort(-logits, kind="stable")[:k])


def top_p(logits: Logits, p: float) -> Logits:
    """Keeps the smallest set whose probability reaches ``p``, at least one; 1.0 changes nothing.

    Nucleus sampling, Holtzman et al. 2019 (arXiv:1904.09751, section 3.1): tokens are taken from
    the likeliest on, including the one with which the sum reaches p. Ties: lowest id first.
    """
    if p == 1.0:
        return logits
    order = np.argsort(-logits, kind="stable")
    weights = _weights(logits[order], logits[order[0]])
    return _keep(logits, order[: _nucleus_size(weights, p * weights.sum())])


def min_p(logits: Logits, p: float) -> Logits:
    """Keeps tokens with at least ``p`` times the largest probability; 0.0 changes nothing.

    Nguyen et al. 2024 (arXiv:2407.01082, section 3).
    """
    if p == 0.0:
        return logits
    return _keep(logits, np.flatnonzero(_weights(logits, _largest(logits)) >= p))


def process_logits(logits: Logits, token_ids: Sequence[int], options: SamplingOptions) -> Logits:
    """All steps in their order, at full width: the slow twin of what a sampler draws from.

    Softmax of the result is the distribution. ``options.temperature`` has to be above 0.
    """
    logits = apply_repetition_penalty(logits, token_ids, options.repetition_penalty)
    logits = apply_temperature(logits, options.temperature)
    logits = top_k(logits, options.top_k)
    logits = top_p(logits, options.top_p)
    return min_p(logits, options.min_p)


def logprob(logits: Logits, token: int) -> float:
    """Natural log of the probability of ``token`` under softmax(logits), before any step.

    -inf for a removed token. Raises RequestError for a token outside 0..V-1 and NumericsError
    where there is no softmax.
    """
    if not 0 <= token < logits.size:
        raise RequestError(
            f"token id {token}, expected 0 to {logits.size - 1}, the tokens the model scores; "
            "use the tokenizer of the model folder"
        )
    largest = _largest(logits)
    with np.errstate(over="ignore"):
        # Summed in float64: the float32 terms are good to 1e-7, and so is then their sum.
        total = float(np.exp(logits - largest).sum(dtype=np.float64))
    return float(logits[token]) - float(largest) - math.log(total)


# ---- the sampler ----


def make_sampler(options: SamplingOptions) -> Sampler:
    """The function (logits, token ids so far) -> token, bound once before the loop.

    Greedy takes the largest logit, on ties the lowest id. The others draw one number u in [0, 1)
    from PCG64 per token and take the first surviving token, in order of ids, at which the
    cumulative probability exceeds u. The sampler raises NumericsError for NaN, +inf, or all -inf.
    """
    penalty = options.repetition_penalty
    if options.temperature == 0:

        def greedy(logits: Logits, token_ids: Sequence[int]) -> int:
            if penalty != 1.0:
                logits = apply_repetition_penalty(logits, token_ids, penalty)
            token = int(logits.argmax())  # the first NaN, when there is one
            if not math.isfinite(logits[token]):
                raise _numerics_error(logits)
            return token

        return greedy

    generator = np.random.Generator(np.random.PCG64(options.seed))
    unfiltered = options.top_k is None and options.top_p == 1.0 and options.min_p == 0.0

    def sample(logits: Logits, token_ids: Sequence[int]) -> int:
        if penalty != 1.0:
            logits = apply_repetition_penalty(logits, token_ids, penalty)
        uniform = generator.random()
        if unfiltered:
            scaled = _scale(logits, _largest(logits), options.temperature)
            return _draw_from_all(np.exp(scaled), uniform)
        ids, weights = candidates(logits, options)
        return int(ids[_draw(weights, uniform)])

    return sample


def candidates(logits: Logits, options: SamplingOptions) -> tuple[TokenIds, Weights]:
    """The tokens that survive all filters, ascending, and their weights relative to the likeliest.

    Tokens of weight above 0 are those to which softmax of ``process_logits`` gives a probability
    (up to float32 rounding at the very edge of a filter), found without its sorts of all V. The
    repetition penalty is not applied here, and ``options.temperature`` has to be above 0.
    Raises NumericsError for NaN, +inf, or all -inf.
    """
    largest = _largest(logits)
    k = logits.size if options.top_k is None else options.top_k
    if k < logits.size:
        ids = _superset_of_largest(logits, k)
        scaled = _scale(logits[ids], largest, options.temperature)
        order = np.argsort(-scaled, kind="stable")[:k]
        weights = _weights(scaled[order])
        total = float(weights.sum())
        return _cut(ids[order], weights, total, options)

    scaled = _scale(logits, largest, options.temperature)
    if options.top_p == 1.0:
        ids = _above_min_p(scaled, options.min_p)
        weights = _weights(scaled[ids])
        survivors = np.flatnonzero(weights >= options.min_p)
        return ids[survivors], weights[survivors]

    total = float(np.exp(scaled).sum(dtype=np.float64))
    if options.min_p > 0.0:
        ids = _above_min_p(scaled, options.min_p)
        if ids.size <= scaled.size // 8:
            order = np.argsort(-scaled[ids], kind="stable")
            return _cut(ids[order], _weights(scaled[ids[order]]), total, options)
    return _nucleus(scaled, total, options)


def _nucleus(scaled: Logits, total: float, options: SamplingOptions) -> tuple[TokenIds, Weights]:
    """top-p and min-p over all V: among the largest few, or by bisecting for the threshold."""
    wanted = options.top_p * total
    if scaled.size >= 1024:
        ids = _superset_of_largest(scaled, 128)
        if ids.size <= 512:  # more only with many equal values
            order = np.argsort(-scaled[ids], kind="stable")
            weights = _weights(scaled[ids[order]])
            if weights.sum() >= wanted:
                return _cut(ids[order], weights, total, options)

    # Below `low` lie at most V tokens of weight exp(low), together less than (1 - p) · total.
    low, high = math.log((1 - options.top_p) * total / scaled.size) - 0.1, 0.1
    weights32 = np.exp(scaled)
    # Each halving takes 30 us, and 12 leave some hundred tokens to sort. np.dot would take half,
    # but beyond 10,000 numbers OpenBLAS starts threads, which compete with those of the graph.
    for _ in range(12):
        middle = (low + high) / 2
        if (weights32 * (scaled >= middle)).sum() >= wanted:
            low = middle
        else:
            high = middle
    ids = np.flatnonzero(scaled >= low)
    values = scaled[ids]
    weights = _weights(values)
    keep = values >= high
    between = np.flatnonzero(~keep)
    if between.size:
        missing = wanted - float((weights * keep).sum())
        between = between[np.argsort(-values[between], kind="stable")]
        keep[between[: _nucleus_size(weights[between], missing)]] = True
    survivors = np.flatnonzero(keep & (weights >= options.min_p))
    return ids[survivors], weights[survivors]


def _cut(
    ids: TokenIds, weights: Weights, total: float, options: SamplingOptions
) -> tuple[TokenIds, Weights]:
    """top-p of ``total`` and min-p of candidates sorted from the likeliest down."""
    size = ids.size
    if options.top_p < 1.0:
        size = _nucleus_size(weights, options.top_p * total)
    if options.min_p > 0.0:
        size = min(size, int(np.searchsorted(-weights, -options.min_p, side="right")))
    ascending = np.argsort(ids[:size])
    return ids[ascending], weights[ascending]


def _nucleus_size(weights: Weights, wanted: float) -> int:
    """How many of the descending weights it takes for their sum to reach ``wanted``."""
    return min(int(np.searchsorted(np.cumsum(weights), wanted)) + 1, weights.size)


def _superset_of_largest(values: Logits, k: int) -> TokenIds:
    """Ids, ascending, of all values that reach some threshold at or below the k-th largest.

    The values are dealt into groups; the k-th largest of the groups' maxima is such a threshold,
    since k groups hold a value that reaches it. With eight groups per wanted value few others do.
    Half the time of np.partition at V = 50257, k = 40.
    """
    num_groups = max(1024, 8 * k)
    depth = values.size // num_groups
    if depth < 2:
        threshold = np.partition(values, values.size - k)[values.size - k]
    else:
        maxima = values[: depth * num_groups].reshape(depth, num_groups).max(axis=0)
        threshold = np.partition(maxima, num_groups - k)[num_groups - k]
    return np.flatnonzero(values >= threshold)


def _above_min_p(scaled: Logits, p: float) -> TokenIds:
    """Ids whose scaled logit may reach min-p, with a margin for float32 rounding."""
    threshold = math.log(p) * (1 + 1e-6) - 1e-6 if p > 0.0 else -math.inf
    return np.flatnonzero(scaled >= threshold)


def _draw(weights: Weights, uniform: float) -> int:
    """Index of the first weight at which the cumulative sum exceeds uniform · sum.

    uniform is at most 1 - 2**-53, and then its product with the sum stays below the sum.
    """
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))


def _draw_from_all(weights: Logits, uniform: float) -> int:
    """``_draw`` over all V in two levels: np.cumsum over V = 50257 would take 0.5 ms."""
    num_blocks = -(-weights.size // _BLOCK)
    padded = np.zeros(num_blocks * _BLOCK, dtype=np.float32)
    padded[: weights.size] = weights
    blocks = padded.reshape(num_blocks, _BLOCK)
    sums = blocks.sum(axis=1).astype(np.float64)
    block = _draw(sums, uniform)
    before = float(sums[:block].sum())
    inside = np.cumsum(blocks[block], dtype=np.float64)
    # The sum of a block and its cumulative sum round differently: stay inside the block.
    wanted = uniform * float(sums.sum()) - before
    wanted = min(max(wanted, 0.0), float(np.nextafter(inside[-1], 0.0)))
    return block * _BLOCK + int(np.searchsorted(inside, wanted, side="right"))


def _scale(logits: Logits, largest: np.float32, temperature: float) -> Logits:
    with np.errstate(over="ignore"):  # a difference beyond float32 is -inf: never drawn anyway
        shifted = logits - largest
        if temperature == 1.0:
            return shifted
        return shifted / np.float32(min(max(temperature, _TINY), float(_LARGEST)))


def _weights(scaled: Logits, largest: np.float32 | float = 0.0) -> Weights:
    """exp(scaled - largest) in float64: probabilities up to their common factor."""
    return np.exp(scaled.astype(np.float64) - float(largest))


def _keep(logits: Logits, ids: TokenIds) -> Logits:
    result = np.full_like(logits, -np.inf)
    result[ids] = logits[ids]
    return result


def _largest(logits: Logits) -> np.float32:
    largest: np.float32 = logits.max()  # NaN when any is
    if not math.isfinite(largest):
        raise _numerics_error(logits)
    return largest


def _numerics_error(logits: Logits) -> NumericsError:
    num_nan = int(np.isnan(logits).sum())
    num_inf = int(np.isposinf(logits).sum())
    found = f"{num_nan} NaN and {num_inf} +inf" if num_nan or num_inf else "nothing but -inf"
    return NumericsError(
        f"the {logits.size} logits hold {found}, expected finite numbers; the weights or the graph "
        "are damaged - export the checkpoint again, or quantize it less"
    )
