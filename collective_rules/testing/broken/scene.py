"""Draws the legal calls in which something is to be broken, and says what is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
from hypothesis import strategies as st

from collective_rules.binding.bound import Slot
from collective_rules.call import Call
from collective_rules.ops import Row
from collective_rules.testing.broken.edits import replaced, slots_of
from collective_rules.testing.drawing import Calls, Drawing, Dtypes, Wish, draw_calls, draw_size, legal_dtypes


@attrs.frozen
class Broken:
    """A group of calls in which one thing is broken.

    - `calls`: as `calls` draws them (one fewer, where that is what is broken).
    - `id`: the constraint of the rule, or the limit of the backend, that must be found.
    - `rank`: the rank whose call was changed; None where all calls were (beyond a backend's limit).
    - `local`: whether `check` finds it in that call; if not, `agree` finds it between the ranks.
    - `change`: the change, in words.
    """

    calls: Calls
    id: str
    rank: int | None
    local: bool
    change: str


@attrs.frozen
class Scene:
    """Draws legal calls of an op, within the limits of a backend, in which something is to be broken."""

    draw: st.DrawFn
    row: Row
    backend: str | None
    most_ranks: int

    def legal(self, **wish: Any) -> Calls:
        """Draw a legal group; `wish` holds fields of `Wish`."""
        return draw_calls(self.draw, self.row, self.backend, self.most_ranks, self._wish(wish))

    def drawing(self, **wish: Any) -> tuple[Drawing, Calls]:
        """Draw a legal group; return its drawing, whose values can be changed, and the calls."""
        wished = self._wish(wish)
        size = draw_size(self.draw, self.row, self.most_ranks, wished)
        drawing = Drawing(self.draw, self.row, self.backend, size, wished)
        return drawing, drawing.calls()

    def _wish(self, wish: Mapping[str, Any]) -> Wish:
        return Wish(**{"straight": True, "splits": True if self.row.entry.splits else None, **wish})

    def dtypes(self, size: int = 2) -> Dtypes:
        """Return the (reduce op, dtype) that a group of `size` ranks may use."""
        return legal_dtypes(self.row, self.backend, size)

    def pick(self, choices: Iterable[Any]) -> Any:
        """Draw one of some things."""
        return self.draw(st.sampled_from(list(choices)))

    def one(self, calls: Iterable[Call]) -> Call:
        """Draw a rank's call of this op."""
        call: Call = self.pick(one for one in calls if one.row is self.row)
        return call

    def slot(self, calls: Iterable[Call], fits: Callable[[Slot], bool] = lambda slot: True) -> tuple[Call, Slot]:
        """Draw a rank's call of this op, and a tensor of it that `fits`."""
        own = [one for one in calls if one.row is self.row]
        pair: tuple[Call, Slot] = self.pick((one, slot) for one in own for slot in slots_of(one) if fits(slot))
        return pair

    def local(self, calls: Calls, changed: Call, kind: str, change: str) -> Broken:
        """Return the group with one call replaced, in which `check` must find the constraint of `kind`."""
        return Broken(replaced(calls, changed), changed.row.rule.id_of(kind), changed.group.rank, True, change)

    def on_one_rank(
        self, drawing: Drawing, calls: Calls, kind: str, change: str, ranks: Iterable[int] | None = None
    ) -> Broken:
        """Return the group in which one of `ranks` follows the changed `drawing`; `agree` must find that.

        Each call is legal by itself. Without `ranks`, any rank is drawn.
        """
        rank = self.pick(range(drawing.size) if ranks is None else ranks)
        return attrs.evolve(self.local(calls, drawing.call_of(rank), kind, change), local=False)


@attrs.frozen
class Breach:
    """One way to break a constraint: `broken` draws a group in which it is broken, for the ops to which it `applies`.

    `kind` is the constraint's; `form` is the form of the rule that the way needs, of those that the backend takes.
    The way needs a backend that takes tensors which are not contiguous (`strides`), or that looks at tags (`tags`).
    """

    name: str
    kind: str
    applies: Callable[[Row], bool]
    broken: Callable[[Scene], Broken]
    form: str = ""
    strides: bool = False
    tags: bool = False
