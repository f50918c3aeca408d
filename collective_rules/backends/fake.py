"""What torch's fake backend takes, which sends nothing: measured on torch 2.13.0. Rows only.

Every op, dtype and reduce op was tried. Its results are made up from this rank's own tensors. They are right in a group
of one, and the table says nothing of them: only what raises. It copies with `Tensor.copy_`, so that what it refuses
depends on how shapes broadcast; where they decide, that is undecidable here.

Not stated: an exchange with split sizes raises on a rank that sends no rows and receives some.
"""

from __future__ import annotations

from collective_rules.backends.limit import DIES, RAISES, BackendTable, Limit
from collective_rules.backends.op_names import REFUSES_COMPLEX, F, L
from collective_rules.finding import UNDECIDABLE
from collective_rules.ops.op import OWN

FAKE = BackendTable(
    name="fake",
    source="torch/csrc/distributed/c10d/FakeProcessGroup.hpp",
    verified="measured on torch 2.13.0",
    lists=True,
    limits=(
        Limit(
            "FAKE1",
            "no monitored barrier",
            "Use barrier.",
            ops=("c10d::monitored_barrier_",),
            missing=True,
            follows=RAISES,
        ),
        Limit(
            "FAKE2",
            "the concatenated form, or another of equally many dims: a stacked input does not fit the output",
            "Pass an input of (W d, *s), for instance with .flatten(0, 1).",
            ops=(
                "c10d::_reduce_scatter_base_",
                "c10d::reduce_scatter_tensor_coalesced_",
                F + "reduce_scatter_tensor_out",
            ),
            forms=("concatenated", "reshaped"),
            follows=RAISES,
        ),
        Limit(
            "FAKE3",
            "even lists, or such shapes that this rank's input can be copied into every output",
            "Pad to one shape, or use all_to_all_single with split sizes.",
            ops=("c10d::allgather_", "c10d::allgather_coalesced_", "c10d::alltoall_"),
            forms=("even",),
            from_size=2,
            severity=UNDECIDABLE,
            follows=RAISES,
        ),
        Limit(
            "FAKE4",
            "an output of several rows, or an input of one element: a row is not cut into the ranks' pieces",
            "Gather into an output of (W d), and reshape it afterwards.",
            ops=("c10d::_allgather_base_",),
            forms=("concatenated", "stacked", "reshaped"),
            from_size=2,
            severity=UNDECIDABLE,
            follows=RAISES,
        ),
        Limit(
            "FAKE5",
            "without split sizes, tensors whose first dim the ranks divide",
            "Reshape the tensors, or pad them.",
            ops=("c10d::alltoall_base_",),
            divides=("input", "output"),
            follows=RAISES,
        ),
        Limit(
            "FAKE6",
            "product, min, max, band, bor and bxor of real tensors: torch refuses complex ones",
            "Reduce torch.view_as_real(...) where that is meant.",
            ops=(F + "all_reduce", L + "all_reduce"),
            reduces=REFUSES_COMPLEX,
            follows=RAISES,
        ),
        Limit(
            "FAKE7",
            "in place, this rank's own piece, or all of another tensor: none is copied into a part of itself",
            "Write to a fresh tensor, for instance torch.empty_like(...).",
            ops=(
                "c10d::allgather_",
                "c10d::allgather_coalesced_",
                "c10d::_allgather_base_",
                "c10d::allgather_into_tensor_coalesced_",
                "c10d::reduce_scatter_",
                "c10d::_reduce_scatter_base_",
                "c10d::reduce_scatter_tensor_coalesced_",
                "c10d::gather_",
                "c10d::alltoall_",
                F + "all_gather_into_tensor_out",
                F + "reduce_scatter_tensor_out",
            ),
            overlap=OWN,
            severity=UNDECIDABLE,
            follows=RAISES,
        ),
        Limit(
            "FAKE8",
            "split sizes of the input only together with those of the output",
            "Give both lists of split sizes.",
            ops=("c10d::alltoall_base_",),
            splits_with={"input": "output"},
            follows=DIES,
        ),
    ),
)
