"""The rules of the functions that make process groups. Rows only.

To make a group is a collective of another group, its parent: all of the parent's ranks say which ranks the new group
has, in one order. No tensor travels. torch names the groups that it makes by their number, so a group that only some
ranks make gives every later group other names on those ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

from collective_rules.rules import volumes
from collective_rules.rules.rule import Form, Rule, Volumes

_NOTHING = Volumes(sent=volumes.nothing, buffer=volumes.nothing, bus_factor=volumes.one)
_NO_TENSORS = (Form("even", "->"),)

_ROWS = (
    Rule(
        name="new_group",
        title="A group is made of some ranks of its parent.",
        forms=_NO_TENSORS,
        constraints="NG: groups call ranks",
        agreed=("members", "name"),
        follows=("name",),
        waits_for="members",
        volumes=_NOTHING,
        source="torch.distributed documentation, new_group",
    ),
    Rule(
        name="split_group",
        title="A group is split into groups of its ranks.",
        forms=_NO_TENSORS,
        constraints="SG: groups call ranks",
        agreed=("parts",),
        volumes=_NOTHING,
        source="torch/distributed/distributed_c10d.py, split_group",
    ),
    Rule(
        name="init_process_group",
        title="The group of all ranks is made, after another one was destroyed.",
        forms=_NO_TENSORS,
        constraints="IG: groups",
        agreed=(),
        one_sided=True,
        numbers_anew=True,
        volumes=_NOTHING,
        source="torch.distributed documentation, init_process_group",
    ),
)

GROUP_RULES: Mapping[str, Rule] = {rule.name: rule for rule in _ROWS}
