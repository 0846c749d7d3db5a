"""Bounds that help texts name: no more than numbers, so that nothing is imported to show them."""

MOST_LOGPROBS = 100  # alternatives of a token; more are to be had from ``Session.step``
