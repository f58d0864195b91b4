import pytest

from dipo.config import presets
from dipo.config.presets import default_choices, find_presets, own_folders, packaged_folder, refuse_shadowing, summary
from dipo.errors import UserError


def test_presets_are_found_in_the_installed_package_and_in_a_checkout(monkeypatch, tmp_path):
    (tmp_path / "dipo").mkdir()
    monkeypatch.setattr(presets, "__file__", str(tmp_path / "dipo" / "config" / "presets.py"))
    assert packaged_folder() == tmp_path / "conf"
    (tmp_path / "dipo" / "conf").mkdir()
    assert packaged_folder() == tmp_path / "dipo" / "conf"


def test_groups_stand_in_the_order_of_the_configuration():
    assert default_choices() == {
        "model": None,
        "data": "auto",
        "algo": "none",
        "calib": "mse",
        "precision": "w8a8",
        "platform": "ort",
        "cluster": "ray",
        "experiment": None,
    }
    assert list(find_presets([])) == list(default_choices())


def test_own_folders_are_the_named_one_then_conf_each_once(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert own_folders(None) == []
    (tmp_path / "conf").mkdir()
    (tmp_path / "other").mkdir()
    assert own_folders("other") == [tmp_path / "other", tmp_path / "conf"]
    assert own_folders("conf") == [tmp_path / "conf"]
    with pytest.raises(UserError, match="--config-dir nope: no such folder"):
        own_folders("nope")


def test_dipos_own_folder_is_not_the_users(monkeypatch):
    monkeypatch.chdir(packaged_folder().resolve().parent)
    assert own_folders(None) == []


def test_of_two_presets_with_one_name_dipos_is_taken_and_the_conflict_is_refused(tmp_path):
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo" / "brecq.yaml").write_text("iters: 3\n")
    assert find_presets([tmp_path])["algo"]["brecq"] == packaged_folder() / "algo" / "brecq.yaml"
    with pytest.raises(UserError, match=r"^algo=brecq: .*brecq\.yaml has the name of a preset that comes with dipo"):
        refuse_shadowing([tmp_path], "algo", "brecq")
    refuse_shadowing([tmp_path], "algo", "qdrop")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# what it is\na: 1\n# more\n", "what it is"),
        ("# @package _global_\n# what it is\n", "what it is"),
        ("a: 1\n", ""),
    ],
)
def test_the_summary_is_the_first_comment_that_is_no_directive(tmp_path, text, line):
    (tmp_path / "x.yaml").write_text(text)
    assert summary(tmp_path / "x.yaml") == line
