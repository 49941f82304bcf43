"""Check what surrounds the code: licence, citation, what GitHub reads."""

import yaml

from conftest import REPO


def read(name: str) -> str:
    return (REPO / name).read_text(encoding="utf-8")


def test_the_citation_has_the_version_of_the_package():
    version = yaml.safe_load(read("CITATION.cff"))["version"]
    assert f'version = "{version}"' in read("pyproject.toml")
