import os
from pathlib import Path

import pytest

from unit_fast.cli.outputs import check_distinct, check_writable, make_folder
from unit_fast.files import OutputError

not_as_root = pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")


def test_nothing_is_left_by_looking(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("kept")

    check_writable(tmp_path / "new")
    check_writable(tmp_path / "old")

    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "kept"


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"--html .*absent/r\.html: there is no folder .*absent; create it first"):
        check_writable(tmp_path / "absent" / "r.html", "--html")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder; name a file in it"):
        check_writable(tmp_path)


def test_a_device_is_no_file() -> None:
    with pytest.raises(OutputError, match="/dev/null is a device"):
        check_writable(Path("/dev/null"))


@pytest.mark.parametrize("through_a_link", [False, True], ids=["itself", "through-a-link"])
def test_a_pipe_is_no_file(tmp_path: Path, through_a_link: bool) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    if through_a_link:
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"

    with pytest.raises(OutputError, match=f"--plot {path} is a device, a pipe"):
        check_writable(path, "--plot")


def test_a_loop_of_links_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "link")

    with pytest.raises(OutputError, match="loop of links"):
        check_writable(tmp_path / "link")


def test_of_a_link_its_target_counts(tmp_path: Path) -> None:
    (tmp_path / "into-nothing").symlink_to(tmp_path / "absent" / "file")
    (tmp_path / "new").symlink_to(tmp_path / "file")

    check_writable(tmp_path / "new")
    with pytest.raises(OutputError, match=r"there is no folder .*absent"):
        check_writable(tmp_path / "into-nothing")


def test_place_that_takes_no_files() -> None:
    with pytest.raises(OutputError, match="cannot write to /proc"):
        check_writable(Path("/proc/bounds.safetensors"))


@not_as_root
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    with pytest.raises(OutputError, match="Permission denied"):
        check_writable(tmp_path / "file")


def test_folders_are_made_on_the_way(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")

    assert (tmp_path / "a" / "b").is_dir()


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").touch()

    with pytest.raises(OutputError, match="cannot make the folder"):
        make_folder(tmp_path / "a")


@pytest.mark.parametrize("named", ["model.pt2", "../{folder}/model.pt2", "link"], ids=["itself", "way-round", "link"])
def test_what_is_read_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.pt2").write_text("kept")
    Path("link").symlink_to("model.pt2")
    named = named.format(folder=tmp_path.name)

    with pytest.raises(OutputError, match=f"--html {named} is what --model names and would be replaced"):
        check_writable(Path(named), "--html", {"--data": None, "--model": "model.pt2"})
    check_writable(Path("other"), inputs={"--model": "timm:resnet18", "--data": tmp_path, "--weights": Path("absent")})


@pytest.mark.parametrize(
    "source",
    ["nets.deep:net", "blend:nets/deep.py,ratio=0.2", "warp:noise=nets/deep.py", "patch:nets/deep.py"],
    ids=["module", "first", "by-key", "alone"],
)
def test_files_named_inside_an_option_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets").mkdir()
    Path("nets/deep.py").write_text("kept")

    with pytest.raises(OutputError, match=r"--output nets/deep.py is what --it names"):
        check_writable(Path("nets/deep.py"), inputs={"--it": source})
    check_writable(Path("nets/shallow.py"), inputs={"--it": source})


@pytest.mark.parametrize("other", ["a", "sub/../a", "link"], ids=["itself", "way-round", "link"])
def test_two_results_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("link").symlink_to("a")

    with pytest.raises(OutputError, match=f"--html {other} is the file that --output goes to; name another"):
        check_distinct({"--output": Path("a"), "--plot": None, "--html": Path(other)})
    check_distinct({"--output": Path("a"), "--plot": None, "--html": Path("b"), "--graph": None})
