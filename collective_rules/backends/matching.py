"""How a backend brings the calls of a group's ranks together, where it does so in another way than torch documents."""

from __future__ import annotations

import attrs


@attrs.frozen
class Matching:
    """Columns that are left out mean: as torch documents it.

    - `tags`: messages between two ranks are matched by their tags. Where that is False, they are matched in order.
    - `alike`: sets of ops and of rules whose calls meet on the ranks, though torch calls them different collectives.
    - `one_form`: rules whose forms are different transfers: all ranks must take the same one.
    - `joins`: the first operation of a group makes what all later ones need, and every rank must take part in that,
      unless it was made with the group (`Backend.eager`).
    - `one_stream`: the messages and the collectives of a group that was made so are carried out in the order in which
      the rank makes them, one after another.
    """

    tags: bool = True
    alike: tuple[tuple[str, ...], ...] = ()
    one_form: tuple[str, ...] = ()
    joins: bool = False
    one_stream: bool = False

    def name_of(self, op: str, rule: str) -> str:
        """Return the name under which the backend knows an op: that of its rule, or of the first that is alike.

        >>> matching = Matching(alike=(("all_gather", "c10d::_allgather_base_"),))
        >>> matching.name_of("c10d::_allgather_base_", "all_gather_into_tensor")
        'all_gather'
        """
        return next((names[0] for names in self.alike if op in names or rule in names), rule)


AS_DOCUMENTED = Matching()
