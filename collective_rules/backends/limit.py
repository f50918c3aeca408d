"""The row of a backend's table: where the backend takes less than the rules allow. A backend never widens a rule.

`columns` says, once for each column here, what the column means to a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch

from collective_rules.backends.matching import AS_DOCUMENTED, Matching
from collective_rules.finding import ERROR

RAISES, HANGS, CORRUPTS = "raises an error", "hangs", "silently corrupts the result"
OVERWRITES = "silently overwrites what it reads"
DIES = "crashes the process"
"""What follows where a call goes beyond a limit."""


@attrs.frozen
class Limit:
    """One limit. Columns that are left out do not limit; `id` is stable and appears in messages.

    Prose, and how bad it is to go beyond the limit:

    - `says`: the limit in a sentence, for the reference page. `advice`: what to do about it.
    - `severity`: of the finding; "undecidable" where a call and a `Backend` never tell whether the limit is met.
    - `follows`: what the backend does then, `RAISES`, `HANGS`, `CORRUPTS`, `OVERWRITES` or `DIES`; "" if not known.

    The ops that the limit holds for:

    - `ops`, `rules`, `namespaces`: the ops by name, those of a rule, and those of a namespace. `but`: the ops spared.

    When it matters:

    - `from_size`, `to_size`: in groups of so many ranks or more, and of so many or fewer.
    - `in_forms`: only where the call is of one of these forms of the rule.
    - `on`: only where tensors are on one of these types of device. Of meta tensors, and without any, that is not known.
    - `before`: only where one of these is less: the backend's `version`, the devices' `compute_capability`, the version
      of `torch`. A caller tells them by a `Backend`.
    - `alone`: only where one tensor is alone in its list.
    - `spares_empty`: not to tensors without elements. `spares_own`: not to tensors that stay on this rank: its own of a
      list indexed by `p`, and what the root exchanges with itself.

    What it demands (None and False demand nothing):

    - `missing`: there is no kernel at all; no other limit matters then.
    - `dtypes`: the dtypes that the backend takes. `reduces`: reduce op → the dtypes that the backend reduces so.
    - `sparse_reduces`: the reduce ops that the backend takes for tensors that are not strided.
    - `single`: the reduce ops that the backend takes for one tensor alone, not for a list of several.
    - `most_tensors`: the list has so many tensors at most.
    - `forms`: the forms that the backend takes.
    - `exact`: equal shapes, where the rule is content with equal element counts.
    - `one_dtype`: all tensors of a list have one dtype. `promotes`: the list travels as torch.cat makes it, in the
      first tensor's dtype, which the others must be promoted to.
    - `nonempty`: no tensor without elements.
    - `fresh_strides`: a contiguous tensor alone in its list has the strides of a fresh one, also of sizes of 1.
    - `layouts`: part of the rule → the layout that its tensors have, one of those in `ops.op`.
    - `ordered`: parts of the rule whose tensors lie in memory in one order of dims, within a call and on every rank.
    - `overlap`: which of the memory that is read may be written, by the words in `ops.op`.
    - `devices`: the types of device that hold the tensors.
    - `divides`: parts of the rule whose first dim the ranks divide, where no split sizes are given.
    - `splits_with`: part of the rule whose split sizes are given only together with those of another → that part.
    - `to_others`: a batch sends no message to this very rank.
    """

    id: str
    says: str
    advice: str
    ops: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    but: tuple[str, ...] = ()
    from_size: int = 1
    to_size: int | None = None
    in_forms: tuple[str, ...] = ()
    on: tuple[str, ...] = ()
    before: Mapping[str, tuple[int, ...]] = attrs.field(factory=dict)
    alone: bool = False
    spares_empty: bool = False
    spares_own: bool = False
    missing: bool = False
    dtypes: frozenset[torch.dtype] | None = None
    reduces: Mapping[str, frozenset[torch.dtype]] | None = None
    sparse_reduces: tuple[str, ...] | None = None
    single: tuple[str, ...] | None = None
    most_tensors: int | None = None
    forms: tuple[str, ...] | None = None
    exact: bool = False
    one_dtype: bool = False
    promotes: bool = False
    nonempty: bool = False
    fresh_strides: bool = False
    layouts: Mapping[str, str] | None = None
    ordered: tuple[str, ...] | None = None
    overlap: str | None = None
    devices: tuple[str, ...] | None = None
    divides: tuple[str, ...] | None = None
    splits_with: Mapping[str, str] | None = None
    to_others: bool = False
    severity: str = ERROR
    follows: str = ""


@attrs.frozen
class BackendTable:
    """A backend's table: its name, where its limits come from, the limits, and by what they were `verified`.

    `matching`: how the backend brings the ranks' calls together, which `agree` asks for.

    `lists`: it also takes lists of several tensors in `c10d::allreduce_` and `c10d::broadcast_`, to which
    torch.distributed passes one. A conformance run counts such calls as legal only then.

    `needs_wait`: a call is done only once its Work says so. Neither another call nor the state of a device tells.
    """

    name: str
    source: str
    limits: tuple[Limit, ...]
    lists: bool = False
    needs_wait: bool = False
    verified: str = ""
    matching: Matching = AS_DOCUMENTED

    def taken(self, id: str, as_: str, **changes: Any) -> Limit:
        """Return the limit `id`, which another backend shares, as one of that backend's: under the id `as_`.

        `changes` holds the columns that differ. Raises `KeyError` for an id that is not in this table.
        """
        limit = next((each for each in self.limits if each.id == id), None)
        if limit is None:
            raise KeyError(id)
        return attrs.evolve(limit, id=as_, **changes)
