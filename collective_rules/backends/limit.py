"""What a backend's table can say: where it takes less than the rules allow. A backend never widens a rule."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch

from collective_rules.finding import ERROR

__all__ = ["Backend", "Limit"]


@attrs.frozen
class Limit:
    """One limit. Columns that are left out do not limit; `id` is stable and appears in messages.

    - `says`: the limit in a sentence, for the reference page. `advice`: what to do about it.
    - `ops`: the ops that it limits; `rules`: the rules, and `namespaces` the namespaces, all of whose ops it limits.
    - `but`: ops that it spares.
    - `dtypes`: the dtypes that it takes. `reduces`: reduce op → the dtypes that it reduces so.
    - `forms`: the forms that it takes. `exact`: equal shapes, where the rule is content with equal element counts.
    - `one_dtype`: all tensors of a list have one dtype. `promotes`: the list travels as torch.cat makes it, in the
      first tensor's dtype, which the others must be promoted to. `nonempty`: no tensor without elements.
    - `missing`: there is no kernel at all; no other limit matters then.
    - `single`: the reduce ops that it takes for one tensor alone, not for a list of several.
    - `fresh_strides`: a contiguous tensor alone in its list has the strides of a fresh one, also of sizes of 1.
    - `sparse_reduces`: the reduce ops that it takes for tensors that are not strided.
    - `alone`: it matters only where one tensor is alone in its list.
    - `from_size`: the smallest group in which it matters; `spares_empty`: it does not matter to empty tensors.
    - `severity`: of the finding.
    """

    id: str
    says: str
    advice: str
    ops: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    but: tuple[str, ...] = ()
    dtypes: frozenset[torch.dtype] | None = None
    reduces: Mapping[str, frozenset[torch.dtype]] | None = None
    forms: tuple[str, ...] | None = None
    exact: bool = False
    one_dtype: bool = False
    promotes: bool = False
    nonempty: bool = False
    missing: bool = False
    single: tuple[str, ...] = ()
    fresh_strides: bool = False
    sparse_reduces: tuple[str, ...] | None = None
    alone: bool = False
    from_size: int = 1
    spares_empty: bool = False
    severity: str = ERROR


@attrs.frozen
class Backend:
    """A backend: its name, where its limits were measured, and the limits."""

    name: str
    source: str
    limits: tuple[Limit, ...]
