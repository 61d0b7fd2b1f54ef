"""Checksums of the user's files."""

import pytest

from stages.support.params import ParameterError
from stages.support.userfiles import checksum

FILES = {
    "b.txt": "two",
    "a/c.txt": "three",
    "a-b/c.txt": "four",
    "a/.hidden": "five",
    "a/__pycache__/c.pyc": "six",
    "z/deep/er.txt": "",
}
# The sha256 of lines "name\0sha256\n" for all files except the .pyc, sorted by path.
GOLDEN = "0f0a25dc3db29f21d83aabe432759d313d57df389dfe72b0c25eb6d9d38b3e3d"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, text in FILES.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "folder"


def test_the_checksum_of_a_folder_covers_names_and_contents(folder):
    assert checksum(folder) == GOLDEN


def test_a_folder_of_links_has_the_checksum_of_their_targets(folder):
    links = folder.parent / "links"
    links.mkdir()
    for entry in folder.iterdir():
        (links / entry.name).symlink_to(entry)
    assert checksum(links) == GOLDEN
    (folder / "z/deep/er.txt").write_text("changed")
    assert checksum(links) == checksum(folder) != GOLDEN


def test_a_link_to_a_parent_folder_is_not_followed(folder):
    (folder / "z/up").symlink_to(folder)
    assert checksum(folder) == GOLDEN


def test_a_folder_without_files_has_no_checksum(tmp_path):
    (tmp_path / "empty/inside").mkdir(parents=True)
    with pytest.raises(ParameterError, match="empty is a folder without files: add the files"):
        checksum(tmp_path / "empty")
