"""Inputs of every structure reach the model as they came, and a dict is keyword arguments unless a tuple holds it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unit_fast import DataError, sanitize
from unit_fast.calibration import Maximum, Method, Percentile, Unit, calibrate
from unit_fast.calibration.inputs import input_leaves, ordered_like, rebuild_inputs

Y = torch.arange(40) % 2


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"b": torch.rand(40, 4, generator=generator), "a": torch.rand(40, 3, generator=generator)}


class ByName(nn.Module):
    """Two linear layers, joined: (N, 3) and (N, 4) -> (N, 2)."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.left, self.right, self.head = nn.Linear(3, 5), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.relu(self.left(a) + self.right(b)))


class OneDict(ByName):
    def forward(self, inputs: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(**inputs)


@pytest.mark.parametrize("method", [Maximum(), Percentile(0.9), Unit(0.5, steps=3)], ids=lambda method: method.name)
@pytest.mark.parametrize(
    "example", [None, ({name: tensor[:1] for name, tensor in inputs().items()},)], ids=["", "given"]
)
def test_a_dict_in_a_tuple_is_one_argument(method: Method, example: Any) -> None:
    expected = calibrate(ByName(), [(inputs(), Y)], method)
    found = calibrate(OneDict(), [((inputs(),), Y)], method, example_input=example)
    assert torch.equal(found["relu"], expected["relu"])
    assert found.metadata["accuracy"] == expected.metadata["accuracy"]


def test_what_was_calibrated_with_one_dict_is_called_with_it() -> None:
    model, x = OneDict(), inputs()
    bounds = calibrate(model, [((x,), Y)], Percentile(0.5))
    hidden = torch.relu(model.left(x["a"]) + model.right(x["b"]))
    expected = model.head(torch.minimum(hidden, bounds["relu"]))
    torch.testing.assert_close(sanitize(model, bounds, (x,), backend="eager")(x), expected)


@pytest.mark.parametrize(
    ("model", "x", "example", "says"),
    [
        (OneDict(), inputs(), None, r"keyword argument.* put it into a tuple, \(\{...\},\)"),
        (OneDict(), inputs(), (inputs(),), r"keyword argument.* put it into a tuple, \(\{...\},\)"),
        (
            OneDict(),
            ({"b": inputs()["b"], "c": inputs()["a"]},),
            (inputs(),),
            "does not run on the calibration samples",
        ),
        (ByName(), (inputs(),), None, "missing 1 required positional argument: 'b'"),
        (ByName(), (inputs(),), inputs(), r"\(x\[0\]\['b'\] \(4,\), x\[0\]\['a'\] \(3,\)\): .*missing .*'a'"),
    ],
    ids=["by name", "by name, example", "another key", "whole", "whole, example"],
)
def test_a_dict_that_is_given_the_other_way_is_refused(model: nn.Module, x: Any, example: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        calibrate(model, [(x, Y)], Maximum(), example_input=example)


@pytest.mark.parametrize(
    "x",
    [
        torch.ones(1),
        (torch.ones(1), torch.ones(2)),
        {"b": torch.ones(1), "a": torch.ones(2)},
        ({"b": torch.ones(1), "a": (torch.ones(2),)}, torch.ones(3)),
    ],
    ids=["tensor", "tuple", "dict", "nested"],
)
def test_leaves_are_put_back_where_they_were(x: Any) -> None:
    leaves = input_leaves(x)
    for path, leaf in leaves.items():
        assert eval(path) is leaf
    assert str(rebuild_inputs(x, list(leaves.values()))) == str(x)


def test_dicts_are_ordered_as_the_example_has_them_and_nothing_else_is_changed() -> None:
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)
    found = ordered_like(({"b": one, "a": (two,)}, three), ({"a": [None], "b": None}, None))
    assert str(found) == str(({"a": (two,), "b": one}, three))
    for x, example in ((one, {"a": 1}), ({"a": one}, {"b": 1}), ((one, two), (1,)), ({"a": one}, None)):
        assert ordered_like(x, example) is x


class Numbered(nn.Module):
    def forward(self, inputs: dict[int, Tensor]) -> Tensor:
        return torch.relu(inputs[0] - inputs[1])


def test_keys_that_are_no_strings_stay_as_they_are() -> None:
    x = {0: torch.rand(40, 2), 1: torch.rand(40, 2)}
    bounds = calibrate(Numbered(), [((x,), Y)], Maximum())
    torch.testing.assert_close(bounds["relu"], torch.relu(x[0] - x[1]).amax(0))
