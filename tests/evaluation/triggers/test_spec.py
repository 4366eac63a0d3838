import pytest
import torch

from unit_fast.errors import DataError
from unit_fast.evaluation.triggers import Add, Blend, Custom, Patch, Sinusoid, Warp, parse


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(torch.rand(3, 8, 8), "picture.pt")
    torch.save(torch.rand(3, 8, 8), "a, b:c.pt")
    (tmp_path / "grids").mkdir()
    torch.save(torch.rand(1, 8, 8, 2), "grids/noise_grid.pt")
    torch.save(torch.rand(1, 8, 8, 2), "grids/identity_grid.pt")
    return tmp_path


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("patch:size=4,row=27,col=27,value=1", lambda: Patch(size=4, row=27, col=27, value=1.0)),
        ("patch", Patch),
        ("Patch: size = 4 , row = -5".replace(" = ", "="), lambda: Patch(size=4, row=-5)),
        ("patch:size=4x6,value=1/0/0.5", lambda: Patch(size=(4, 6), value=(1.0, 0.0, 0.5))),
        ("patch:picture.pt,size=2", lambda: Patch(image="picture.pt", size=2)),
        ("blend:picture.pt,ratio=0.2", lambda: Blend("picture.pt", 0.2)),
        ("blend:ratio=0.1,image=picture.pt", lambda: Blend("picture.pt", 0.1)),
        ("blend:a, b:c.pt,ratio=0.2", lambda: Blend("a, b:c.pt", 0.2)),
        ("add:picture.pt", lambda: Add("picture.pt")),
        ("sinusoid:delta=0.08,frequency=6", lambda: Sinusoid(0.08, 6.0)),
        ("sinusoid:first_column=1", lambda: Sinusoid(first_column=1)),
        ("warp:seed=3,k=5,s=0.7", lambda: Warp(seed=3, k=5, s=0.7)),
        ("warp:noise=grids/noise_grid.pt", lambda: Warp(noise="grids/noise_grid.pt")),
        ("warp:grids,s=1", lambda: Warp(noise="grids/noise_grid.pt", identity="grids/identity_grid.pt", s=1.0)),
        ("custom:torch:relu", lambda: Custom(torch.relu)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_line_makes_the_trigger_it_says(spec, expected):
    assert parse(spec) == expected()


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "expected one of patch, blend, add, sinusoid, warp, custom, found ''"),
        ("sticker:size=4", "found 'sticker'"),
        ("patch:colour=1", "patch takes size, row, col, value, image, found 'colour'"),
        ("patch:size=big", r"size expects pixels \(4\) or height x width \(4x6\), found 'big'"),
        ("patch:value=red", "value expects a number, or one a channel"),
        ("patch:row=1.5", "row expects a whole number, found '1.5'"),
        ("patch:size=2,size=3", "size is given twice"),
        ("patch:value=255", r"value in \[0, 1\]"),
        ("sinusoid:0.08", "expected key=value, found '0.08'"),
        ("blend:ratio=0.2", "blend needs an image"),
        ("blend:nowhere.png", r"there is no file nowhere\.png"),
        ("add", "add needs an image"),
        ("warp:nowhere", "there is no folder nowhere"),
        ("warp:.", r"there is no file noise_grid\.pt"),
        ("custom:torch", "expected custom:package.module:function"),
        ("custom:torch:no_such_function", "no_such_function"),
        ("custom:no_such_module:f", "PYTHONPATH"),
        ("custom:torch:pi", "expected a function, found float"),
    ],
)
def test_a_line_that_makes_no_sense_says_what_does(spec, message):
    with pytest.raises(DataError, match=message) as caught:
        parse(spec)
    assert repr(spec) in str(caught.value)


def test_what_describes_a_trigger_makes_it_again():
    for trigger in (Patch((2, 3), 27, 27, value=(1.0, 0.0, 0.5)), Sinusoid(0.25, 3.0, 1), Warp(seed=2, k=3, s=0.25)):
        assert parse(str(trigger)) == trigger
