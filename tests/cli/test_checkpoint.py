import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unit_fast.cli.checkpoint import load_weights
from unit_fast.cli.model_error import ModelError


class RunsCode:
    """Pickles into a call: unpickling it freely would make the file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.marker,)


def net(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))


def trained() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor + 3
        for name, tensor in net().state_dict().items()
    }


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda state: state, id="bare"),
        pytest.param(lambda state: {"state_dict": state, "epoch": 3}, id="state_dict"),
        pytest.param(lambda state: {"net": state, "acc": 97.7}, id="net"),
        pytest.param(lambda state: {"model": state, "optimizer": {"lr": 0.1}}, id="model"),
        pytest.param(lambda state: {f"module.{name}": value for name, value in state.items()}, id="data-parallel"),
        pytest.param(
            lambda state: {"state_dict": {f"module._orig_mod.{name}": value for name, value in state.items()}},
            id="data-parallel-of-compiled",
        ),
    ],
)
def test_checkpoints_as_training_scripts_write_them(tmp_path: Path, wrap) -> None:
    state = trained()
    torch.save(wrap(state), tmp_path / "weights.pth")
    model = net()

    load_weights(model, tmp_path / "weights.pth")

    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_safetensors(tmp_path: Path) -> None:
    state = trained()
    save_file(state, tmp_path / "weights.safetensors")
    model = net()

    load_weights(model, tmp_path / "weights.safetensors")

    assert torch.equal(model[0].weight, state["0.weight"])


def test_counter_of_old_batch_norms_may_be_missing(tmp_path: Path) -> None:
    state = {name: value for name, value in trained().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "weights.pth")

    load_weights(net(), tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(lambda s: {n: v for n, v in s.items() if n != "0.bias"}, "1 missing (0.bias)", id="missing"),
        pytest.param(lambda s: s | {"fc.weight": torch.zeros(1)}, "1 unexpected (fc.weight)", id="unexpected"),
        pytest.param(
            lambda s: s | {"0.bias": torch.zeros(8)}, "1 of another shape (0.bias (8,) for (4,))", id="misshapen"
        ),
    ],
)
def test_weights_of_another_network_are_refused_and_nothing_is_loaded(tmp_path: Path, change, says: str) -> None:
    torch.save(change(trained()), tmp_path / "weights.pth")
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    with pytest.raises(ModelError) as raised:
        load_weights(model, tmp_path / "weights.pth")

    assert says in str(raised.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_that_needs_unpickling_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": trained(), "args": RunsCode(tmp_path / "ran")}, tmp_path / "weights.pth")

    with pytest.raises(ModelError, match=r"pickled Python objects.*safetensors"):
        load_weights(net(), tmp_path / "weights.pth")

    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_is_refused_in_our_own_words(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(RunsCode(tmp_path / "ran"), protocol=protocol))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ModelError, match=r"pickled Python objects.*safetensors") as raised:
            load_weights(net(), tmp_path / "weights.pth")

    assert "weights_only" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_archive_is_refused_in_our_own_words(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(net()), tmp_path / "weights.pt")

    with pytest.raises(ModelError, match="pickled Python objects") as raised:
        load_weights(net(), tmp_path / "weights.pt")

    assert "weights_only" not in str(raised.value)


def test_a_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "model.pth")

    with pytest.raises(ModelError, match="pickled Python objects"):
        load_weights(net(), tmp_path / "model.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [pytest.param(b"", id="empty"), pytest.param(b"\x80\x02nonsense", id="nonsense")])
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ModelError, match=f"{name} is damaged, or no") as raised:
        load_weights(net(), tmp_path / name)

    assert "weights_only" not in str(raised.value)


def test_a_truncated_checkpoint_is_damaged(tmp_path: Path) -> None:
    torch.save(trained(), tmp_path / "weights.pth")
    whole = (tmp_path / "weights.pth").read_bytes()
    (tmp_path / "weights.pth").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(ModelError, match="is damaged, or no checkpoint"):
        load_weights(net(), tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("content", "found"),
    [pytest.param({"epoch": 3}, "the keys epoch", id="no-weights"), pytest.param([1, 2], "a list", id="list")],
)
def test_a_file_without_weights_says_what_it_holds(tmp_path: Path, content: object, found: str) -> None:
    torch.save(content, tmp_path / "weights.pth")

    with pytest.raises(ModelError, match=found):
        load_weights(net(), tmp_path / "weights.pth")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such file"):
        load_weights(net(), tmp_path / "weights.pth")
