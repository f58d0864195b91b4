import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import dipo

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
OWN = "# a model of my own\npath: tiny.onnx\n"


@dataclass(frozen=True)
class Installed:
    """An environment that holds the wheel and, behind it, the packages of the environment that runs the tests."""

    python: Path
    folder: Path
    """Somewhere outside the checkout."""

    def __call__(self, *command: str, status: int = 0) -> str:
        """Run a command in `folder`; return what it printed, errors too where it has to fail."""
        environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if status == 0 else done.stderr

    def launch(self, *arguments: str, status: int = 0) -> str:
        return self(str(self.python), "-m", "dipo.launch", *arguments, status=status)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip("--python", str(python), "install", "--no-deps", str(wheel))
    paths = {"base": str(folder), "platbase": str(folder)}
    # Of the other environment only the folder: the .pth files in it, the checkout's among them, are not read from here.
    (Path(sysconfig.get_path("purelib", "venv", paths)) / "others.pth").write_text(f"{SITE_PACKAGES}\n")
    return python


@pytest.fixture
def installed(environment, tmp_path):
    return Installed(environment, tmp_path)


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def files(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in found}


def own_preset(folder: Path, name: str) -> None:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / f"{name}.yaml").write_text(OWN)


def test_wheel_holds_the_package_its_presets_and_its_zoo_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    packaged = {name.removeprefix("dipo/") for name in names if name.startswith("dipo/")}
    assert packaged == files(ROOT / "dipo") | {f"conf/{name}" for name in files(ROOT / "conf")}
    assert {name.partition("/")[0] for name in names} == {"dipo", f"dipo-{dipo.__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_checkers_of_types_see_the_interface(wheel, installed):
    assert "dipo/py.typed" in zipfile.ZipFile(wheel).namelist()
    (installed.folder / "user.py").write_text(
        "import dipo\n\n\ndef sqnr() -> float:\n"
        "    result = dipo.quantize('net.onnx', [1.0], algo='qdrop')\n"
        "    reveal_type(result.report)\n"
        "    return result.report.error['deployed_vs_fp32'].sqnr_db\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(installed.python), "user.py"]
    assert "dipo.report.report.Report" in installed(*command)


def test_every_zoo_file_that_a_preset_names_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        presets = [name for name in archive.namelist() if re.fullmatch(r"dipo/conf/.*\.yaml", name)]
        named = {path for name in presets for path in re.findall(r"\bzoo:(\S+)", archive.read(name).decode())}
        assert named
        assert {f"dipo/zoo/{path}" for path in named} <= set(archive.namelist())


def test_the_checkout_is_not_what_runs(installed):
    where = installed(str(installed.python), "-c", "import dipo; print(dipo.__file__)")
    assert Path(where).is_relative_to(installed.python.parents[1])


def test_help_lists_the_packaged_presets(installed):
    text = installed.launch("--help")
    assert "mobilenet" in text
    assert "brecq" in text


def test_the_command_is_installed(installed):
    assert installed(str(installed.python.with_name("dipo")), "--version") == f"dipo {dipo.__version__}\n"


def test_cfg_composes_the_packaged_presets(installed):
    assert "path: zoo:mobilenet.onnx" in installed.launch("--cfg", "+model=mobilenet")


def test_presets_of_the_users_config_dir(installed):
    own_preset(installed.folder / "mine", "tiny")
    assert "path: tiny.onnx" in installed.launch("--config-dir", "mine", "--cfg", "+model=tiny")


def test_presets_in_conf_of_the_working_directory(installed):
    own_preset(installed.folder / "conf", "tiny")
    text = installed.launch("--cfg", "+model=tiny", "precision=w4a4")
    assert "path: tiny.onnx" in text
    assert "weight_bits: 4" in text


def test_the_presets_of_the_checkout_are_not_found(installed):
    assert "unknown model 'tiny'" in installed.launch("--cfg", "+model=tiny", status=2)


def test_the_zoo_is_read_from_the_package(installed):
    plan = installed.launch("+model=mobilenet", "dry_run=true")
    assert "for ort" in plan
    assert files(installed.folder) == set()
