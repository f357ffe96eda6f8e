"""The wheel: an installation from it has all that the checkout has."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ("pyproject.toml", "setup.cfg", "README.md", "LICENSE", "recbole_escm2", "properties")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools")
    source = tmp_path_factory.mktemp("wheel") / "source"  # the build leaves files beside it
    source.mkdir()
    for name in SOURCE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name)
        else:
            shutil.copy(ROOT / name, source / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, ".."], cwd=source, check=True, capture_output=True)
    (file,) = source.parent.glob("*.whl")
    return {name for name in zipfile.ZipFile(file).namelist() if ".dist-info/" not in name}


def test_the_wheel_has_every_file_of_the_package(wheel):
    def files(folder, into):
        found = (path for path in (ROOT / folder).rglob("*") if path.is_file())
        return {f"{into}/{path.relative_to(ROOT / folder).as_posix()}" for path in found}

    wanted = files("recbole_escm2", "recbole_escm2") | files(
        "properties", "recbole_escm2/properties"
    )
    wanted = {name for name in wanted if "__pycache__" not in name}
    assert sorted(wheel ^ wanted) == []
