"""Check what surrounds the code: licence, citation, what GitHub reads."""

import re

import yaml

from conftest import REPO

CONTRIBUTORS = "the contributors of this repository"


def read(name: str) -> str:
    return (REPO / name).read_text(encoding="utf-8")


def test_the_licence_is_the_one_that_is_named():
    first, _, copyright_line = read("LICENSE").split("\n")[:3]
    assert first == "MIT License" and copyright_line.endswith(CONTRIBUTORS)
    assert 'license = "MIT"' in read("pyproject.toml")
    assert yaml.safe_load(read("CITATION.cff"))["license"] == "MIT"


def test_the_citation_has_what_its_format_requires():
    """Check the keys that the Citation File Format 1.2.0 requires, of the repo and the paper."""
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0" and citation["message"]
    assert citation["title"] == re.match(r"# (.+)\n", read("README.md"))[1]
    assert citation["authors"] == [{"name": CONTRIBUTORS}]
    assert f'version = "{citation["version"]}"' in read("pyproject.toml")
    (paper,) = citation["references"]
    assert paper["type"] == "conference-paper" and paper["year"] == 2018
    assert paper["url"] in read("README.md")
    names = [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]]
    assert (len(names), names[0], names[-1]) == (13, "Jonathan Shen", "Yonghui Wu")
