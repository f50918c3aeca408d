"""A group's number has one list of ranks: the first rank to use the number claims it at the store for its list."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from collective_rules.agreement.group_names import ranks_of_group, same_name
from collective_rules.live import keys
from collective_rules.live.protocol import UnreadableError
from collective_rules.live.session import Session
from collective_rules.spec import Group


class GroupClaims:
    """The numbers of groups that this rank has used. `restarts`: how often torch has begun to count anew."""

    def __init__(self) -> None:
        self.restarts = 0
        self._made: set[tuple[int, str, str]] = set()

    def claim(self, session: Session, group: Group, source: str) -> None:
        """Claim a group's name for its ranks.

        Raises `DisagreementError`, on all ranks, where another rank claimed the name for other ranks.
        """
        name, ranks = group.name, group.ranks
        digest = hashlib.blake2b(repr(ranks).encode(), digest_size=8).hexdigest()
        if not ranks or not name.isdecimal() or (self.restarts, name, digest) in self._made:
            return
        self._made.add((self.restarts, name, digest))
        key = keys.group_claim(self.restarts, name)
        own: dict[str, Any] = {"of": digest, "ranks": ranks_of_group(ranks), "rank": session.rank, "source": source}
        text = json.dumps(own).encode()
        session.rest[key] = None
        first = session.store.claim(key, text)
        try:
            other = json.loads(first)
            uses = {str(each["ranks"]): {int(each["rank"]): str(each["source"])} for each in (other, own)}
            differs = other["of"] != digest
        except (ValueError, TypeError, KeyError) as error:
            session.doubt(UnreadableError(f"the claim of group {name}: {error}"))
            return
        if differs:
            session.publish([same_name(name, uses)])
            session.refuse()
