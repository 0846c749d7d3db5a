"""Sampling: four-number cases per step, and the fast sampler against the full-width steps."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketlm.export.errors import NumericsError, RequestError
from pocketlm.runtime.sampling import (
    SamplingOptions,
    apply_frequency_and_presence,
    apply_logit_bias,
    apply_repetition_penalty,
    apply_temperature,
    keep_allowed,
    logprob,
    make_sampler,
    min_p,
    process_logits,
    remove_banned,
    remove_repeated_ngrams,
    reshape_logits,
    top_k,
    top_p,
    typical_p,
)

INF = math.inf
FOUR = [2.0, 1.0, 0.0, -1.0]  # probabilities 0.6439 0.2369 0.0871 0.0321


def f32(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def kept(logits: NDArray[np.float32]) -> list[int]:
    return [int(token) for token in np.flatnonzero(logits > -INF)]


# ---- the steps ----


@pytest.mark.parametrize(
    ("token_ids", "penalty", "expected"),
    [
        ([], 2.0, [2.0, 1.0, 0.0, -1.0]),
        ([0, 3], 2.0, [1.0, 1.0, 0.0, -2.0]),
        ([0, 0, 3, 0], 2.0, [1.0, 1.0, 0.0, -2.0]),
        ([0, 1, 2, 3], 0.5, [4.0, 2.0, 0.0, -0.5]),
        ([0, 1, 2, 3], 1.0, [2.0, 1.0, 0.0, -1.0]),
    ],
)
def test_repetition_penalty_of_four(
    token_ids: list[int], penalty: float, expected: list[float]
) -> None:
    logits = f32(*FOUR)
    result = apply_repetition_penalty(logits, token_ids, penalty)
    np.testing.assert_array_equal(result, f32(*expected))
    np.testing.assert_array_equal(logits, f32(*FOUR))  # the caller's array is not written to


def test_a_bias_is_added_to_single_tokens() -> None:
    found = apply_logit_bias(f32(*FOUR), {3: 4.0, 0: -100})
    np.testing.assert_array_equal(found, f32(-98, 1, 0, 3))
    assert apply_logit_bias(f32(*FOUR), None) is not None
    with pytest.raises(RequestError, match="token id 4 is in logit_bias, expected 0 to 3"):
        apply_logit_bias(f32(*FOUR), {4: 1.0})


def test_what_a_constraint_forbids_is_removed_and_no_bias_brings_it_back() -> None:
    allowed = np.array([False, True, True, False])
    np.testing.assert_array_equal(keep_allowed(f32(*FOUR), allowed), f32(-INF, 1, 0, -INF))
    np.testing.assert_array_equal(keep_allowed(f32(*FOUR), None), f32(*FOUR))
    options = SamplingOptions(logit_bias={3: 100, 2: 3})
    found = reshape_logits(f32(*FOUR), [], options, allowed=allowed)
    np.testing.assert_array_equal(found, f32(-INF, 1, 3, -INF))


def test_banned_tokens_are_removed_whatever_their_bias() -> None:
    np.testing.assert_array_equal(remove_banned(f32(*FOUR), [0, 3]), f32(-INF, 1, 0, -INF))
    np.testing.assert_array_equal(remove_banned(f32(*FOUR), None), f32(*FOUR))
    options = SamplingOptions(temperature=0, banned_tokens=[0, 1], logit_bias={0: 100})
    assert make_sampler(options)(f32(*FOUR), []) == 2
    with pytest.raises(RequestError, match="token id 4 is in banned_tokens, expected 0 to 3"):
        remove_banned(f32(*FOUR), [4])


@pytest.mark.parametrize(
    ("banned", "message"),
    [
        (3, "banned_tokens is 3 of type int, expected a list of token ids"),
        ("12", "banned_tokens is '12' of type str, expected a list of token ids"),
        ([1, -1], "banned_tokens has the token id -1, expected an integer of at least 0"),
        ([1.5], "banned_tokens has the token id 1.5, expected an integer of at least 0"),
        ([True], "banned_tokens has the token id True, expected an integer of at least 0"),
    ],
)
def test_banned_tokens_that_are_none_are_named(banned: Any, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        SamplingOptions(banned_tokens=banned)


def test_options_that_leave_no_token_are_told_apart_from_a_damaged_model() -> None:
    everything = SamplingOptions(temperature=0, banned_tokens=[0, 1, 2, 3])
    with pytest.raises(RequestError, match="no token is left to choose from"):
        make_sampler(everything)(f32(*FOUR), [])
    with pytest.raises(NumericsError, match="nothing but -inf"):
        make_sampler(everything)(f32(-INF, -INF, -INF, -INF), [])


@pytest.mark.parametrize(
    ("token_ids", "frequency", "presence", "expected"),
    [
        ([], 1.0, 1.0, [2.0, 1.0, 0.0, -1.0]),
        ([0, 3, 0], 0.5, 0.0, [1.0, 1.0, 0.0, -1.5]),
        ([0, 3, 0], 0.0, 0.5, [1.5, 1.0, 0.0, -1.5]),
        ([0, 3, 0], 0.5, 0.25, [0.75, 1.0, 0.0, -1.75]),
        ([2, 2], -1.0, 0.0, [2.0, 1.0, 2.0, -1.0]),
    ],
)
def test_frequency_and_presence_penalty_of_four(
    token_ids: list[int], frequency: float, presence: float, expected: list[float]
) -> None:
    found = apply_frequency_and_presence(f32(*FOUR), token_ids, frequency, presence)
    np.testing.assert_array_equal(found, f32(*expected))


@pytest.mark.parametrize(
    ("token_ids", "size", "left"),
    [
        ([0, 1, 2], None, [0, 1, 2, 3]),
        ([], 1, [0, 1, 2, 3]),
        ([0, 1, 1], 1, [2, 3]),
        ([1], 2, [0, 1, 2, 3]),
        ([0, 1, 0], 2, [0, 2, 3]),  # 0 1 was there: no 1 after 0
        ([0, 0], 2, [1, 2, 3]),
        ([0, 1, 2, 3, 0, 1], 3, [0, 1, 3]),
        ([0, 1, 2, 0, 1, 3, 0, 1], 3, [0, 1]),
    ],
)
def test_repeated_ngrams_are_removed(
    token_ids: list[int], size: int | None, left: list[int]
) -> None:
    assert kept(remove_repeated_ngrams(f32(*FOUR), token_ids, size)) == left


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 4))
def test_no_ngram_appears_twice_in_what_is_left_to_choose(token_ids: list[int], size: int) -> None:
    found = remove_repeated_ngrams(f32(*FOUR), token_ids, size)
    seen = {tuple(token_ids[i : i + size]) for i in range(len(token_ids) - size + 1)}
    for token in range(4):
        longer = [*token_ids, token]
        repeats = len(longer) >= size and tuple(longer[-size:]) in seen
        assert (found[token] == -INF) == repeats


def test_penalties_look_at_the_window_and_at_what_was_generated() -> None:
    """The repetition penalty at the prompt, too; the others not."""
    options = SamplingOptions(repetition_penalty=2.0, presence_penalty=1.0, penalty_window=2)
    found = reshape_logits(f32(*FOUR), [0, 1, 3], options, num_prompt=2)
    np.testing.assert_array_equal(found, f32(2, 0.5, 0, -3))
    whole = SamplingOptions(repetition_penalty=2.0, presence_penalty=1.0)
    found = reshape_logits(f32(*FOUR), [0, 1, 3], whole, num_prompt=1)
    np.testing.assert_array_equal(found, f32(1, -0.5, 0, -3))


def test_no_text_ends_before_so_many_tokens() -> None:
    options = SamplingOptions(temperature=0, min_tokens=2)
    sampler = make_sampler(options, num_prompt=1, end_ids={0})
    ids = [3]
    for _ in range(3):
        ids.append(sampler(f32(*FOUR), ids))
    assert ids == [3, 1, 1, 0]


def test_extreme_penalty_stays_finite_and_keeps_removed_tokens() -> None:
    result = apply_repetition_penalty(f32(2, -2, 0, -INF), [0, 1, 2, 3], 1e-300)
    assert np.isfinite(result[:3]).all() and result[3] == -INF
    result = apply_repetition_penalty(f32(2, -2, 0, -INF), [0, 1, 2, 3], 1e300)
    assert np.isfinite(result[:3]).all() and result[3] == -INF


@pytest.mark.parametrize("token", [-1, 4])
def test_repetition_penalty_names_an_id_outside_the_vocabulary(token: int) -> None:
    with pytest.raises(RequestError, match=f"token id {token} is among the ids so far, expected 0"):
        apply_repetition_penalty(f32(*FOUR), [1, token], 2.0)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, [2.0, 1.0, 0.0, -1.0]),
        (0.5, [0.0, -2.0, -4.0, -6.0]),
        (2.0, [0.0, -0.5, -1.0, -1.5]),
        (1e300, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_temperature_of_four(temperature: float, expected: list[float]) -> None:
    np.testing.assert_allclose(
        apply_temperature(f32(*FOUR), temperature), f32(*expected), atol=1e-30
    )


def test_tiny_temperature_leaves_the_largest_without_overflow() -> None:
    probabilities = softmax(apply_temperature(f32(*FOUR), 1e-300))
    np.testing.assert_array_equal(probabilities, [1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("k", "expected"),
    [(1, [0]), (2, [0, 1]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3]), (None, [0, 1, 2, 3])],
)
def test_top_k_of_four(k: int | None, expected: list[int]) -> None:
    assert kept(top_k(f32(*FOUR), k)) == expected


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (1e-9, [0]),
        (0.64, [0]),
        (0.65, [0, 1]),
        (0.88, [0, 1]),
        (0.89, [0, 1, 2]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p_of_four(p: float, expected: list[int]) -> None:
    assert kept(top_p(f32(*FOUR), p)) == expected


@pytest.mark.parametrize(
    ("p", "expected"),  # relative to the largest: 1, 0.3679, 0.1353, 0.0498
    [(0.0, [0, 1, 2, 3]), (0.049, [0, 1, 2, 3]), (0.05, [0, 1, 2]), (0.36, [0, 1]), (1.0, [0])],
)
def test_min_p_of_four(p: float, expected: list[int]) -> None:
    assert kept(min_p(f32(*FOUR), p)) == expected


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        # Surprise 0.440 1.440 2.440 3.440, entropy 0.948: off by 0.508 0.492 1.492 2.492.
        (1.0, [0, 1, 2, 3]),
        (0.2, [1]),
        (0.24, [0, 1]),
        (0.88, [0, 1]),
        (0.89, [0, 1, 2]),
        (0.97, [0, 1, 2, 3]),
    ],
)
def test_typical_p_of_four(p: float, expected: list[int]) -> None:
    assert kept(typical_p(f32(*FOUR), p)) == expected


def test_ties_stay_from_the_lowest_id_on() -> None:
    assert kept(typical_p(f32(1, 1, 1, 1), 0.5)) == [0, 1]
    equal = f32(0, 0, 0, 0)
    assert kept(top_k(equal, 2)) == [0, 1]
    assert kept(top_p(equal, 0.75)) == [0, 1, 2]
    assert kept(min_p(equal, 1.0)) == [0, 1, 2, 3]


def test_steps_see_temperature_first_and_top_p_sees_what_top_k_left() -> None:
    options = SamplingOptions(temperature=0.5, top_p=0.8)
    assert kept(process_logits(f32(*FOUR), [], options)) == [0]  # 0.865 at temperature 0.5
    # Of the two that top-k leaves the first has 0.731; of all four it has 0.644.
    options = SamplingOptions(top_k=2, top_p=0.7)
    assert kept(process_logits(f32(*FOUR), [], options)) == [0]


# ---- the sampler ----

eighths = st.integers(-160, 160).map(lambda n: n / 8)  # exact in float32, with many ties
few_logits = st.lists(st.one_of(eighths, st.just(-INF)), min_size=1, max_size=40)


@st.composite
def logits_arrays(draw: st.DrawFn) -> NDArray[np.float32]:
    """Short lists found by hypothesis, or long seeded arrays, flat or peaked, some tokens out."""
    if draw(st.booleans()):
        logits: NDArray[np.float32] = f32(*draw(few_logits))
    else:
        generator = np.random.default_rng(draw(st.integers(0, 2**32)))
        size = draw(st.sampled_from([255, 256, 1024, 2047, 5000, 9001, 20_000]))
        spread = draw(st.sampled_from([0.0, 0.5, 3.0, 20.0]))
        logits = (generator.standard_normal(size) * spread).astype(np.float32)
        if draw(st.booleans()):
            logits = (np.round(logits * 2) / 2).astype(np.float32)
        logits[generator.random(size) < draw(st.sampled_from([0.0, 0.9]))] = -INF
    assume(np.isfinite(logits).any())
    return logits


all_options = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.25, 0.7, 1.0, 1.5, 10.0]),
    top_k=st.one_of(st.none(), st.integers(1, 60), st.integers(61, 10000)),
    top_p=st.one_of(st.just(1.0), st.floats(0.001, 0.999)),
    min_p=st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
    typical_p=st.one_of(st.just(1.0), st.floats(0.001, 0.999)),
    seed=st.integers(0, 2**64),
)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(weights / weights.sum())


def is_at_an_edge(logits: NDArray[np.float32], options: SamplingOptions) -> bool:
    """Whether rounding may decide: the sum or the ratio of some token is the limit itself."""
    before = top_k(apply_temperature(logits, options.temperature), options.top_k)
    descending = np.sort(softmax(before))[::-1]
    near_p = np.abs(np.cumsum(descending) - options.top_p).min() < 1e-6
    near_min_p = np.abs(descending / descending[0] - options.min_p).min() < 1e-6
    if (options.top_p < 1 and near_p) or (0 < options.min_p < 1 and near_min_p):
        return True
    return options.typical_p < 1 and _typical_is_at_an_edge(logits, options)


def _typical_is_at_an_edge(logits: NDArray[np.float32], options: SamplingOptions) -> bool:
    """Where the last that stays is as far off as the first that goes, or the sum is the limit."""
    before = process_logits(logits, [], replace(options, typical_p=1.0))
    shares = softmax(before)
    shares = shares[shares > 0]
    off = np.abs(-np.log(shares) + (shares * np.log(shares)).sum())
    order = np.argsort(off, kind="stable")
    reached = np.cumsum(shares[order])
    last = min(int(np.searchsorted(reached, options.typical_p)), len(order) - 1)
    near = off[order][last + 1 : last + 2] - off[order][last] < 1e-5
    return bool(near.any() or np.abs(reached - options.typical_p).min() < 1e-6)


@settings(deadline=None)  # a busy machine is no failure
@given(logits_arrays(), all_options)
def test_sampler_equals_full_width_steps(
    logits: NDArray[np.float32], options: SamplingOptions
) -> None:
    assume(not is_at_an_edge(logits, options))
    expected = softmax(process_logits(logits, [], options))

    ids, weights = make_sampler(options).distribution(logits, [])
    assert weights.dtype == np.float64
    assert (np.diff(ids) > 0).all()
    got = np.zeros_like(expected)
    got[ids] = weights / weights.sum()
    assert np.array_equal(got > 0, expected > 0)
    np.testing.assert_allclose(got, expected, rtol=1e-5)  # float32 scaled logits up to 80: 5e-6

    token = make_sampler(options)(logits, [])
    assert expected[token] > 0
    cumulative = np.cumsum(expected)
    uniform = np.random.Generator(np.random.PCG64(options.seed)).random()
    if np.abs(cumulative - uniform).min() > 1e-5:
        assert token == int(np.searchsorted(cumulative, uniform, side="right"))


@settings(deadline=None)  # a busy machine is no failure
@given(few_logits.filter(lambda values: max(values) > -INF), st.integers(0, 2**32))
def test_greedy_takes_the_largest_with_the_lowest_id(values: list[float], seed: int) -> None:
    expected = values.index(max(values))
    logits = f32(*values)
    sampler = make_sampler(SamplingOptions(temperature=0))
    assert sampler(logits, []) == expected
    assert [list(part) for part in sampler.distribution(logits, [])] == [[expected], [1.0]]
    assert make_sampler(SamplingOptions(top_k=1, seed=seed))(logits, []) == expected
    assert make_sampler(SamplingOptions(temperature=1e-30, seed=seed))(logits, []) == expected or (
        values.count(max(values)) > 1
    )


@settings(deadline=None)  # a busy machine is no failure
@given(few_logits.filter(lambda values: max(values) > -INF), all_options)
@example([0.0, 0.125], SamplingOptions(temperature=0.25, typical_p=0.03125, seed=0))  # equally far
def test_sampler_leaves_logits_alone_and_repeats_itself(
    values: list[float], options: SamplingOptions
) -> None:
    logits = f32(*values)
    first, second = make_sampler(options), make_sampler(options)
    tokens = [first(logits, [0]) for _ in range(5)]
    assert tokens == [second(logits, [0]) for _ in range(5)]
    np.testing.assert_array_equal(logits, f32(*values))


@pytest.mark.parametrize("name", ["top_p", "typical_p"])
def test_a_share_just_below_one_keeps_tokens_that_are_there(name: str) -> None:
    """Among many that a constraint removed; it is that of all in float32."""
    logits = np.full(20_000, -INF, dtype=np.float32)
    logits[::7] = np.linspace(-3, 3, logits[::7].size)
    options = replace(SamplingOptions(seed=3), **cast(Any, {name: math.nextafter(1.0, 0.0)}))
    ids, weights = make_sampler(options).distribution(logits, [])
    assert set(ids) <= set(range(0, 20_000, 7))
    assert weights.sum() / np.exp(logits.astype(np.float64) - 3).sum() > 1 - 1e-6


def test_seeds_differ_and_no_seed_is_fresh() -> None:
    logits = np.zeros(1000, dtype=np.float32)

    def tokens(seed: int | None) -> list[int]:
        sampler = make_sampler(SamplingOptions(seed=seed))
        return [sampler(logits, []) for _ in range(10)]

    assert tokens(1) == tokens(1) != tokens(2)
    assert tokens(None) != tokens(None)


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(seed=7),
        SamplingOptions(seed=7, temperature=0.7, top_k=50),
        SamplingOptions(seed=7, top_p=0.9),
        SamplingOptions(seed=7, typical_p=0.6),
        SamplingOptions(seed=7, frequency_penalty=0.7, presence_penalty=0.3, logit_bias={2: 1}),
        SamplingOptions(seed=7, no_repeat_ngram_size=1, typical_p=0.9),
        SamplingOptions(seed=7, banned_tokens=[0, 4], temperature=1.5),
        SamplingOptions(seed=7, top_k=3, top_p=0.95, min_p=0.01, repetition_penalty=1.5),
    ],
)
def test_frequencies_follow_the_distribution(options: SamplingOptions) -> None:
    logits, so_far, draws = f32(2, 1.5, 1, 0, 0, -1), [1, 5], 20_000
    expected = softmax(process_logits(logits, so_far, options))
    sampler = make_sampler(options)
    counts = np.bincount([sampler(logits, so_far) for _ in range(draws)], minlength=logits.size)
    assert not counts[expected == 0].any()
    # 4.5 standard deviations: with a sampler that is right, a seed fails once in 20,000.
    deviation = np.sqrt(draws * expected * (1 - expected))
    assert (np.abs(counts - draws * expected) <= 4.5 * deviation).all()


def test_plain_sampling_never_leaves_the_surviving_tokens() -> None:
    logits = np.full(1000, -INF, dtype=np.float32)
    logits[[300, 511, 512, 999]] = 0.0
    sampler = make_sampler(SamplingOptions(seed=3))
    assert {sampler(logits, []) for _ in range(200)} == {300, 511, 512, 999}


def test_repetition_penalty_changes_the_greedy_choice() -> None:
    sampler = make_sampler(SamplingOptions(temperature=0, repetition_penalty=3.0))
    assert sampler(f32(*FOUR), []) == 0
    assert sampler(f32(*FOUR), [0]) == 1


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([1.0, math.nan, 0.0], "1 NaN and 0 +inf"),
        ([math.nan] * 3, "3 NaN and 0 +inf"),
        ([1.0, INF, math.nan], "1 NaN and 1 +inf"),
        ([INF, 0.0, -INF], "0 NaN and 1 +inf"),
        ([-INF] * 3, "nothing but -inf"),
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(temperature=0),
        SamplingOptions(),
        SamplingOptions(top_k=2),
        SamplingOptions(top_p=0.5),
        SamplingOptions(min_p=0.5),
        SamplingOptions(typical_p=0.5),
    ],
)
def test_logits_without_a_distribution_are_refused(
    options: SamplingOptions, values: list[float], found: str
) -> None:
    message = re.escape(f"the 3 logits hold {found}, expected finite numbers")
    with pytest.raises(NumericsError, match=message):
        make_sampler(options)(f32(*values), [])
    with pytest.raises(NumericsError, match=message):
        make_sampler(options).distribution(f32(*values), [])
    with pytest.raises(NumericsError, match=message):
        logprob(f32(*values), 0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", -0.1, "temperature is -0.1, expected a finite number at least 0;"),
        ("temperature", math.nan, "temperature is nan, expected a finite number"),
        ("temperature", INF, "temperature is inf, expected a finite number"),
        ("temperature", True, "temperature is True, expected a finite number"),
        ("temperature", "1", "temperature is '1', expected a finite number"),
        ("temperature", None, "temperature is None, expected a finite number"),
        ("temperature", 10**400, "temperature is an integer of 1329 bits, expected a finite"),
        ("top_k", -1, "top_k is -1, expected an integer of at least 0;"),
        ("top_k", 2.0, "top_k is 2.0, expected an integer"),
        ("top_k", True, "top_k is True, expected an integer"),
        ("top_p", 0, "top_p is 0, expected a finite number in (0, 1];"),
        ("top_p", 1.01, "top_p is 1.01, expected a finite number in (0, 1];"),
        ("top_p", math.nan, "top_p is nan, expected a finite number"),
        ("min_p", -0.01, "min_p is -0.01, expected a finite number in [0, 1];"),
        ("min_p", 1.01, "min_p is 1.01, expected a finite number in [0, 1];"),
        ("min_p", False, "min_p is False, expected a finite number"),
        ("typical_p", 0, "typical_p is 0, expected a finite number in (0, 1];"),
        ("frequency_penalty", 101, "frequency_penalty is 101, expected a finite number in [-100"),
        ("presence_penalty", math.nan, "presence_penalty is nan, expected a finite number"),
        ("penalty_window", 0, "penalty_window is 0, expected an integer of at least 1;"),
        ("no_repeat_ngram_size", -1, "no_repeat_ngram_size is -1, expected an integer of at"),
        ("min_tokens", -1, "min_tokens is -1, expected an integer of at least 0;"),
        ("logit_bias", [1], "logit_bias is of type list, expected a mapping of token ids to"),
        ("logit_bias", {"a": 1}, "logit_bias has the token id 'a', expected an integer of at"),
        ("logit_bias", {-1: 1}, "logit_bias has the token id -1, expected an integer of at least"),
        ("logit_bias", {1: INF}, "logit_bias of token 1 is inf, expected a finite number in [-100"),
        ("repetition_penalty", 0, "repetition_penalty is 0, expected a finite number above 0;"),
        ("repetition_penalty", INF, "repetition_penalty is inf, expected a finite number"),
        ("seed", -1, "seed is -1, expected an integer of at least 0;"),
        ("seed", 1.5, "seed is 1.5, expected an integer"),
        ("seed", "x" * 99, "seed is '" + "x" * 56 + "..., expected an integer"),
    ],
)
def test_options_out_of_range_are_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        SamplingOptions(**{name: value})  # type: ignore[arg-type]


def test_numpy_numbers_are_numbers() -> None:
    options = SamplingOptions(
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        top_k=np.int64(2),  # type: ignore[arg-type]
        seed=np.int64(1),  # type: ignore[arg-type]
    )
    assert make_sampler(options)(f32(*FOUR), []) in (0, 1)


# ---- logprob ----


@settings(deadline=None)  # a busy machine is no failure
@given(logits_arrays())
def test_logprob_is_log_softmax(logits: NDArray[np.float32]) -> None:
    wide = logits.astype(np.float64)
    expected = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    for token in {0, logits.size - 1, int(logits.argmax())}:
        assert logprob(logits, token) == pytest.approx(expected[token], rel=1e-6, abs=1e-6)


def test_logprob_of_four_and_far_apart() -> None:
    assert logprob(f32(*FOUR), 0) == pytest.approx(math.log(0.643914), abs=1e-6)
    assert logprob(f32(3e38, -3e38, 0, -INF), 1) == pytest.approx(-6e38)
    assert logprob(f32(0, -INF), 1) == -INF


@pytest.mark.parametrize("token", [-1, 4])
def test_logprob_names_a_token_outside_the_vocabulary(token: int) -> None:
    with pytest.raises(RequestError, match=f"token id {token}, expected 0 to 3"):
        logprob(f32(*FOUR), token)


def test_the_arrays_of_many_biases_and_banned_tokens_are_made_once() -> None:
    options = SamplingOptions(logit_bias={3: 1.5, 1: -2.0}, banned_tokens=[4, 2, 4])
    assert options.bias_arrays is options.bias_arrays
    assert options.banned_ids is options.banned_ids
    logits = np.zeros(5, np.float32)
    expected = remove_banned(apply_logit_bias(logits, options.logit_bias), options.banned_tokens)
    assert np.array_equal(reshape_logits(logits, [], options), expected)
    assert not logits.any()
