"""A finding: one thing that is wrong, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

ERROR, WARNING, UNDECIDABLE = "error", "warning", "undecidable"
SEVERITIES = (ERROR, WARNING, UNDECIDABLE)


@attrs.frozen
class Finding:
    """One thing wrong with a call, or with the calls of several ranks.

    - `id`: the constraint that is violated (`AGT2`), as in the reference page.
    - `severity`: "error" (backends raise, hang, abort or corrupt), "warning" (legal, almost surely meant otherwise)
      or "undecidable" (the data do not say).
    - `message`: the verdict, the op and its rule with a caret, the values, what to do.
    - `ranks`: the ranks at fault; the odd ones out if there is a majority. They are global ranks, as those in the
      message and in `names` are; group ranks only where the group does not list its global ranks.
    - `names`: the values by name; if several ranks disagree, a mapping from rank to value for each name. A root, or a
      peer, is the argument of the op: a rank of the group.
    - `op`: the op of the call; "" if the finding is not about the calls of one op.
    - `group`, `index`: in a sequence of calls, the group's name and the first of its collectives (from 0) with this
      finding. `count`: how many have it.

    >>> import collective_rules as cr
    >>> call = cr.call("_c10d_functional::reduce_scatter_tensor", group=cr.Group(4), reduce_op="sum", input=(13,))
    >>> [(found.id, found.severity, dict(found.names)) for found in cr.check(call)]
    [('RST1', 'error', {'W': 4, 'input.shape': (13,)})]
    """

    id: str
    severity: str
    message: str
    ranks: tuple[int, ...] = ()
    names: Mapping[str, Any] = attrs.field(factory=dict)
    group: str = ""
    index: int | None = None
    count: int = 1
    op: str = ""

    def __str__(self) -> str:
        return self.message
