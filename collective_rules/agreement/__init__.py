"""What ranks disagree on, by parts, which `agree` puts together.

The data flow one way:

- `sequences`: the calls of all ranks become sequences, by group and rank.
- `order`: the sequences of one group, side by side; `divergence` explains where they part.
- `collective`: the calls of one collective, one for each rank.
- `point_to_point`: each send with its receive.
- `unify`: one name that several ranks bind becomes a finding.
- `wait_cycle`: ranks that wait for each other.
"""
