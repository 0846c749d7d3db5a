"""Prompts kept in a file: bit by bit what was computed, or a refusal; never another token."""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketlm.export.errors import NumericsError, RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.chunks import Chunked
from pocketlm.runtime.decode import begin, steps
from pocketlm.runtime.model import Model
from pocketlm.runtime.prefix import Prefix, prompt_prefix
from pocketlm.runtime.prompt_cache import Owner, PromptCacheFile, parse, prefix_bytes, read_prefix
from pocketlm.runtime.request import GREEDY, Request
from pocketlm.runtime.sampling import SamplingOptions
from pocketlm.runtime.sequence import Sequence, Step
from pocketlm.runtime.session import Session

IDS = [int(number) for number in np.random.default_rng(17).integers(0, 299, 160)]
FILE = Path("story.cache")


def computed(session: Session, ids: list[int], chunk_size: int = 16) -> Prefix:
    sequence = begin(session, Request(ids, GREEDY, 1, chunk_size=chunk_size))
    next(steps(session, sequence))
    prefix = prompt_prefix(sequence)
    assert prefix is not None
    return prefix


@pytest.fixture(scope="module")
def owner(tiny_folder: ModelFolder, tiny_session: Session) -> Owner:
    return Owner.of(tiny_folder, tiny_session)


@pytest.fixture(scope="module")
def content(tiny_session: Session, owner: Owner) -> bytes:
    """A small file: three tokens."""
    return prefix_bytes(computed(tiny_session, IDS[:3]), owner)


# The file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["fp32", "int8"])
def test_a_file_holds_every_bit(
    kv: str, tiny_session: Session, int8_kv_session: Session, int8_kv_folder: ModelFolder
) -> None:
    session = int8_kv_session if kv == "int8" else tiny_session
    owner = Owner.of(int8_kv_folder, session)
    prefix = computed(session, IDS[:61])
    found = parse(prefix_bytes(prefix, owner), FILE, owner)
    assert found.computed.token_ids == tuple(IDS[:61])
    assert found.computed.ends == (16, 32, 48, 61)
    assert found.computed.logits is not None and prefix.computed.logits is not None
    np.testing.assert_array_equal(found.computed.logits, prefix.computed.logits)
    for value, expected in zip(found.values, prefix.values, strict=True):
        assert value.dtype == expected.dtype == (np.int8 if kv == "int8" else np.float32)
        np.testing.assert_array_equal(value, expected)
        assert value.ctypes.data % value.itemsize == 0
    whole, cache = session.new_cache(), session.new_cache()
    session.step(IDS[:61], whole)
    cache.fill(found.values, 61)
    np.testing.assert_array_equal(session.step([5], cache), session.step([5], whole))


def test_parts_begin_at_multiples_of_64_bytes(content: bytes, owner: Owner) -> None:
    """As the module says it, read by hand."""
    magic, version, size, whole = struct.unpack("<8sIIQ", content[:24])
    assert (magic, version, whole) == (b"pocketkv", 1, len(content))
    header = json.loads(content[24 : 24 + size])
    said = dataclasses.asdict(owner)
    assert said.pop("prefill") == "none"  # of one set of weights the file is what it was before two
    assert header["tokens"] == 3 and header["owner"] == said
    ids_at = -(-(24 + size) // 64) * 64
    assert np.frombuffer(content, "<i8", 3, ids_at).tolist() == IDS[:3]
    logits_at = ids_at + 64
    assert not any(content[24 + size : ids_at]) and not any(content[ids_at + 24 : logits_at])
    logits = parse(content, FILE, owner).computed.logits
    assert logits is not None
    np.testing.assert_array_equal(np.frombuffer(content, "<f4", 300, logits_at), logits)
    assert content[-4:] == struct.pack("<I", zlib.crc32(content[:-4]))


def test_a_flipped_byte_anywhere_is_refused(content: bytes, owner: Owner) -> None:
    assert parse(content, FILE, owner)
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        with pytest.raises(RequestError, match="story.cache: found .*, expected"):
            parse(bytes(flipped), FILE, owner)


def test_a_file_cut_off_anywhere_is_refused(content: bytes, owner: Owner) -> None:
    for length in range(len(content)):
        with pytest.raises(RequestError, match="story.cache: found .*, expected"):
            parse(content[:length], FILE, owner)
    with pytest.raises(RequestError, match=r"found 3.*, expected 3.*; the file is damaged"):
        parse(content + b"\0", FILE, owner)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"weights": "0" * 64},
            "of a model with the weights {weights:.12}…, expected 000000000000",
        ),
        (
            {"kv": "int8"},
            "with a KV cache in fp32, expected int8; use what it was made with (--kv fp32; in "
            'Python: kv="fp32")',
        ),
        ({"graph": "1" * 64}, "of a graph with the digest {graph:.12}…, expected 111111111111…"),
        (
            {"prefill": "2" * 64},
            "of the weights for prompts none, expected 222222222222…; use what it was made with "
            '(--prefill none; in Python: prefill="none")',
        ),
        ({"provider": "cuda"}, "of the provider cpu, expected cuda"),
        ({"onnxruntime": "1.0"}, "of ONNX Runtime {onnxruntime}, expected 1.0"),
        ({"layers": 9}, "with layers 2, expected 9"),
        ({"kv_heads": 9}, "with kv_heads {kv_heads}, expected 9"),
        ({"head_size": 9}, "with head_size {head_size}, expected 9"),
        ({"dtype": "int8"}, "with dtype float32, expected int8"),
    ],
)
def test_a_file_of_something_else_is_refused(
    content: bytes, owner: Owner, change: dict[str, Any], message: str
) -> None:
    other = dataclasses.replace(owner, **change)
    with pytest.raises(RequestError) as refused:
        parse(content, FILE, other)
    expected = message.format(**dataclasses.asdict(owner))
    assert f"story.cache: found a prompt cache {expected}" in str(refused.value)
    assert str(refused.value).endswith("or remove the file, or name another")


def test_a_file_of_the_second_weights_says_how_to_have_them(content: bytes, owner: Owner) -> None:
    def of_others(header: dict[str, Any]) -> None:
        header["owner"]["prefill"] = "2" * 64

    advice = (
        r'found .* 222222222222…, expected none; .* \(--prefill int8; in Python: prefill="int8"\)'
    )
    with pytest.raises(RequestError, match=advice):
        parse(forged(content, of_others), FILE, owner)
    with pytest.raises(RequestError, match="expected 333333333333…; use what it was made with, or"):
        parse(forged(content, of_others), FILE, dataclasses.replace(owner, prefill="3" * 64))


def forged(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """With another header, and all that belongs to it right."""
    size = struct.unpack_from("<I", content, 12)[0]
    header = json.loads(content[24 : 24 + size])
    said = json.dumps(change(header) or header).encode()
    gap, rest = -(24 + len(said)) % 64, content[-(-(24 + size) // 64) * 64 : -4]
    start = struct.pack("<8sIIQ", b"pocketkv", 1, len(said), 28 + len(said) + gap + len(rest))
    data = start + said + bytes(gap) + rest
    return data + struct.pack("<I", zlib.crc32(data))


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(tokens=4),
        lambda header: header.update(tokens=-3),
        lambda header: header.update(tokens=3.0),
        lambda header: header.update(tokens=True),
        lambda header: header.update(tokens=1 << 70),
        lambda header: header.update(ends=[4]),
        lambda header: header.update(ends=[2, 2]),
        lambda header: header.update(ends=[0, 3]),
        lambda header: header.update(ends="3"),
        lambda header: header.update(ends=[], logits=True),
        lambda header: header.update(logits=False),
        lambda header: header.update(logits=1),
        lambda header: header.update(owner=None),
        lambda header: header["owner"].pop("kv"),
        lambda header: header["owner"].update(layers=True),
        lambda header: header.update(more=1),
        lambda header: header.pop("ends"),
        lambda header: [header],
    ],
)
def test_a_lying_header_is_refused(
    content: bytes, owner: Owner, change: Callable[[dict[str, Any]], object]
) -> None:
    assert parse(forged(content, lambda header: None), FILE, owner)
    changed = forged(
        content, lambda header: found if isinstance(found := change(header), list) else None
    )
    with pytest.raises(RequestError, match="story.cache: found"):
        parse(changed, FILE, owner)


def test_another_version_is_refused(content: bytes, owner: Owner) -> None:
    data = content[:8] + struct.pack("<I", 2) + content[12:-4]
    with pytest.raises(RequestError, match="cache of version 2, expected 1; remove the file, or"):
        parse(data + struct.pack("<I", zlib.crc32(data)), FILE, owner)


# One generation after another --------------------------------------------------------------------


def generated(
    session: Session, owner: Owner, path: Path | None, prompt: list[int], **options: Any
) -> tuple[list[Step], PromptCacheFile | None]:
    """What follows, with logprobs; the file is told at the end."""
    file = None if path is None else PromptCacheFile(path, owner)
    request = Request(prompt, SamplingOptions(seed=3), 5, logprobs=2, chunk_size=16, **options)
    sequence = begin(session, request, prefixes=file)
    found = list(steps(session, sequence))
    if file is not None:
        file.keep(sequence)
    return found, file


def numbers(found: list[Step]) -> list[Any]:
    return [(step.token, step.logprob, step.top) for step in found]


prompts = st.tuples(st.sampled_from([0, 20, 40]), st.integers(1, 80), st.integers(0, 40)).map(
    lambda place: IDS[: place[0]] + IDS[place[1] :][: place[2]] or [7]
)


@pytest.mark.parametrize("kv", ["fp32", "int8"])
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(several=st.lists(prompts, min_size=1, max_size=5))
def test_a_file_changes_no_bit_of_what_follows(
    kv: str,
    several: list[list[int]],
    tiny_session: Session,
    int8_kv_session: Session,
    int8_kv_folder: ModelFolder,
    tmp_path: Path,
) -> None:
    session = int8_kv_session if kv == "int8" else tiny_session
    owner, path = Owner.of(int8_kv_folder, session), tmp_path / "file"
    path.unlink(missing_ok=True)
    for prompt in several:
        expected, _ = generated(session, owner, None, prompt)
        for _ in range(2):
            found, file = generated(session, owner, path, prompt)
            assert numbers(found) == numbers(expected)
        known = len(prompt) if len(prompt) > 1 else 0  # one token is computed as any new one
        assert file is not None and (file.reused, file.written) == (known, False)


@pytest.mark.parametrize(
    "held, prompt, reused, written",
    [
        (61, IDS[:61], 61, False),
        (61, [*IDS[:61], 5], 48, True),
        (61, [*IDS[:50], 5], 48, True),
        (61, [*IDS[:40], 5], 32, True),
        (61, IDS[:48], 32, True),  # the logits after it are not known: one chunk is computed
        (61, [5, *IDS[:61]], 0, True),
        (33, IDS[:40], 16, True),  # cut at 16 and 33, where the other is cut at 32
    ],
)
def test_what_is_reused_is_told(
    held: int,
    prompt: list[int],
    reused: int,
    written: bool,
    tiny_session: Session,
    owner: Owner,
    tmp_path: Path,
) -> None:
    generated(tiny_session, owner, tmp_path / "file", IDS[:held])
    _, file = generated(tiny_session, owner, tmp_path / "file", prompt)
    assert file is not None and (file.reused, file.written) == (reused, written)
    expected = held if not written else len(prompt)
    assert read_prefix(tmp_path / "file", owner).length == expected


def test_a_prompt_that_was_cancelled_is_kept_as_far_as_it_came(
    tiny_session: Session, owner: Owner, tmp_path: Path
) -> None:
    file = PromptCacheFile(tmp_path / "file", owner)
    sequence = begin(tiny_session, Request(IDS[:61], GREEDY, 5, chunk_size=16), prefixes=file)
    for _ in range(2):
        sequence.take(tiny_session.step(sequence.feed(), sequence.cache))
    file.keep(sequence)
    prefix = read_prefix(tmp_path / "file", owner)
    assert prefix.computed == Chunked(tuple(IDS[:32]), (16, 32), text_length=61)
    found, after = generated(tiny_session, owner, tmp_path / "file", IDS[:61])
    assert after is not None and (after.reused, after.written) == (32, True)
    assert numbers(found) == numbers(generated(tiny_session, owner, None, IDS[:61])[0])


# Model.stream and the command line ---------------------------------------------------------------


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each step had."""
    counts: list[int] = []
    feed = Sequence.feed

    def counted(self: Sequence) -> Any:
        ids = feed(self)
        counts.append(len(ids))
        return ids

    monkeypatch.setattr(Sequence, "feed", counted)
    return counts


def test_the_second_time_nothing_of_the_prompt_is_computed(
    tiny_model: Model, tmp_path: Path, fed: list[int]
) -> None:
    options: dict[str, Any] = {"prompt_cache": tmp_path / "file", "max_tokens": 4, "seed": 1}
    first = tiny_model.generate(IDS[:90], **options)
    assert fed == [90, 1, 1, 1]
    fed.clear()
    second = tiny_model.generate(IDS[:90], **options)
    assert fed == [1, 1, 1]
    assert (first.token_ids, first.text) == (second.token_ids, second.text)
    assert (first.timings.reused_tokens, second.timings.reused_tokens) == (0, 90)


def test_the_command_line_keeps_a_prompt(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path, fed: list[int]
) -> None:
    file = tmp_path / "story.cache"
    command = ["run", tiny_folder.path, "the sea and the ship", "--temperature", "0"]
    plain = run(*command, "--max-tokens", "6")
    command += ["--max-tokens", "6", "--prompt-cache", file, "--stats"]
    first = run(*command)
    fed.clear()
    second = run(*command)
    assert max(fed) == 1
    assert first.out == second.out == plain.out
    assert f"0 of them from {file}, wrote {file})" in first.err
    result = json.loads(run(*command, "--json").out)
    count = result["prompt_tokens"]
    assert f"prefill none ({count} tokens, {count} of them from {file})" in second.err
    assert result["reused_tokens"] == count


def test_a_file_that_is_of_no_use_is_refused_and_stays(
    run: Run, tiny_folder: ModelFolder, int8_kv_folder: ModelFolder, tmp_path: Path
) -> None:
    notes, cache = tmp_path / "notes.txt", tmp_path / "cache"
    notes.write_text("mine")
    ended = run("run", tiny_folder.path, "the sea", "--prompt-cache", notes)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        f"pocketlm: {notes}: found b'mine' at its beginning, expected b'pocketkv': a prompt cache "
        "of pocketlm's; name another file\n"
    )
    assert notes.read_text() == "mine"
    assert run("run", int8_kv_folder.path, "the sea", "--prompt-cache", cache).code == 0
    before = cache.read_bytes()
    ended = run("run", int8_kv_folder.path, "the", "--prompt-cache", cache, "--kv", "int8")
    assert ended.code == 2 and "with a KV cache in fp32, expected int8" in ended.err
    assert cache.read_bytes() == before
    ended = run("run", tiny_folder.path, "the sea", "--prompt-cache", tmp_path)
    assert ended.code == 2 and "cannot be read" in ended.err
    ended = run("run", tiny_folder.path, "the sea", "--prompt-cache", tmp_path / "no" / "file")
    assert ended.code == 2 and "found nothing at" in ended.err


def test_one_cache_at_a_time(tiny_model: Model, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="found cache with prompt_cache, expected one of them"):
        tiny_model.stream("a", cache=tiny_model.new_cache(), prompt_cache=tmp_path / "file")


def test_two_that_write_at_once_leave_one_whole_file(tiny_model: Model, tmp_path: Path) -> None:
    file = tmp_path / "file"
    streams = [tiny_model.stream(IDS[:n], prompt_cache=file, max_tokens=3) for n in (20, 30)]
    for stream in streams:
        list(stream)
    caches = [stream.prompt_cache for stream in streams]
    assert [cache.written for cache in caches if cache is not None] == [True, False]
    assert tiny_model.generate(IDS[:20], prompt_cache=file).timings.reused_tokens == 20


def test_a_prompt_with_numbers_that_are_none_is_not_kept(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Session.step
    monkeypatch.setattr(Session, "step", lambda *feed: step(*feed) * np.nan)
    with pytest.raises(NumericsError):
        tiny_model.generate(IDS[:20], prompt_cache=tmp_path / "file")
    assert not (tmp_path / "file").exists()
