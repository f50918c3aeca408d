"""Which views of one allocation share an element: against a list of all elements."""

import torch
from hypothesis import given
from hypothesis import strategies as st

import collective_rules as cr
from collective_rules.binding.overlaps import sharing

BASE = torch.zeros(7, 6)


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    """A box, a slice with a step, a transpose or a flat piece of one tensor."""
    view = BASE
    for dim in range(2):
        start = draw(st.integers(0, view.shape[dim] - 1))
        stop = draw(st.integers(start + 1, view.shape[dim]))
        step = draw(st.integers(1, 3))
        view = view[start:stop:step] if dim == 0 else view[:, start:stop:step]
    if draw(st.booleans()):
        view = view.t()
    return draw(st.sampled_from([view, BASE.view(-1)[draw(st.integers(0, 41)) :], view]))


def elements(tensor: torch.Tensor) -> set[int]:
    """Where its elements lie, as torch itself says."""
    numbers = torch.arange(BASE.numel())
    return set(numbers.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).flatten().tolist())


@given(st.lists(views(), min_size=2, max_size=5))
def test_tensors_share_memory_where_they_have_an_element_in_common(tensors: list[torch.Tensor]) -> None:
    """Not where their elements only lie between each other's."""
    expected = {
        (a, b)
        for a in range(len(tensors))
        for b in range(a + 1, len(tensors))
        if elements(tensors[a]) & elements(tensors[b])
    }
    assert expected == set(sharing([cr.Spec.of(tensor) for tensor in tensors]))


def test_the_columns_of_one_matrix_share_nothing() -> None:
    """Gathering into them is legal, and right on gloo."""
    columns = list(torch.zeros(4, 6).chunk(2, 1))
    call = cr.call("c10d::allgather_", group=cr.Group(2), input_tensors=[(4, 3)], output_tensors=[columns])
    assert cr.check(call, backend="gloo") == ()


def test_one_object_twice_is_one_memory() -> None:
    """Also where nothing else is known of it, unless it is empty."""
    spec, empty = cr.Spec((3,)), cr.Spec((0, 3))
    assert [(0, 2)] == list(sharing([spec, cr.Spec((3,)), spec]))
    assert [] == list(sharing([empty, empty]))


def test_many_pieces_of_one_buffer_are_swept_not_compared() -> None:
    """Each piece is compared with those that are open where it starts: none."""
    pieces = [cr.Spec.of(piece) for piece in torch.zeros(4096).chunk(1024)]
    looked = 0

    class Counting(cr.Spec):
        @property
        def is_contiguous(self) -> bool:
            nonlocal looked
            looked += 1
            return True

    counted = [Counting(piece.shape, piece.dtype, memory=piece.memory) for piece in pieces]
    assert [] == list(sharing(counted))
    assert 0 == looked
