"""Check what surrounds the code: licence, citation, what GitHub reads."""

import pytest
import yaml

import mutants
from conftest import REPO


def read(name: str) -> str:
    return (REPO / name).read_text(encoding="utf-8")


def test_the_citation_has_the_version_of_the_package():
    version = yaml.safe_load(read("CITATION.cff"))["version"]
    assert f'version = "{version}"' in read("pyproject.toml")


@pytest.mark.slow
def test_each_mutant_changes_code_that_is_there():
    found = [*mutants.read_list(mutants.LIST.read_text(encoding="utf-8"))]
    assert len(found) > 200 and not [*mutants.find_mistakes(found)]
