"""The model class by which lm-evaluation-harness evaluates a model of ours.

    lm_eval --model pocketlm --model_args path=out/ --tasks hellaswag           # after 0.4.13
    python -m pocketlm.lm_eval --model pocketlm --model_args path=out/ ...      # any release

The harness finds the class by the entry point "lm_eval.models" of this package. Its releases up
to 0.4.13 look up no entry points: there the second line, the same program with the class
registered, takes the place of the first. From Python either way:

    lm_eval.simple_evaluate(pocketlm.lm_eval.PocketLM("out/"), tasks=[...])

Sources: docs/model_guide.md and docs/plugins.md of lm-evaluation-harness; ``HFLM`` in
lm_eval/models/huggingface.py for what a model does with requests that do not fit.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from pocketlm import __version__, streams
from pocketlm.export.errors import PocketLMError, RequestError
from pocketlm.export.importing import importing
from pocketlm.export.sampling_ranges import COUNTS, FIELDS
from pocketlm.models.loading import load
from pocketlm.runtime.chat import answer_end_ids
from pocketlm.runtime.request import ChatPrompt
from pocketlm.runtime.requests import CHARACTERS_PER_TOKEN
from pocketlm.runtime.scoring import Scorer, start_token


def end(error: PocketLMError) -> NoReturn:
    """Ends the program with a line on stderr."""
    streams.prepare()
    print(f"pocketlm: {error}", file=sys.stderr, flush=True)
    sys.exit(error.exit_code)


try:
    with importing("evaluating by lm-evaluation-harness", "lm-eval"):
        from lm_eval.api.model import TemplateLM
        from lm_eval.models.utils import normalize_gen_kwargs
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
        from tqdm import tqdm
except PocketLMError as error:
    if __name__ == "__main__":
        end(error)
    raise

SAMPLING = (*FIELDS, "frequency_penalty", "presence_penalty")
# Spoken to the harness's own logger, which prints what a run should know.
log = logging.getLogger("lm_eval.models.pocketlm")


class PocketLM(TemplateLM):  # type: ignore[misc]
    """A model folder, a checkpoint, a name on the hub or, without ``path``, the demo model.

    Keyword arguments are those of ``pocketlm.load``, and so are the errors. ``max_length`` may
    shorten the context. The harness always passes ``device`` and the sizes of batches, which change
    nothing: ``provider`` says where the model runs, and requests are computed one at a time, each
    without what it shares with the one before.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.model = load(path, **options)
        self.max_gen_toks = max_gen_toks
        self._start_id = start_token(self.model.tokenizer, self.model.folder)
        self._scorer = Scorer(self.model.session, max_length)
        self._end_ids: frozenset[int] = frozenset()  # of an answer, once the template is applied

    @property
    def max_length(self) -> int:
        """Most tokens a request may have."""
        return self._scorer.context_length

    @property
    def eot_token_id(self) -> int:
        """The token that a text without context is scored after."""
        if self._start_id is None:
            raise RequestError(
                f"{self.model.folder.path}: found no token that a text begins with, expected one "
                "to score a text without context; leave out tasks that need it"
            )
        return self._start_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids; unless told, special tokens are added to a text that does not begin so."""
        ids = self.model.tokenizer.encode(string, add_special_tokens=False)
        if add_special_tokens is False or (add_special_tokens is None and self._begins(ids)):
            return ids
        return self.model.tokenizer.encode(string)

    def _begins(self, ids: Sequence[int]) -> bool:
        return len(ids) > 0 and ids[0] == self._start_id

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        answers = []
        for key, context, continuation in tqdm(
            requests, disable=disable_tqdm, desc="Running loglikelihood requests"
        ):
            score = self._scorer.score(context, continuation)
            if score.truncated:
                log.warning("left out %d tokens of a context that is too long", score.truncated)
            answers.append((score.loglikelihood, score.is_greedy))
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answers[-1])
        return answers

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of each text, in the windows that the harness cuts it into."""
        totals = []
        for (text,) in tqdm(
            [request.args for request in requests],
            disable=disable_tqdm,
            desc="Running loglikelihood_rolling requests",
        ):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [make_disjoint_window(window) for window in windows]
            totals.append(sum(self._scorer.score(*pair).loglikelihood for pair in pairs))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each text, up to a stop string or ``max_gen_toks``."""
        answers = []
        for context, options in tqdm(
            [request.args for request in requests],
            disable=disable_tqdm,
            desc="Running generate_until requests",
        ):
            answers.append(self._generate(context, options))
            self.cache_hook.add_partial("generate_until", (context, options), answers[-1])
        return answers

    def _generate(self, context: str, options: Mapping[str, Any]) -> str:
        wanted = dict(normalize_gen_kwargs(dict(options), self.max_gen_toks))
        limit, stop = wanted.pop("max_gen_toks"), [text for text in wanted.pop("until") if text]
        room = self.max_length - limit
        if room < 1:
            raise RequestError(
                f"max_gen_toks is {limit}, expected less than the context length of "
                f"{self.max_length}; set it in --gen_kwargs"
            )
        ids = self.tok_encode(context)
        if len(ids) > room:
            log.warning("left out %d tokens of a context that is too long", len(ids) - room)
        if not wanted.pop("do_sample"):
            wanted["temperature"] = 0.0
        sampling = {name: wanted.pop(name) for name in SAMPLING if name in wanted}
        for name in COUNTS:  # below 1 is how transformers and vLLM say that there is no limit
            if sampling.get(name, 1) < 1:
                del sampling[name]
        # Drawn from what the harness has seeded, so that its --seed decides.
        seed = wanted.pop("seed", None) or int(np.random.randint(1 << 31))
        if wanted:
            log.warning("left out what pocketlm does not have: %s", ", ".join(sorted(wanted)))
        prompt = ChatPrompt(ids[-room:], end_ids=self._end_ids)
        return self.model.generate(prompt, max_tokens=limit, stop=stop, seed=seed, **sampling).text

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation; without ``add_generation_prompt`` its end is to go on."""
        template = self.model.chat_template
        if template is None:
            raise RequestError(
                f"{self.model.folder.path}: found no chat template, expected one: this is a base "
                "model; leave out --apply_chat_template"
            )
        self._end_ids = answer_end_ids(template, self.model.tokenizer)
        text = template.render(
            chat_history,
            max_characters=CHARACTERS_PER_TOKEN * self.max_length,
            add_generation_prompt=add_generation_prompt,
        )
        if not add_generation_prompt:
            last = chat_history[-1]["content"].strip()
            text = text[: text.rindex(last) + len(last)]
        return text

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source: the harness keeps it with the results."""
        template = self.model.chat_template
        return template.source if template and chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """Tells tokenizers apart: requests are cached by it."""
        return f"pocketlm-{self.model.folder.files['tokenizer.json'].sha256[:16]}"

    def get_model_info(self) -> dict[str, Any]:
        """What the harness keeps with the results."""
        manifest = self.model.folder.manifest
        return {
            "model_num_parameters": manifest.num_parameters,
            "model_dtype": manifest.precision.name,
            "pocketlm_version": __version__,
        }


def main() -> None:
    """The harness's own command line, with the model in its registry."""
    import lm_eval.models  # noqa: F401  fills the registry, which is not done once it has a model
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    if "pocketlm" not in model_registry:
        model_registry.register("pocketlm", target="pocketlm.lm_eval:PocketLM")
    try:
        cli_evaluate()
    except PocketLMError as error:
        end(error)


if __name__ == "__main__":
    main()
