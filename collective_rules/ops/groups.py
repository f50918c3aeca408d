"""The functions of torch.distributed that make process groups. Rows only.

They are no ops of the dispatcher, and stand in a table of their own. Their calls are calls like any other: compared,
recorded, written to ledgers. The group of a call is that of its parent's subgroups (see `mode.group_making`).
"""

from __future__ import annotations

from collections.abc import Mapping

from collective_rules.ops.op import Op

_ROWS = (
    Op(
        "dist::new_group",
        "new_group",
        {},
        attributes={"members": "members", "name": "name"},
        done=True,
        schema="dist::new_group(int[] members, str name) -> ()",
    ),
    Op(
        "dist::split_group",
        "split_group",
        {},
        attributes={"parts": "split_ranks"},
        done=True,
        schema="dist::split_group(int[][] split_ranks) -> ()",
    ),
    Op("dist::init_process_group", "init_process_group", {}, schema="dist::init_process_group() -> ()"),
)

GROUP_OPS: Mapping[str, Op] = {op.op: op for op in _ROWS}
