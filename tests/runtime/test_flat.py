"""A graph over flat tensors: what a call gives it, and what the model's caller gets back."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.runtime.networks import Nested, OneConv, images
from unit_fast.capture import capture
from unit_fast.runtime.flat import FlatGraph


class Listed(nn.Module):
    """Takes one tensor, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, rows: list[Tensor]) -> list[Tensor]:
        return [self.linear(rows[0])]


def test_tensors_by_position_and_by_name_are_those_of_the_call():
    flat, x = FlatGraph(capture(OneConv().eval(), images(2))), images(3)
    (by_position,), (by_name,) = flat.tensors((x,), {}), flat.tensors((), {"x": x})
    assert by_position is x
    assert by_name is x


def test_an_output_of_one_tensor_is_that_tensor():
    flat, y = FlatGraph(capture(OneConv().eval(), images(2))), torch.zeros(3, 5)
    assert flat.unflatten([y], [images(3)]) is y
    assert flat.unflatten((y,), [images(3)]) is y


class Several(nn.Module):
    """Returns what ``nest`` makes of two tensors and a number."""

    def __init__(self, nest) -> None:
        super().__init__()
        self.nest = nest

    def forward(self, x: Tensor) -> object:
        return self.nest(x.relu(), -x, 3)


@pytest.mark.parametrize(
    "nest",
    [
        lambda a, b, _: (a, b),
        lambda a, b, _: (b, a, b),
        lambda a, b, _: [a, b],
        lambda a, b, _: {"a": a, "b": b},
        lambda a, b, n: (a, n, b),
        lambda a, b, _: (a, None, b),
        lambda a, b, _: ((a,), b),
        lambda a, _, __: (a,),
    ],
    ids=["pair", "twice", "list", "dict", "number", "none", "nested", "tuple of one"],
)
def test_outputs_come_back_nested_as_the_model_nests_them(nest):
    x = torch.randn(3, 4)
    model = Several(nest).eval()
    flat = FlatGraph(capture(model, x))
    actual, expected = flat.unflatten(flat.module(x), [x]), model(x)
    assert pytree.tree_structure(actual) == pytree.tree_structure(expected)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("args", [(), (images(1), images(1))], ids=["none", "one too many"])
def test_another_number_of_tensors_is_an_error(args):
    flat = FlatGraph(capture(OneConv().eval(), images(2)))
    with pytest.raises(TypeError):
        flat.tensors(args, {})


def test_a_place_that_was_none_at_capture_takes_no_tensor():
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return x.relu() if mask is None else x.relu() * mask

    x = torch.randn(3, 4)
    flat = FlatGraph(capture(Masked(), (x, None)))
    assert [len(flat.tensors(args, {})) for args in ((x, None), (x, torch.zeros(3, 4)))] == [1, 1]


def test_a_list_of_one_tensor_stays_a_list():
    x = torch.randn(3, 4)
    flat = FlatGraph(capture(Listed().eval(), ([x],)))
    assert flat.tensors(([x],), {})[0] is x
    assert flat.unflatten([x], [x])[0] is x
    assert isinstance(flat.unflatten([x], [x]), list)


def test_nested_inputs_are_flattened_in_order_and_numbers_left_out():
    pair, mask = (torch.randn(3, 4), torch.randn(3, 4)), torch.rand(3, 6)
    flat = FlatGraph(capture(Nested().eval(), {"pair": pair, "scale": 2.0, "mask": mask}))
    found = flat.tensors((), {"mask": mask, "pair": pair, "scale": 2.0})
    assert [given is wanted for given, wanted in zip(found, (*pair, mask), strict=True)] == [True] * 3
