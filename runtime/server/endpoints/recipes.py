"""/recipes: prompts with examples in them, which let a base model do more than continue."""

from __future__ import annotations

from ..api.answer_schemas import Recipes
from ..call import Call
from ..endpoint import Endpoint


async def _recipes(call: Call) -> None:
    await call.answer({"object": "list", "data": list(call.service.recipes)})


ENDPOINT = Endpoint(
    "GET", "/recipes", _recipes, "Prompts with examples, to begin with.", answer=Recipes
)
