"""What ranks disagree on, by parts: calls into streams, streams into collectives and messages, names unified.

`agree` in the folder above puts them together. The order in which they are needed:

- `streams`: the calls of all ranks, told apart by group and rank, alike ones kept once.
- `order`: the calls of one group side by side, from the first to the last.
- `collective`: the calls of one collective, one for each rank.
- `partners`: each send with its receive.
- `unify`: one name, bound by several ranks.
- `waiting`: ranks that wait for each other in a circle.
"""
