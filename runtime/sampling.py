"""Logits in, one token id out.

Every step is a pure function ``float32 (V,) -> float32 (V,)`` in which -inf marks a removed token.
``make_sampler`` does not run them: it narrows to the few candidates that can survive and works on
those, about ten times faster at V = 50257. The steps, joined by ``process_logits``, are its slow,
obvious twin; the tests say that both leave the same tokens with the same probabilities.

Order: what a constraint forbids, logit bias, repetition penalty, frequency and presence penalty (as
vLLM has them), repeated n-grams, banned tokens and strings, an early end, temperature, top-k,
top-p, min-p, typical-p (as the logits processors of Hugging Face's ``GenerationMixin`` run). A
constraint comes first: the filters then speak of what it allows, and no bias brings back what it
forbids. The repetition penalty treats positive and negative scores differently, so that it has to
see the model's own. Temperature comes before the filters, so that these speak of the probabilities
that are then drawn from. Each filter measures its share of what those before it left.

The repetition penalty and n-grams look at all tokens so far; frequency and presence penalty at what
was generated, as OpenAI's and vLLM's do.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..export.errors import NumericsError, RequestError
from ..export.sampling_ranges import COUNTS, check_sampling
from .banned_strings import BannedStrings, TokenIds
from .constraint import Allowed, Constraint

Logits: TypeAlias = NDArray[np.float32]
Weights: TypeAlias = NDArray[np.float64]

_REMOVED = np.float32(-np.inf)
_LARGEST = np.finfo(np.float32).max
_TINY = float(np.finfo(np.float32).tiny)
_BLOCK = 256
_LARGER_BLOCK = 1 << 22  # bytes
_BINS, _SAMPLE = 1024, 1024


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How the next token is chosen; the defaults sample from the model's own distribution.

    ``temperature`` 0 is greedy: the filters and the seed then have no effect. ``seed`` None takes
    fresh entropy; the same seed, options and logits give the same tokens. Neutral values:
    ``temperature=1.0, top_k=None, top_p=1.0, min_p=0.0, typical_p=1.0, repetition_penalty=1.0,
    frequency_penalty=0.0, presence_penalty=0.0, penalty_window=None, no_repeat_ngram_size=None,
    logit_bias=None, banned_tokens=None, min_tokens=0``; ``top_k`` and ``no_repeat_ngram_size`` 0
    are None.

    Raises RequestError, naming the option, for a value of another type or outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_window: int | None = None
    no_repeat_ngram_size: int | None = None
    logit_bias: Mapping[int, float] | None = None
    banned_tokens: Sequence[int] | None = None
    min_tokens: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        check_sampling(**vars(self))
        for name in COUNTS:
            if getattr(self, name) == 0:
                object.__setattr__(self, name, None)

    @property
    def reshapes(self) -> bool:
        """Whether any step before the temperature changes anything."""
        return (
            bool(self.logit_bias)
            or self.repetition_penalty != 1.0
            or bool(self.frequency_penalty or self.presence_penalty)
            or self.no_repeat_ngram_size is not None
            or bool(self.banned_tokens)
            or self.min_tokens > 0
        )

    @cached_property
    def bias_arrays(self) -> tuple[TokenIds, Logits] | None:
        """The tokens of ``logit_bias`` and its numbers; made once, and not at each step."""
        bias = self.logit_bias
        return _bias_arrays(bias) if bias else None

    @cached_property
    def banned_ids(self) -> TokenIds | None:
        """``banned_tokens``, each once."""
        banned = self.banned_tokens
        return np.array(list(dict.fromkeys(banned)), np.intp) if banned else None

    @property
    def filters(self) -> bool:
        """Whether any step after the temperature removes anything."""
        return self.top_k is not None or self.top_p < 1 or self.min_p > 0 or self.typical_p < 1


# ---- the steps: logits (V,) -> logits (V,) ----


def keep_allowed(logits: Logits, allowed: Allowed | None) -> Logits:
    """Removes the tokens that are not ``allowed``; None changes nothing."""
    if allowed is None:
        return logits
    kept: Logits = np.where(allowed, logits, _REMOVED)
    return kept


def apply_logit_bias(logits: Logits, bias: Mapping[int, float] | None) -> Logits:
    """Adds to the logits of single tokens; -100 all but bans one. OpenAI's ``logit_bias``.

    Raises RequestError for an id outside 0..V-1.
    """
    return _biased(logits, _bias_arrays(bias) if bias else None)


def _bias_arrays(bias: Mapping[int, float]) -> tuple[TokenIds, Logits]:
    return np.array(list(bias), np.intp), np.array(list(bias.values()), np.float32)


def _biased(logits: Logits, bias: tuple[TokenIds, Logits] | None) -> Logits:
    if bias is None:
        return logits
    ids, values = bias
    result = logits.copy()
    result[_checked_ids(ids, logits.size, "in logit_bias")] += values
    return result


def apply_repetition_penalty(logits: Logits, token_ids: Sequence[int], penalty: float) -> Logits:
    """Makes every token in ``token_ids`` less likely (penalty > 1); 1.0 changes nothing.

    CTRL (Keskar et al. 2019, arXiv:1909.05858, section 4.1), in the form Hugging Face gave it: a
    positive logit is divided by the penalty, a negative one multiplied, each token once however
    often it occurred. Raises RequestError for an id outside 0..V-1.
    """
    if penalty == 1.0 or not len(token_ids):
        return logits
    ids = _checked_ids(token_ids, logits.size)
    scores = logits[ids].astype(np.float64)
    with np.errstate(over="ignore"):
        penalised = np.where(scores < 0, scores * penalty, scores / penalty)
    penalised = np.clip(penalised, -_LARGEST, _LARGEST)  # an extreme penalty must not make an inf
    result = logits.copy()
    result[ids] = np.where(np.isfinite(scores), penalised, scores)  # equal ids, equal values
    return result


def apply_frequency_and_presence(
    logits: Logits, token_ids: Sequence[int], frequency: float, presence: float
) -> Logits:
    """Takes ``frequency`` for every time that a token occurs, and ``presence`` if it does at all.

    0.0 changes nothing; below 0 tokens become likelier. OpenAI's ``frequency_penalty`` and
    ``presence_penalty``. Raises RequestError for an id outside 0..V-1.
    """
    if not (frequency or presence) or not len(token_ids):
        return logits
    ids, counts = np.unique(_checked_ids(token_ids, logits.size), return_counts=True)
    result = logits.copy()
    result[ids] -= (frequency * counts + presence).astype(np.float32)
    return result


def remove_repeated_ngrams(logits: Logits, token_ids: Sequence[int], size: int | None) -> Logits:
    """Removes tokens that would complete ``size`` tokens in a row that were there before.

    None changes nothing. Paulus et al. 2017 (arXiv:1705.04304, section 2.5), Hugging Face's
    ``no_repeat_ngram_size``. Raises RequestError for an id outside 0..V-1.
    """
    if size is None or len(token_ids) < size:
        return logits
    ids = _checked_ids(token_ids, logits.size)
    runs = np.lib.stride_tricks.sliding_window_view(ids, size)
    beginning = ids[ids.size - size + 1 :]
    result = logits.copy()
    result[runs[(runs[:, :-1] == beginning).all(axis=1), -1]] = -np.inf
    return result


def remove_banned(logits: Logits, banned: Sequence[int] | TokenIds | None) -> Logits:
    """Removes tokens, whatever else is said of them. Raises RequestError for an id outside 0..V-1.

    Hugging Face's ``suppress_tokens``.
    """
    if banned is None or not len(banned):
        return logits
    result = logits.copy()
    result[_checked_ids(banned, logits.size, "in banned_tokens")] = -np.inf
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


def typical_p(logits: Logits, p: float) -> Logits:
    """Keeps the tokens nearest to the expected surprise that reach ``p``; 1.0 changes nothing.

    Meister et al. 2022 (arXiv:2202.00666, section 3): those with the least |-log P(t) - H|, H the
    entropy, until their probability is p, at least one. Ties: lowest id first.
    """
    if p == 1.0:
        return logits
    ids = np.flatnonzero(logits > -np.inf)
    scaled = logits[ids].astype(np.float64) - float(_largest(logits))
    weights = np.exp(scaled)
    total = float(weights.sum())
    order = np.argsort(_surprise_off(scaled, _mean(scaled, weights, total)), kind="stable")
    return _keep(logits, ids[order[: _nucleus_size(weights[order], p * total)]])


def reshape_logits(
    logits: Logits,
    token_ids: Sequence[int],
    options: SamplingOptions,
    num_prompt: int = 0,
    end_ids: Collection[int] = (),
    allowed: Allowed | None = None,
    banned: BannedStrings | None = None,
) -> Logits:
    """The steps before the temperature; the first ``num_prompt`` of the ids are the prompt's.

    ``end_ids`` are those that ``min_tokens`` removes for so long, ``allowed`` those that a
    constraint allows.
    """
    window = options.penalty_window or len(token_ids)
    recent = token_ids[max(0, len(token_ids) - window) :]
    generated = token_ids[max(num_prompt, len(token_ids) - window) :]
    logits = keep_allowed(logits, allowed)
    logits = _biased(logits, options.bias_arrays)
    logits = apply_repetition_penalty(logits, recent, options.repetition_penalty)
    frequency, presence = options.frequency_penalty, options.presence_penalty
    logits = apply_frequency_and_presence(logits, generated, frequency, presence)
    logits = remove_repeated_ngrams(logits, token_ids, options.no_repeat_ngram_size)
    logits = remove_banned(logits, options.banned_ids)
    if banned is not None:
        logits = remove_banned(logits, banned.completed_by(token_ids[num_prompt:]))
    if len(token_ids) - num_prompt < options.min_tokens and end_ids:
        logits = logits.copy()
        logits[list(end_ids)] = -np.inf
    return logits


def process_logits(
    logits: Logits,
    token_ids: Sequence[int],
    options: SamplingOptions,
    num_prompt: int = 0,
    end_ids: Collection[int] = (),
    allowed: Allowed | None = None,
    banned: BannedStrings | None = None,
) -> Logits:
    """All steps in their order, at full width: the slow twin of what a sampler draws from.

    Softmax of the result is the distribution. ``options.temperature`` has to be above 0.
    """
    logits = reshape_logits(logits, token_ids, options, num_prompt, end_ids, allowed, banned)
    logits = apply_temperature(logits, options.temperature)
    logits = top_k(logits, options.top_k)
    logits = top_p(logits, options.top_p)
    logits = min_p(logits, options.min_p)
    return typical_p(logits, options.typical_p)


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


class Sampler:
    """Chooses the next token; made by ``make_sampler``.

    It owns its random state: one per generation, not shared between threads. It never writes to
    the logits. Both verbs take logits (V,) and all token ids so far, prompt and generated; the ids
    are looked at only by penalties, for n-grams and by the constraint. Both raise NumericsError for
    NaN, +inf or all -inf, and RequestError where a constraint and other options leave no token.
    """

    def __init__(
        self,
        options: SamplingOptions,
        num_prompt: int,
        end_ids: Collection[int],
        constraint: Constraint | None,
        banned: BannedStrings | None,
    ) -> None:
        self.options = options
        self.constraint = constraint
        self._banned = banned
        self._num_prompt = num_prompt
        self._end_ids = end_ids
        self._reshapes = options.reshapes or constraint is not None or banned is not None
        self._filters = options.filters
        # What is freed beyond twice the largest block freed so far, glibc gives back at once: then
        # arrays of V = 128256 cost 500 page faults or 0.8 ms a token. It learns from a larger one.
        np.empty(_LARGER_BLOCK, np.uint8)

    @cached_property
    def generator(self) -> np.random.Generator:
        """Made when it is first asked for: greedy draws nothing, and then nothing imports it."""
        return np.random.Generator(np.random.PCG64(self.options.seed))

    def __call__(self, logits: Logits, token_ids: Sequence[int]) -> int:
        """The next token id: drawn from ``distribution`` with one number of ``generator``.

        Greedy takes the largest logit, on ties the lowest id, and draws nothing. The others take
        the first surviving token, in order of ids, at which the cumulative probability exceeds u,
        uniform in [0, 1).
        """
        if self._reshapes:
            logits = self._reshaped(logits, token_ids)
        if self.options.temperature == 0:
            return _greedy(logits)
        uniform = self.generator.random()
        if not self._filters:
            scaled = _scale(logits, _largest(logits), self.options.temperature)
            return _draw_from_all(np.exp(scaled), uniform)
        ids, weights = candidates(logits, self.options)
        return int(ids[_draw(weights, uniform)])

    def distribution(self, logits: Logits, token_ids: Sequence[int]) -> tuple[TokenIds, Weights]:
        """What is drawn from, after all steps: ids, ascending, and weights in float64.

        A weight over the sum of all is a probability. Greedy: one id, of weight 1.
        """
        if self._reshapes:
            logits = self._reshaped(logits, token_ids)
        if self.options.temperature == 0:
            return np.array([_greedy(logits)], np.intp), np.ones(1)
        return candidates(logits, self.options)

    def _reshaped(self, logits: Logits, token_ids: Sequence[int]) -> Logits:
        allowed, end_ids = None, self._end_ids
        if self.constraint is not None:
            generated = token_ids[self._num_prompt :]
            allowed = self.constraint.allowed(generated)
            if self.constraint.must_end(generated):
                end_ids = ()  # however few ``min_tokens`` finds them
        reshaped = reshape_logits(
            logits, token_ids, self.options, self._num_prompt, end_ids, allowed, self._banned
        )
        if reshaped.max() == -np.inf and logits.max() > -np.inf:
            raise _nothing_left(allowed)
        return reshaped


def make_sampler(
    options: SamplingOptions,
    num_prompt: int = 0,
    end_ids: Collection[int] = (),
    constraint: Constraint | None = None,
    banned: BannedStrings | None = None,
) -> Sampler:
    """The function (logits, token ids so far) -> token, bound once before the loop.

    The first ``num_prompt`` of the ids are the prompt's; ``end_ids`` end a text. ``constraint`` is
    of this generation alone, and wins over ``min_tokens``.
    """
    return Sampler(options, num_prompt, end_ids, constraint, banned)


def _greedy(logits: Logits) -> int:
    token = int(logits.argmax())  # the first NaN, when there is one
    if not math.isfinite(logits[token]):
        raise _numerics_error(logits)
    return token


def candidates(logits: Logits, options: SamplingOptions) -> tuple[TokenIds, Weights]:
    """The tokens that survive all filters, ascending, and their weights relative to the likeliest.

    Tokens of weight above 0 are those to which softmax of ``process_logits`` gives a probability
    (up to float32 rounding at the very edge of a filter), found without its sorts of all V. The
    steps before the temperature are not applied here, and that has to be above 0.
    Raises NumericsError for NaN, +inf, or all -inf.
    """
    if options.typical_p == 1.0:
        return _likely(logits, options)
    largest = _largest(logits)
    if options.top_k is None and options.top_p == 1.0 and options.min_p == 0.0:
        scaled = _scale(logits, largest, options.temperature)  # of all V in float32
        ids = _typical(scaled, np.exp(scaled), options.typical_p)
        return ids, _weights(scaled[ids])
    ids, weights = _likely(logits, options)
    kept = _typical(_scale(logits[ids], largest, options.temperature), weights, options.typical_p)
    return ids[kept], weights[kept]


def _likely(logits: Logits, options: SamplingOptions) -> tuple[TokenIds, Weights]:
    """The tokens that survive top-k, top-p and min-p, ascending, and their weights."""
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

    weights32 = np.exp(scaled)
    total = float(weights32.sum())
    if options.min_p > 0.0:
        ids = _above_min_p(scaled, options.min_p)
        if ids.size <= scaled.size // 8:
            order = np.argsort(-scaled[ids], kind="stable")
            return _cut(ids[order], _weights(scaled[ids[order]]), total, options)
    return _nucleus(scaled, weights32, total, options)


def _nucleus(
    scaled: Logits, weights32: Logits, total: float, options: SamplingOptions
) -> tuple[TokenIds, Weights]:
    """top-p and min-p over all V: among the largest few, or by narrowing down on the threshold."""
    wanted = options.top_p * total
    heavy = _superset_of_largest(scaled, 128)
    if heavy.size <= 512:  # more only with many equal values
        order = np.argsort(-scaled[heavy], kind="stable")
        weights = _weights(scaled[heavy[order]])
        if weights.sum() >= wanted:
            return _cut(heavy[order], weights, total, options)
    least = _negligible(options.top_p, total, scaled.size)
    ids = _reaching(scaled, weights32, wanted, total, least)
    weights = _weights(scaled[ids])
    if options.min_p == 0.0:
        return ids, weights
    survivors = np.flatnonzero(weights >= options.min_p)
    return ids[survivors], weights[survivors]


def _negligible(p: float, total: float, size: int) -> float:
    """Scaled logits below it weigh less than (1 - p) · total together, however many they are."""
    return math.log((1 - p) * total / size) - 0.1


def _reaching(
    keys: Logits | Weights, weights: Logits | Weights, wanted: float, total: float, least: float
) -> TokenIds:
    """Places, ascending, of the largest keys whose weights reach ``wanted``, as few as can be.

    Those from ``least`` on reach it for sure. Ties: lowest place first. A sort of all would take
    1.2 ms at V = 128256, and a histogram of all 0.5: mostly it is enough to look at a tenth.
    """
    if keys.size >= 8 * _SAMPLE:
        guess = max(least, _guess(keys, weights, (total - wanted) / 2))
        likely = np.flatnonzero(keys >= guess)
        shares = weights[likely]
        if float(shares.sum()) >= wanted:
            return likely[_by_histogram(keys[likely], shares, wanted, guess)]
    return _by_histogram(keys, weights, wanted, least)


def _guess(keys: Logits | Weights, weights: Logits | Weights, below: float) -> float:
    """About the key under which the weights come to ``below``: by the heaviest and a sample."""
    heavy = _superset_of_largest(weights, 512)
    stride = keys.size // _SAMPLE
    light = weights.copy()
    light[heavy] = 0
    sample = np.concatenate((keys[::stride], keys[heavy]))
    order = np.argsort(sample)
    shares = np.concatenate((light[::stride] * stride, weights[heavy]))[order]
    place = int(np.searchsorted(np.cumsum(shares), below))
    return float(sample[order[min(place, order.size - 1)]])


def _by_histogram(
    keys: Logits | Weights, weights: Logits | Weights, wanted: float, least: float
) -> TokenIds:
    """As ``_reaching``: sorted are only those in the bin in which it is reached."""
    most = float(keys.max())
    width = max((most - least) / _BINS, _TINY)  # of which 1 / width is a float32, too
    with np.errstate(over="ignore"):
        bins = np.minimum((most - keys) * (1 / width), _BINS).astype(np.int16)
    reached = np.cumsum(np.bincount(bins, weights, _BINS + 1))
    last = min(int(np.searchsorted(reached, wanted)), _BINS)
    keep = bins < last
    edge = np.flatnonzero(bins == last)
    edge = edge[keys[edge] > -np.inf]
    edge = edge[np.argsort(-keys[edge], kind="stable")]
    missing = wanted - (float(reached[last - 1]) if last else 0.0)
    keep[edge[: _nucleus_size(weights[edge], missing)]] = True
    return np.flatnonzero(keep)


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


def _typical(scaled: Logits | Weights, weights: Logits | Weights, p: float) -> TokenIds:
    """Places, ascending, of those that ``typical_p`` keeps of weights exp(scaled)."""
    total = float(weights.sum())
    mean = _mean(scaled, weights, total)
    farthest = max(mean - _negligible(p, total, scaled.size), -mean)
    return _reaching(-_surprise_off(scaled, mean), weights, p * total, total, -farthest)


def _surprise_off(scaled: Logits | Weights, mean: float) -> Logits | Weights:
    """|-log P - H| of tokens with weights exp(scaled), up to rounding; inf for one of -inf.

    With T their sum, -log P is log T - scaled, and the entropy H is log T less the mean of scaled.
    """
    off: Logits | Weights = np.abs(scaled - scaled.dtype.type(mean))
    return off


def _mean(scaled: Logits | Weights, weights: Logits | Weights, total: float) -> float:
    finite = np.maximum(scaled, scaled.dtype.type(-1000))  # there a weight is 0, and -inf · 0 NaN
    return float((weights * finite).sum()) / total


def _nucleus_size(weights: Logits | Weights, wanted: float) -> int:
    """How many of the descending weights it takes for their sum to reach ``wanted``."""
    return min(int(np.searchsorted(np.cumsum(weights), wanted)) + 1, weights.size)


def _superset_of_largest(values: Logits | Weights, k: int) -> TokenIds:
    """Ids, ascending, of all values that reach some threshold at or below the k-th largest.

    The values are dealt into groups; the k-th largest of the groups' maxima is such a threshold,
    since k groups hold a value that reaches it. With eight groups per wanted value few others do.
    Half the time of np.partition at V = 50257, k = 40.
    """
    k = min(k, values.size)
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


def _checked_ids(
    token_ids: Sequence[int] | TokenIds, size: int, place: str = "among the ids so far"
) -> NDArray[np.int64]:
    ids = np.asarray(token_ids, dtype=np.int64)
    if ids.min() < 0 or ids.max() >= size:
        wrong = next(int(i) for i in ids if not 0 <= i < size)
        raise RequestError(
            f"token id {wrong} is {place}, expected 0 to {size - 1}, the tokens the model scores; "
            "use the tokenizer of the model folder"
        )
    return ids


def _keep(logits: Logits, ids: TokenIds) -> Logits:
    result = np.full_like(logits, -np.inf)
    result[ids] = logits[ids]
    return result


def _largest(logits: Logits) -> np.float32:
    largest: np.float32 = logits.max()  # NaN when any is
    if not math.isfinite(largest):
        raise _numerics_error(logits)
    return largest


def _nothing_left(allowed: Allowed | None) -> RequestError:
    if allowed is None:
        return RequestError(
            "no token is left to choose from, expected one at least: banned tokens or strings, "
            "no_repeat_ngram_size and min_tokens removed them all; ask for less of them"
        )
    return RequestError(
        f"no token is left of the {int(allowed.sum())} that the constraint allows here, expected "
        "one at least: the model gives them no probability, or banned tokens or strings, "
        "no_repeat_ngram_size or min_tokens remove them; ask for less of these"
    )


def _numerics_error(logits: Logits) -> NumericsError:
    num_nan = int(np.isnan(logits).sum())
    num_inf = int(np.isposinf(logits).sum())
    found = f"{num_nan} NaN and {num_inf} +inf" if num_nan or num_inf else "nothing but -inf"
    return NumericsError(
        f"the {logits.size} logits hold {found}, expected finite numbers; the weights or the graph "
        "are damaged - export the checkpoint again, or quantize it less"
    )
