"""The row of a backend's table: where the backend takes less than the rules allow. A backend never widens a rule.

`columns` says, once for each column here, what the column means to a call.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch

from collective_rules.finding import ERROR


@attrs.frozen
class Limit:
    """One limit. Columns that are left out do not limit; `id` is stable and appears in messages.

    Prose, and how bad it is to go beyond the limit:

    - `says`: the limit in a sentence, for the reference page. `advice`: what to do about it.
    - `severity`: of the finding.

    The ops that the limit holds for:

    - `ops`, `rules`, `namespaces`: the ops by name, those of a rule, and those of a namespace. `but`: the ops spared.

    When it matters:

    - `from_size`: in groups of so many ranks or more.
    - `alone`: only where one tensor is alone in its list.
    - `spares_empty`: not to tensors without elements.

    What it demands (None and False demand nothing):

    - `missing`: there is no kernel at all; no other limit matters then.
    - `dtypes`: the dtypes that the backend takes. `reduces`: reduce op → the dtypes that the backend reduces so.
    - `sparse_reduces`: the reduce ops that the backend takes for tensors that are not strided.
    - `single`: the reduce ops that the backend takes for one tensor alone, not for a list of several.
    - `forms`: the forms that the backend takes.
    - `exact`: equal shapes, where the rule is content with equal element counts.
    - `one_dtype`: all tensors of a list have one dtype. `promotes`: the list travels as torch.cat makes it, in the
      first tensor's dtype, which the others must be promoted to.
    - `nonempty`: no tensor without elements.
    - `fresh_strides`: a contiguous tensor alone in its list has the strides of a fresh one, also of sizes of 1.
    """

    id: str
    says: str
    advice: str
    ops: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    but: tuple[str, ...] = ()
    from_size: int = 1
    alone: bool = False
    spares_empty: bool = False
    missing: bool = False
    dtypes: frozenset[torch.dtype] | None = None
    reduces: Mapping[str, frozenset[torch.dtype]] | None = None
    sparse_reduces: tuple[str, ...] | None = None
    single: tuple[str, ...] | None = None
    forms: tuple[str, ...] | None = None
    exact: bool = False
    one_dtype: bool = False
    promotes: bool = False
    nonempty: bool = False
    fresh_strides: bool = False
    severity: str = ERROR


@attrs.frozen
class Backend:
    """A backend: its name, where its limits were measured, and the limits.

    `lists`: it also takes lists of several tensors in `c10d::allreduce_` and `c10d::broadcast_`, to which
    torch.distributed passes one. A conformance run counts such calls as legal only then.
    """

    name: str
    source: str
    limits: tuple[Limit, ...]
    lists: bool = False
