"""The quality measurement against a slow twin, its self-check, and every refusal.

The twin encodes the text at once, runs every window in one piece from an empty cache, keeps all
logits, and computes each measure from its definition in float64.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folders import with_files
from numpy.typing import NDArray

from pocketlm.benchmarks.quality import divergence, window_scores
from pocketlm.benchmarks.quality import measure as quality
from pocketlm.benchmarks.quality.figures import text_sentence
from pocketlm.benchmarks.quality.measure import measure_quality
from pocketlm.benchmarks.quality.plan import MANY_DOCUMENTS, check_texts
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import NumericsError, RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of
from pocketlm.runtime.session import Session
from pocketlm.runtime.tokenizer import Tokenizer

CONTEXT = 64
TEXT = "The rest of the story is told in the other room.\nIt was late, and no one heard.\n" * 8
Folders = dict[str, ModelFolder]
Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """One checkpoint in three precisions; weights large enough for a distribution with shape."""
    root = tmp_path_factory.mktemp("quality")
    config = gpt2_config(vocab_size=300, n_positions=CONTEXT, n_embd=64)
    tensors = {
        name: values * 3 if values.ndim == 2 else values
        for name, values in gpt2_tensors(config).items()
    }
    source = open_checkpoint(write_checkpoint(root / "gpt2", config, tensors))
    return {
        precision: export_model(source, root / precision, precision_of(precision))
        for precision in ("fp32", "int8", "int4")
    }


@pytest.fixture(scope="module")
def two(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Two models in full precision: a row's logits are those of any number of rows at once."""
    root = tmp_path_factory.mktemp("other")
    config = gpt2_config(vocab_size=300, n_positions=CONTEXT, n_embd=64)
    random = np.random.default_rng(7)
    tensors = {
        name: values * 3 + random.normal(0, 0.03, values.shape).astype(np.float32)
        if values.ndim == 2
        else values
        for name, values in gpt2_tensors(config).items()
    }
    source = open_checkpoint(write_checkpoint(root / "gpt2", config, tensors))
    return {"fp32": folders["fp32"], "other": export_model(source, root / "out")}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def measure(folders: Folders, *texts: Path, **options: Any) -> dict[str, Any]:
    return measure_quality(folders, texts, threads=1, **options)


# The twin ----------------------------------------------------------------------------------------


def twin_windows(num_tokens: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """(begin, first scored, end): see "Perplexity of fixed-length models" of transformers."""
    found, scored = [], 1
    for begin in range(0, num_tokens, stride):
        end = min(begin + window, num_tokens)
        found.append((begin, scored, end))
        scored = end
        if end == num_tokens:
            break
    return found


def twin_log_softmax(folder: ModelFolder, ids: list[int], window: int, stride: int) -> list[Array]:
    """Log-probabilities of all tokens at the scored positions, (S, V) for each window."""
    session = Session(folder, threads=1)
    found = []
    for begin, scored, end in twin_windows(len(ids), window, stride):
        logits = session.all_logits(ids[begin:end], session.new_cache()).astype(np.float64)
        logits = logits[scored - begin - 1 : end - begin - 1]
        found.append(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))
    return found


def twin_error(values: list[float], weights: list[float]) -> float:
    """Of Σ values / Σ weights between windows; 0 for a single one."""
    if len(values) == 1:
        return 0
    v, w = np.array(values), np.array(weights)
    rest = v - v.sum() / w.sum() * w
    return float(np.sqrt(len(v) / (len(v) - 1) * np.square(rest).sum()) / w.sum())


def twin_mean(windows: list[Array]) -> dict[str, Any]:
    return {
        "value": float(np.concatenate(windows).mean()),
        "standard_error": twin_error([w.sum() for w in windows], [len(w) for w in windows]),
    }


def near(expected: Any) -> Any:
    """Float32 logits of other chunks, their exp, and sums in another order."""
    return pytest.approx(expected, rel=1e-4, abs=1e-6)


def twin_top(log_p: Array) -> NDArray[np.int64]:
    return np.argsort(-log_p, axis=-1)[:, :5]


@settings(max_examples=12, deadline=None)
@given(st.integers(3, CONTEXT), st.data())
def test_every_measure_equals_its_definition(
    two: Folders, text: Path, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(max(1, window // 8), window - 1), label="stride")
    rows = data.draw(st.sampled_from([2, 6, 128]), label="rows")
    tokenizer = Tokenizer.open(two["fp32"].path / "tokenizer.json")
    ids = [299, *tokenizer.encode(TEXT)]
    places = twin_windows(len(ids), window, stride)
    true = [np.array(ids[scored:end]) for _, scored, end in places]
    p, q = (twin_log_softmax(folder, ids, window, stride) for folder in two.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_scores, "ROWS", rows)
        found = measure(two, text, window=window, stride=stride)

    assert (found["tokens"], found["window"], found["stride"]) == (len(ids) - 1, window, stride)
    assert (found["bytes"], found["words"]) == (len(TEXT), len(re.split(r"\s+", TEXT)))
    losses = [
        [-w[np.arange(len(t)), t] for w, t in zip(model, true, strict=True)] for model in (p, q)
    ]
    for model, loss in zip(found["models"], losses, strict=True):
        total = np.concatenate(loss)
        mean = twin_mean(loss)
        assert model["loss"] == near(mean)
        perplexity = model["perplexity"]
        assert perplexity["token"]["value"] == near(np.exp(total.mean()))
        assert perplexity["token"]["standard_error"] == near(
            np.exp(total.mean()) * mean["standard_error"]
        )
        assert perplexity["byte"]["value"] == pytest.approx(np.exp(total.sum() / len(TEXT)))
        words = len(re.split(r"\s+", TEXT))
        assert perplexity["word"]["value"] == pytest.approx(np.exp(total.sum() / words), rel=1e-4)
        bits = total.sum() / len(TEXT) / math.log(2)
        assert model["bits_per_byte"] == near(bits)

    kl = [(np.exp(a) * (a - b)).sum(axis=-1) for a, b in zip(p, q, strict=True)]
    delta = [np.exp(-b) - np.exp(-a) for a, b in zip(*losses, strict=True)]
    tops = [(twin_top(a), twin_top(b)) for a, b in zip(p, q, strict=True)]
    agreed = [(a[:, 0] == b[:, 0]).astype(float) for a, b in tops]
    shared = [np.array([len({*x} & {*y}) / 5 for x, y in zip(a, b, strict=True)]) for a, b in tops]
    against = found["models"][1]["against"]
    assert against["kl"]["mean"] == near(twin_mean(kl))
    assert against["top1_agreement"] == near(twin_mean(agreed))
    assert against["top5_overlap"] == near(twin_mean(shared))
    assert against["delta_p"]["mean"] == near(twin_mean(delta))
    absolute = [np.abs(d) for d in delta]
    assert against["delta_p"]["mean_absolute"] == near(twin_mean(absolute))
    assert against["kl"]["max"] == near(np.concatenate(kl).max())
    for share, values, told in (
        (0.5, kl, against["kl"]["median"]),
        (0.99, kl, against["kl"]["p99"]),
        (0.99, absolute, against["delta_p"]["p99_absolute"]),
    ):
        exact = np.quantile(np.concatenate(values), share, method="inverted_cdf")
        assert told["value"] == pytest.approx(exact, rel=0.0102)
        assert told["standard_error"] is None or told["standard_error"] >= 0
    _check_along(found, np.concatenate(kl), np.concatenate(losses[1]))
    _check_examples(found, np.concatenate(kl), 1 - np.concatenate(agreed))


def _check_along(found: dict[str, Any], kl: Array, loss: Array) -> None:
    along = found["models"][1]["along"]
    assert 50 <= len(along) <= 100
    # The same parts, from where their middles are.
    length = 1
    while len(kl) > 100 * length:
        length *= 2
    parts = np.split(np.arange(len(kl)), range(length, len(kl), length))
    for told, part in zip(along, parts, strict=True):
        assert told["position"] == pytest.approx((part[0] + part[-1] + 1) / 2 / len(kl))
        assert told["kl"] == pytest.approx(kl[part].mean(), rel=1e-4, abs=1e-6)
        assert told["loss"] == pytest.approx(loss[part].mean(), rel=1e-4)
    assert all(part["kl"] is None for part in found["models"][0]["along"])


def _check_examples(found: dict[str, Any], kl: Array, parted: Array) -> None:
    examples = found["models"][1]["examples"]
    largest = np.sort(kl[parted == 1])[::-1][:8]
    assert [example["kl"] for example in examples] == pytest.approx(largest, rel=1e-4)
    for example in examples:
        place = round(example["position"] * len(kl))
        assert example["kl"] == pytest.approx(kl[place], rel=1e-4)
        assert parted[place] == 1
        assert f"{example['context']}{example['true']}" in f"<|endoftext|>{TEXT}"
        for likeliest in (example["reference"], example["model"]):
            shares = [share for _, share in likeliest]
            assert len(shares) == 5 and shares == sorted(shares, reverse=True)


def twin_clusters(parts: list[list[Array]], between_documents: bool) -> list[Array]:
    """Of the windows of each document: the documents, or all windows."""
    if between_documents:
        return [np.concatenate(windows) for windows in parts]
    return [window for windows in parts for window in windows]


words = st.lists(st.sampled_from(["It was late", " The rest", "\n", " é", " "]), min_size=1)


@settings(max_examples=8, deadline=None)
@given(
    st.lists(words.map("".join).filter(lambda text: text.strip("\r\n")), min_size=1, max_size=9),
    st.sampled_from([1, 8]),
    st.integers(3, CONTEXT),
    st.data(),
)
def test_documents_are_scored_as_each_alone(
    two: Folders, text: Path, stories: list[str], times: int, window: int, data: st.DataObject
) -> None:
    """Every one from the start token on, with an empty cache; short ones in one window."""
    stride = data.draw(st.integers(max(1, window // 4), window - 1), label="stride")
    stories = [story.strip("\r\n") for story in stories] * times
    tokenizer = Tokenizer.open(two["fp32"].path / "tokenizer.json")
    losses: list[list[Array]] = []
    kls: list[list[Array]] = []
    for story in stories:
        ids = [299, *tokenizer.encode(story)]
        true = [np.array(ids[s:end]) for _, s, end in twin_windows(len(ids), window, stride)]
        p, q = (twin_log_softmax(folder, ids, window, stride) for folder in two.values())
        losses.append([-w[np.arange(len(t)), t] for w, t in zip(p, true, strict=True)])
        kls.append([(np.exp(a) * (a - b)).sum(axis=-1) for a, b in zip(p, q, strict=True)])

    split = text.with_name("split.txt")
    split.write_text("<|>\n".join([*stories, ""]))
    lines = text.with_name("lines.jsonl")
    lines.write_text("\n".join(json.dumps({"text": story}) for story in stories))
    sizes = {"window": window, "stride": stride}
    found = measure(two, split, split="<|>", **sizes)
    assert found["models"] == measure(two, lines, **sizes)["models"]

    total = np.concatenate([window for windows in losses for window in windows])
    many = len(stories) >= MANY_DOCUMENTS
    assert found["clusters"] == ("documents" if many else "windows")
    assert (found["documents"], found["skipped_documents"]) == (len(stories), 0)
    assert found["windows"] == sum(map(len, losses))
    assert found["tokens"] == len(total)
    assert found["bytes"] == sum(len(story.encode()) for story in stories)
    assert found["words"] == sum(len(re.split(r"\s+", story)) for story in stories)
    perplexity = found["models"][0]["perplexity"]
    assert perplexity["byte"]["value"] == near(np.exp(total.sum() / found["bytes"]))
    assert perplexity["word"]["value"] == near(np.exp(total.sum() / found["words"]))
    for told, parts in (
        (found["models"][0]["loss"], losses),
        (found["models"][1]["against"]["kl"]["mean"], kls),
    ):
        clusters = twin_clusters(parts, many)
        assert told["value"] == near(np.concatenate(clusters).mean())
        error = twin_error([c.sum() for c in clusters], [len(c) for c in clusters])
        assert told["standard_error"] == (None if error < 1e-6 else near(error))


# What it says ------------------------------------------------------------------------------------


def test_a_model_loses_nothing_against_itself(folders: Folders, text: Path) -> None:
    fp32 = folders["fp32"]
    found = measure({"a": fp32, "b": fp32}, text, text)
    first, second = found["models"]
    assert second["perplexity"] == first["perplexity"]
    assert second["against"]["kl"] == {
        "mean": {"value": 0, "standard_error": None},
        "median": {"value": 0, "standard_error": None},
        "p99": {"value": 0, "standard_error": None},
        "max": 0,
    }
    assert second["against"]["top1_agreement"]["value"] == 1
    assert second["against"]["top5_overlap"]["value"] == 1
    assert second["examples"] == []


def test_fewer_bits_lose_more(folders: Folders, text: Path) -> None:
    _, int8, int4 = (model["against"] for model in measure(folders, text)["models"])
    assert int4["kl"]["mean"]["value"] > int8["kl"]["mean"]["value"] > 0
    assert int4["kl"]["p99"]["value"] > int4["kl"]["median"]["value"] > 0
    assert int8["top1_agreement"]["value"] > int4["top1_agreement"]["value"]
    assert int8["top5_overlap"]["value"] > int4["top5_overlap"]["value"]


def test_two_runs_are_equal_to_the_bit_and_known_to_json(folders: Folders, text: Path) -> None:
    first, second = (measure(folders, text, window=32) for _ in range(2))
    assert json.dumps(first, allow_nan=False) == json.dumps(second)


def test_a_single_model_has_a_perplexity_and_the_self_check(folders: Folders, text: Path) -> None:
    found = measure({"int8": folders["int8"]}, text)
    (model,) = found["models"]
    assert model["against"] is None
    assert model["perplexity"]["token"]["value"] > 1
    assert found["self_check"]["kl"] == 0


def test_texts_add_up(folders: Folders, text: Path, tmp_path: Path) -> None:
    """Each begins anew: two texts are the mean of one and the other, not of one long one."""
    other = tmp_path / "other.txt"
    other.write_text(TEXT[100:])
    only = {"fp32": folders["fp32"]}
    one, two, both = (measure(only, *texts) for texts in ([text], [other], [text, other]))
    tokens = [found["tokens"] for found in (one, two)]
    losses = [found["models"][0]["loss"]["value"] for found in (one, two)]
    assert both["tokens"] == sum(tokens)
    assert both["models"][0]["loss"]["value"] == pytest.approx(np.average(losses, weights=tokens))
    assert both["texts"] == [str(text), str(other)]


def test_the_default_window_is_the_context_and_the_stride_half_of_it(
    folders: Folders, text: Path
) -> None:
    plan = check_texts(folders, [text])
    assert (plan.window, plan.stride) == (CONTEXT, CONTEXT // 2)


def test_progress_ends_at_one_with_a_value(folders: Folders, text: Path) -> None:
    told: list[tuple[float, str]] = []
    for limit in (None, 100):
        for names, value in ((["int8"], "perplexity"), (["fp32", "int8"], r"KL\(int8\)")):
            told.clear()
            measure(
                {name: folders[name] for name in names},
                text,
                limit=limit,
                on_progress=lambda *progress: told.append(progress),
            )
            shares = [share for share, _ in told]
            assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
            assert all(re.match(value, shown) for _, shown in told)


def test_the_limit_counts_the_tokens_of_all_documents(
    folders: Folders, text: Path, tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    file.write_text("|".join(["abcd"] * 100))
    only = {"fp32": folders["fp32"]}
    found = measure(only, file, split="|", limit=5 * 40 + 3)
    assert (found["documents"], found["tokens"], found["clusters"]) == (41, 4 * 40 + 2, "documents")
    found = measure(only, file, split="|", limit=13)
    assert (found["documents"], found["tokens"], found["clusters"]) == (3, 4 + 4 + 2, "windows")
    assert measure(only, text, limit=9)["tokens"] == 8


def test_what_has_no_token_to_score_is_skipped_and_counted(
    folders: Folders, text: Path, tmp_path: Path
) -> None:
    """A single token, where none begins a text; an empty line of JSON."""
    folder = with_files(folders["fp32"], tmp_path / "model", {"generation_config.json": "{}"})
    file, short = tmp_path / "text.txt", tmp_path / "short.txt"
    file.write_text("abc|d||e|fg")
    short.write_text("h")
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": ""}\n{"text": "ij"}\n')
    found = measure({"fp32": folder}, short, file, lines, split="|")
    assert (found["documents"], found["skipped_documents"]) == (3, 4)
    assert (found["tokens"], found["bytes"]) == (4, 4)
    assert "; 4 more documents have no token to score; window" in text_sentence(found)
    found = measure({"fp32": folder}, short, text)
    assert "; 1 more text has no token to score; window" in text_sentence(found)
    with pytest.raises(RequestError, match="short.txt: found no token to score, expected a charac"):
        measure({"fp32": folder}, short)
    assert measure({"fp32": folders["fp32"]}, short)["tokens"] == 1


def test_the_same_token_all_over_passes_the_self_check(folders: Folders, tmp_path: Path) -> None:
    folder = with_files(folders["fp32"], tmp_path / "model", {"generation_config.json": "{}"})
    file = tmp_path / "text.txt"
    file.write_text(" " * 99)
    check = measure({"fp32": folder}, file)["self_check"]
    assert check["kl"] == 0 < check["kl_other_text"]


def test_without_a_start_token_the_first_token_is_not_scored(
    folders: Folders, text: Path, tmp_path: Path
) -> None:
    folder = with_files(folders["fp32"], tmp_path / "model", {"generation_config.json": "{}"})
    found = measure({"fp32": folder}, text)
    with_start = measure({"fp32": folders["fp32"]}, text)
    assert (found["start_token"], with_start["start_token"]) == (None, "<|endoftext|>")
    assert found["tokens"] == with_start["tokens"] - 1
    assert found["bytes"] == len(TEXT) - len("T")


def test_what_no_float_holds_is_unknown(folders: Folders, tmp_path: Path) -> None:
    """A text of one word: its loss is that of all tokens, and the perplexity exp of that."""
    file = tmp_path / "text.txt"
    file.write_text("aZ" * 300)
    perplexity = measure({"fp32": folders["fp32"]}, file)["models"][0]["perplexity"]
    assert perplexity["word"] == {"value": None, "standard_error": None}
    assert perplexity["token"]["value"] > 1
    nowhere = with_files(folders["fp32"], tmp_path / "model", {"generation_config.json": "{}"})
    found = measure({"fp32": nowhere}, file)
    assert (found["words"], found["models"][0]["perplexity"]["word"]["value"]) == (0, None)


# The self-check ----------------------------------------------------------------------------------


def broken_shift(self: Any, ids: list[int], first: int) -> Any:
    """The second model's logits arrive a row late."""
    for logits in ORIGINAL_CHUNKS(self, ids, first):
        broken_shift.calls += 1  # type: ignore[attr-defined]
        yield np.roll(logits, broken_shift.calls % 2, axis=0)  # type: ignore[attr-defined]


broken_shift.calls = 0  # type: ignore[attr-defined]
ORIGINAL_CHUNKS = window_scores._Run.chunks


def broken_sharing(self: Any, ids: list[int], first: int) -> Any:
    """All models write to the same logits: whatever is compared is the same."""
    for logits in ORIGINAL_CHUNKS(self, ids, first):
        shared = SHARED.setdefault(logits.shape, np.empty_like(logits))
        shared[:] = logits
        yield shared


SHARED: dict[Any, Any] = {}


@pytest.mark.parametrize("broken", [broken_shift, broken_sharing])
def test_a_broken_comparison_fails_the_self_check(
    broken: Any, folders: Folders, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_scores._Run, "chunks", broken)
    with pytest.raises(NumericsError, match=r"self-check: found KL\(fp32 ‖ fp32\) = .* report"):
        measure(folders, text)


def test_a_wrong_formula_fails_the_self_check(
    folders: Folders, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = divergence.Comparison._divergence
    monkeypatch.setattr(
        divergence.Comparison, "_divergence", lambda self: original(self) + np.float64(1e-9)
    )
    with pytest.raises(NumericsError, match="self-check: found KL.* = 1e-09 over 63 tokens"):
        measure(folders, text)


def test_logits_that_are_not_finite_are_named(
    folders: Folders, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, ids: list[int], first: int) -> Any:
        for logits in ORIGINAL_CHUNKS(self, ids, first):
            logits[0, 5] = np.nan
            yield logits

    monkeypatch.setattr(window_scores._Run, "chunks", broken)
    with pytest.raises(NumericsError, match="fp32: found logits that are NaN or infinite"):
        measure(folders, text)


# Bad input ---------------------------------------------------------------------------------------


@pytest.fixture
def never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is opened: what is wrong is found out before any long work."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("a session was opened")

    monkeypatch.setattr(quality, "Session", refuse)


@pytest.mark.usefixtures("never_run")
@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, "text.txt: found an empty file, expected a text"),
        (b"caf\xe9", {}, r"text.txt: found the byte 0xe9 at 3 \(line 1\), expected UTF-8"),
        (None, {}, "text.txt: cannot be read"),
        (b"x" * 99, {"window": 65}, "window is 65 tokens, expected 3 to 64 .* of fp32"),
        (b"x" * 99, {"window": 2}, "window is 2 tokens, expected 3 to 64"),
        (b"x" * 99, {"stride": 0}, "stride is 0 tokens, expected 1 to 63"),
        (b"x" * 99, {"window": 9, "stride": 9}, "stride is 9 tokens, expected 1 to 8"),
        (b"x" * 99, {"limit": 1}, "limit is 1 tokens, expected at least 2; raise it or leave it"),
        (b"x" * 99, {"split": "|"}, r"split is '\|', expected what stands between the documents"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_opened(
    content: bytes | None,
    options: dict[str, int],
    message: str,
    folders: Folders,
    tmp_path: Path,
) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RequestError, match=message):
        measure(folders, file, **options)


@pytest.mark.usefixtures("never_run")
def test_no_text_is_refused(folders: Folders) -> None:
    with pytest.raises(RequestError, match="found no text, expected at least one"):
        measure(folders)


def changed(content: str, **changes: Any) -> str:
    tokenizer = json.loads(content)
    for section, change in changes.items():
        tokenizer[section] = change(tokenizer[section])
    return json.dumps(tokenizer)


def swapped(model: dict[str, Any]) -> dict[str, Any]:
    vocabulary = dict(model["vocab"])
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    return model | {"vocab": vocabulary}


@pytest.mark.usefixtures("never_run")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": swapped}, "found 'a' and 'b' for token 64"),
        ({"pre_tokenizer": lambda _: {"type": "Whitespace"}}, "another 'pre_tokenizer'"),
        ({"added_tokens": lambda tokens: [*tokens, tokens[0] | {"id": 300, "content": "<x>"}]},
         "found 300 and 301 tokens"),
    ],
)  # fmt: skip
def test_models_with_different_tokenizers_are_not_compared(
    changes: Any, message: str, folders: Folders, text: Path, tmp_path: Path
) -> None:
    content = (folders["fp32"].path / "tokenizer.json").read_text(encoding="utf-8")
    files = {"tokenizer.json": changed(content, **changes)}
    other = with_files(folders["int8"], tmp_path / "other", files)
    with pytest.raises(RequestError, match=f"tokenizers of fp32 and other differ: .*{message}"):
        measure({"fp32": folders["fp32"], "other": other}, text)


@pytest.mark.usefixtures("never_run")
def test_models_of_different_vocabularies_are_not_compared(
    folders: Folders, tiny_folder: ModelFolder, text: Path, tmp_path: Path
) -> None:
    config = gpt2_config(vocab_size=280, n_positions=CONTEXT)
    source = open_checkpoint(write_checkpoint(tmp_path / "gpt2", config))
    other = export_model(source, tmp_path / "other")
    with pytest.raises(RequestError, match="differ: found logits for 300 and 280 tokens"):
        measure({"fp32": folders["fp32"], "other": other}, text)


def test_the_same_tokenizer_may_be_written_differently(
    folders: Folders, text: Path, tmp_path: Path
) -> None:
    content = json.loads((folders["fp32"].path / "tokenizer.json").read_text(encoding="utf-8"))
    content["truncation"] = {
        "direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    files = {"tokenizer.json": json.dumps(content, indent=2)}
    other = with_files(folders["fp32"], tmp_path / "other", files)
    found = measure({"fp32": folders["fp32"], "other": other}, text)
    assert found["models"][1]["against"]["kl"]["max"] == 0
