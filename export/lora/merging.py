"""A checkpoint and LoRA adapters -> a checkpoint whose tensors are merged as they are read.

Every adapter adds, times its weight, the difference that it makes to the base: scale · B · A in
float32 for a weight that has the two, the stored values less the base's for what is stored whole.
Nothing is kept but an adapter's own tensors, while pieces of one weight need them.

A head that shares the embedding's values (``tie_word_embeddings``) goes on doing so only if both
are changed alike. What was trained is what counts: peft computes with the embedding's adapter where
tokens are looked up and not in the head, and the other way around; its ``merge_and_unload`` would
change both. The parameter itself is one: where an adapter brings the base's own (``base_layer``, or
a resized embedding), rows of single tokens, or asks for it (``ensure_weight_tying``), both change.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from ..architectures import find_architecture
from ..checkpoint import Checkpoint, CheckpointTensor, MergedAdapter
from ..errors import CheckpointError, RequestError
from ..strict_json import quoted, shown
from .adapter import Adapter
from .changes import Added, Change, Floats, LowRank, Replaced, Rows, in_order
from .folder import WEIGHTS_FILE

HEAD = "lm_head.weight"
Changes = dict[str, list[Change]]  # by the name that the architecture has for a parameter


def merged(
    checkpoint: Checkpoint,
    adapters: Sequence[Adapter],
    say: Callable[[str], object] = lambda line: None,
) -> Checkpoint:
    """``checkpoint`` with ``adapters`` merged into it; no weight is read yet.

    ``say`` is told what is merged, and of modules that an adapter means and has nothing for. Raises
    CheckpointError for an adapter of another base, by the name of what does not fit, and
    RequestError for one that is given twice.
    """
    if not adapters:
        return checkpoint
    _refuse_twice(adapters)
    base = Base(checkpoint)
    changes: Changes = {}
    for adapter in adapters:
        found = _changes(adapter, base)
        if base.tied:
            _tie(adapter, base, found)
        for name, more in found.items():
            changes.setdefault(name, []).extend(more)
        say(_told(adapter, base, found))
        if outside := base.outside(adapter):
            they = f"{len(outside)} tensors are" if len(outside) > 1 else "a tensor is"
            say(
                f"adapter {adapter.path.name}: {they} left out, of parts that no text needs, as "
                f"{quoted(outside[0].name)}"
            )
        if left := [module for module in base.modules(adapter) if _is_left(adapter, base, module)]:
            say(
                f"adapter {adapter.path.name}: target_modules names {quoted(left[0])}"
                f"{_and_more(left)}, and {WEIGHTS_FILE} has nothing for it; it stays as it is"
            )
    for name, several in changes.items():
        _refuse_conflict(name, several)
    return _changed(base, changes, adapters)


class Base:
    """The checkpoint that is merged into, its parameters as its architecture names them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        architecture = find_architecture(checkpoint.config)
        self.checkpoint = checkpoint
        self.bare = architecture.bare
        self.layers = f"{architecture.layers}."
        self.table = f"{architecture.table}.weight"
        self.tied = architecture.is_tied(checkpoint.config)
        self.untied = architecture.untied
        self._inputs_first = architecture.inputs_first
        names = {name: self.bare(name) for name in checkpoint.tensors}
        self.stored = {bare: name for name, bare in names.items() if bare is not None}

    def tensor(self, name: str | None) -> CheckpointTensor | None:
        """The tensor of a parameter; of a tied head that is not stored, the embedding's."""
        if name == HEAD and self.tied and HEAD not in self.stored:
            name = self.table
        return self.checkpoint.tensors[self.stored[name]] if name in self.stored else None

    def is_table(self, name: str) -> bool:
        """Whether the weight ``name`` is looked up by row: all are that no layer has."""
        return name != HEAD and not name.startswith(self.layers)

    def inputs_first(self, name: str) -> bool:
        """Whether the weight ``name`` is stored (in, out)."""
        return self.is_table(name) or (self._inputs_first and name != HEAD)

    def outside(self, adapter: Adapter) -> list[CheckpointTensor]:
        """Tensors of what is left out of the base, too, as the towers of a model for images."""
        parts = adapter.parts.items()
        found = [list(of.values()) for module, of in parts if self.bare(f"{module}.weight") is None]
        whole = [each.tensor for name, each in adapter.whole.items() if self.bare(name) is None]
        return [*chain.from_iterable(found), *whole]

    def modules(self, adapter: Adapter) -> Iterator[str]:
        """The base's modules with matrices, named as in ``adapter``."""
        prefix = ""
        for module in adapter.parts:
            bare = (self.bare(f"{module}.weight") or "").removesuffix(".weight")
            if bare.startswith(self.layers) and module.endswith(bare):
                prefix = module.removesuffix(bare)
        names = [*self.stored, *([HEAD] if HEAD not in self.stored else [])]
        for name in names:
            tensor = self.tensor(name)
            if name.endswith(".weight") and tensor is not None and len(tensor.shape) == 2:
                yield ("" if name == HEAD else prefix) + name.removesuffix(".weight")


# What one adapter changes -------------------------------------------------------------------------


def _changes(adapter: Adapter, base: Base) -> Changes:
    """What ``adapter`` does to each parameter; CheckpointError for what the base has no place."""
    found: Changes = {}
    for module, parts in adapter.parts.items():
        name = base.bare(f"{module}.weight")
        if name is None:
            continue
        tensor = base.tensor(name)
        if tensor is None:
            raise _not_there(adapter, next(iter(parts.values())), module)
        changes = found.setdefault(name, [])
        if tokens := parts.get("tokens"):
            changes.append(_rows(adapter, base, module, tokens, tensor))
        if parts.keys() - {"tokens"}:
            _check_targeted(adapter, base, module, name, parts)
            changes.append(_low_rank(adapter, base, module, name, tensor))
        if bias := parts.get("bias of B"):
            bias_name = base.bare(f"{module}.bias") or ""
            _check_shape(adapter, bias, _of_base(adapter, base, bias_name, bias).shape)
            scale = adapter.weight * adapter.config.scale_of(module)
            found.setdefault(bias_name, []).append(Added(adapter.path.name, bias, scale))
    for parameter, whole in adapter.whole.items():
        name = base.bare(parameter)
        if name is None:
            continue
        shape = _of_base(adapter, base, name, whole.tensor).shape
        _check_shape(adapter, whole.tensor, shape)
        change = Replaced(adapter.path.name, whole.tensor, adapter.weight, not whole.saved)
        found.setdefault(name, []).append(change)
    if not found and (outside := base.outside(adapter)):
        raise _wrong(
            adapter,
            f"{WEIGHTS_FILE} has nothing but tensors of parts that no text needs, as "
            f"{quoted(outside[0].name)}, expected some of the text model's; leave "
            "the adapter out",
        )
    _check_saved(adapter, base)
    return found


def _low_rank(
    adapter: Adapter, base: Base, module: str, name: str, tensor: CheckpointTensor
) -> LowRank:
    """scale · B · A of ``module``; both have to be there, of its rank and its base's size."""
    parts, kind = adapter.parts[module], "embedding " if base.is_table(name) else ""
    expected = [f"{kind}A", f"{kind}B"]
    if adapter.config.lora_bias and not kind:
        expected.append("bias of B")
    if set(expected) != parts.keys() - {"tokens"}:
        raise _wrong(
            adapter,
            f"{WEIGHTS_FILE} has {', '.join(parts)} of {quoted(module)}, expected "
            f"{', '.join(expected)}; take both files of the adapter from the same training",
        )
    if len(tensor.shape) != 2:
        raise _wrong(
            adapter,
            f"{WEIGHTS_FILE} has {', '.join(parts)} of {quoted(module)}, expected none: the base "
            f"has {tensor.shape} there, which is no matrix; {_belongs(adapter)}",
        )
    a, b = parts[expected[0]], parts[expected[1]]
    rank = adapter.config.rank_of(module)
    rows, columns = tensor.shape
    inputs, outputs = (rows, columns) if base.inputs_first(name) else (columns, rows)
    _check_shape(adapter, a, (rank, inputs))
    _check_shape(adapter, b, (outputs, rank))
    scale = adapter.weight * adapter.config.scale_of(module)
    return LowRank(adapter.path.name, a, b, scale, base.inputs_first(name), adapter.read)


def _rows(
    adapter: Adapter, base: Base, module: str, rows: CheckpointTensor, tensor: CheckpointTensor
) -> Rows:
    """Single rows of an embedding or a head."""
    tokens = adapter.config.tokens_of(module, base.bare(f"{module}.weight") == base.table)
    if tokens is None or max(tokens, default=0) >= tensor.shape[0]:
        raise _wrong(
            adapter,
            f"adapter_config.json: trainable_token_indices has "
            f"{'nothing' if tokens is None else max(tokens)} for {quoted(module)}, of which there "
            f"is {quoted(rows.name)}, expected rows from 0 to {tensor.shape[0] - 1}; "
            f"{_belongs(adapter)}",
        )
    _check_shape(adapter, rows, (len(tokens), *tensor.shape[1:]))
    return Rows(adapter.path.name, rows, tokens, adapter.weight, adapter.read)


def _check_targeted(
    adapter: Adapter, base: Base, module: str, name: str, parts: dict[str, CheckpointTensor]
) -> None:
    """Nothing would use an adapter of a module that the configuration does not mean."""
    targets, tying = adapter.config.targets, adapter.config.ensure_weight_tying
    is_linear = name.startswith(base.layers)
    if not targets.has(module, is_linear=is_linear) and not (name == HEAD and tying):
        tensor = next(iter(parts.values()))
        raise _wrong(
            adapter,
            f"{WEIGHTS_FILE}: found a tensor {quoted(tensor.name)} that nothing uses, expected "
            f"none: by target_modules of adapter_config.json {quoted(module)} has no adapter; take "
            "both files from the same training",
        )


def _check_saved(adapter: Adapter, base: Base) -> None:
    """A module of the base that is to be stored whole is."""
    targets = adapter.config.targets
    whole = {base.bare(name) for name in adapter.whole}
    for name in base.stored:
        if targets.saves(name.rpartition(".")[0]) and name not in whole:
            raise _wrong(
                adapter,
                f"{WEIGHTS_FILE} has no {quoted(name)}, expected it by modules_to_save of "
                "adapter_config.json; the file is incomplete: get it again from its source",
            )


def _is_left(adapter: Adapter, base: Base, module: str) -> bool:
    """Whether ``adapter`` means ``module`` by its name, and has nothing for it."""
    if module in adapter.parts or adapter.config.targets.modules is None:
        return False
    is_linear = (base.bare(f"{module}.weight") or "").startswith(base.layers)
    return adapter.config.targets.has(module, is_linear=is_linear)


def _tie(adapter: Adapter, base: Base, found: Changes) -> None:
    """Gives head and embedding what changes the parameter that they share, in place."""
    table, head = found.get(base.table, []), found.get(HEAD, [])
    if adapter.config.ensure_weight_tying and table:
        head = table
    else:
        shared = [c for c in [*table, *head] if isinstance(c, Replaced) and c.of_base][:1]
        table, head = ([*shared, *_own(changes)] for changes in (table, head))
        if not any(isinstance(change, Rows) for change in head):
            head += [change for change in table if isinstance(change, Rows)]
    for name, changes in ((base.table, table), (HEAD, head)):
        if changes:
            found[name] = changes


def _own(changes: list[Change]) -> list[Change]:
    return [c for c in changes if not (isinstance(c, Replaced) and c.of_base)]


# What does not fit --------------------------------------------------------------------------------


def _of_base(adapter: Adapter, base: Base, name: str, found: CheckpointTensor) -> CheckpointTensor:
    tensor = base.tensor(name)
    if tensor is None:
        raise _not_there(adapter, found, name or found.name)
    return tensor


def _not_there(adapter: Adapter, tensor: CheckpointTensor, place: str) -> CheckpointError:
    return _wrong(
        adapter,
        f"{WEIGHTS_FILE}: found a tensor {quoted(tensor.name)}, expected one for a module of the "
        f"base, which has no {quoted(place)}; {_belongs(adapter)}",
    )


def _check_shape(adapter: Adapter, tensor: CheckpointTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        resized = len(shape) == 2 and tensor.shape[1:] == shape[1:]
        raise _wrong(
            adapter,
            f"{WEIGHTS_FILE}: tensor {quoted(tensor.name)} has shape {tensor.shape}, expected "
            f"{shape} by the base and adapter_config.json; {_belongs(adapter)}"
            + (" (or the base was resized: resize_token_embeddings, save it)" if resized else ""),
        )


def _belongs(adapter: Adapter) -> str:
    base = adapter.config.base_model
    return f"the adapter belongs to {quoted(base, 200) if base else 'another model'}"


def _wrong(adapter: Adapter, problem: str) -> CheckpointError:
    return CheckpointError(f"adapter {quoted(str(adapter.path), 200)}: {problem}")


def _refuse_twice(adapters: Sequence[Adapter]) -> None:
    for number, adapter in enumerate(adapters):
        for other in adapters[:number]:
            if os.path.samefile(adapter.path, other.path):
                raise RequestError(
                    f"adapter: found {quoted(str(adapter.path), 200)} twice, expected it once; a "
                    f"weight stands behind a colon: {adapter.path.name}:2"
                )


def _refuse_conflict(name: str, changes: list[Change]) -> None:
    """What two adapters, or one in two ways, store whole has no sum."""
    whole = [change for change in changes if isinstance(change, Replaced)]
    rows = [change for change in changes if isinstance(change, Rows)]
    taken = [token for change in rows for token in change.tokens]
    low_rank = [change for change in changes if not isinstance(change, Replaced | Rows)]
    one_way = {change.adapter for change in rows} & {change.adapter for change in low_rank}
    if len(whole) > 1 or (whole and rows) or len(set(taken)) < len(taken) or one_way:
        names = " and ".join(dict.fromkeys(quoted(change.adapter) for change in changes))
        raise CheckpointError(
            f"adapter {names}: {quoted(name)} is stored whole or by tokens more than once, or has "
            "an adapter beside, expected it once; merge one adapter only"
        )


# The checkpoint that comes out --------------------------------------------------------------------


def _changed(base: Base, changes: Changes, adapters: Sequence[Adapter]) -> Checkpoint:
    """The checkpoint with these changes in its tensors, its head untied if it has its own."""
    tensors, config = dict(base.checkpoint.tensors), base.checkpoint.config
    stays_tied = base.tied and changes.get(HEAD, []) == changes.get(base.table, [])
    if base.tied and not stays_tied:
        config = base.untied(config)
    for name, several in changes.items():
        if name in base.stored:
            stored = base.stored[name]
            tensors[stored] = _changed_tensor(tensors[stored], several)
    if base.tied and not stays_tied and HEAD not in base.stored:
        table = base.checkpoint.tensors[base.stored[base.table]]
        head = replace(table, name=HEAD)
        tensors[HEAD] = _changed_tensor(head, changes.get(HEAD, []))
    entries = tuple(
        MergedAdapter(each.path.name, each.weight, each.config.base_model, each.files)
        for each in adapters
    )
    return replace(base.checkpoint, tensors=tensors, config=config, adapters=entries)


def _changed_tensor(tensor: CheckpointTensor, changes: list[Change]) -> CheckpointTensor:
    ordered = in_order(changes)

    def rows(start: int, stop: int) -> Floats:
        values = tensor.rows(start, stop)
        with np.errstate(over="ignore", invalid="ignore"):
            for change in ordered:
                change.apply(values, start, stop)
        if not np.isfinite(values).all():
            names = " and ".join(dict.fromkeys(quoted(change.adapter) for change in ordered))
            raise CheckpointError(
                f"{tensor.file}: tensor {quoted(tensor.name)} with adapter {names} holds "
                f"{values[~np.isfinite(values)][0]}, expected finite numbers; the adapter is "
                "damaged, or its weight too large"
            )
        return values

    return replace(
        tensor,
        rows=rows,
        num_bytes=tensor.num_bytes + sum(change.num_bytes for change in ordered),
        scratch=tensor.scratch + sum(change.scratch for change in ordered),
    )


def _told(adapter: Adapter, base: Base, found: Changes) -> str:
    of = adapter.config.base_model
    own: Any = base.checkpoint.origin.get("repository")
    other = f", into {own}" if of and own and of.lower() != own.lower() else ""
    return (
        f"merging {adapter.path.name}, a LoRA adapter{f' of {shown(of)}' if of else ''}{other}, "
        f"with weight {adapter.weight:g}: {len(found)} tensor{'s' if len(found) != 1 else ''}"
    )


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
