"""A second graph of the same model for many tokens at a time: its linear layers are in W8A8.

    plan = prefill_plan(Plan.read("int4.json"), model)      int4-block128 -> int8-channel

One token a step reads every weight once, so that the fewest bytes win. Many tokens share what is
read, and then integer products of W8A8 are the fastest there are. Both graphs compute the same
rotated model over the same keys and values. What both have in the same format (embedding, head,
norms, biases, a layer that is in W8A8 already) is stored once.
"""

from __future__ import annotations

import onnx_ir as ir

from ..export.errors import RequestError
from .plan import EVEN, LOPSIDED, Plan
from .precisions import FULL
from .select import select


def prefill_plan(plan: Plan, model: ir.Model, rotated: bool) -> Plan:
    """``plan`` with the linear layers of ``model`` in W8A8, and all else as it is.

    ``rotated`` says whether the outliers of the residual stream were spread. Raises RequestError
    where that changes nothing.
    """
    wanted = EVEN if rotated else LOPSIDED
    formats = dict(plan.formats)
    for name, selected in select(model).items():
        free = selected.obstacle is None and not selected.vocabulary
        if free and formats.get(name) not in (None, EVEN, LOPSIDED):
            formats[name] = wanted
    if formats == plan.formats:
        raise RequestError(
            "found --prefill int8 for a model whose linear layers are all in W8A8, expected "
            "another precision: int8 computes prompts with W8A8 already; leave it out"
        )
    reasons = {name: why for name, why in (plan.reasons or {}).items() if formats[name] == FULL}
    return Plan(reasons=reasons or None, formats=formats)
