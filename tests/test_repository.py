"""Check what surrounds the code: licence, citation, what GitHub reads."""

import re

import pytest
import yaml

from conftest import REPO
from test_commands import COMMANDS, TARGETS

CONTRIBUTORS = "the contributors of this repository"
FORMS = sorted(REPO.glob(".github/ISSUE_TEMPLATE/[!c]*"))  # config.yml is not a form


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


def test_the_workflow_runs_lint_and_tests_on_each_python():
    workflow = yaml.safe_load(read(".github/workflows/tests.yml"))
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads the key `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert job["strategy"]["matrix"] == {"python": ["3.10", "3.11", "3.12", "3.13"]}
    uses = [step["uses"].split("@")[0] for step in job["steps"] if "uses" in step]
    assert uses == ["actions/checkout", "actions/setup-python"]
    assert job["steps"][1]["with"]["python-version"] == "${{ matrix.python }}"
    assert COMMANDS["the workflow"] == ["make lint", "make test"]
    assert {"lint", "test"} <= set(TARGETS)


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_each_issue_form_has_what_github_requires(form):
    """Check top-level keys, field types, and what each type must have, by GitHub's form schema."""
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(content)
    assert set(content) <= {"name", "description", "body", "labels", "title", "assignees"}
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    for field in fields:
        assert set(field) <= {"type", "id", "attributes", "validations"}
        assert field["type"] in ("textarea", "input") and re.fullmatch(r"[\w-]+", field["id"])
        known = {"label", "description", "placeholder", "value", "render"}
        assert field["attributes"]["label"] and set(field["attributes"]) <= known
        assert field.get("validations", {"required": True}) == {"required": True}
    ids = [field["id"] for field in fields]
    labels = [field["attributes"]["label"] for field in fields]
    assert ids and len({*ids}) == len(ids) and len({*labels}) == len(labels)
    asked = " ".join(form.read_text(encoding="utf-8").split())
    assert "lignment picture" in asked and "trainer_state.json" in asked
    for name in re.findall(r"docs/\w+\.md", asked):
        assert (REPO / name).is_file()


def test_blank_issues_stay_possible():
    config = yaml.safe_load(read(".github/ISSUE_TEMPLATE/config.yml"))
    assert config == {"blank_issues_enabled": True} and len(FORMS) == 2


def test_the_pages_stay_short():
    assert len(read("CONTRIBUTING.md").splitlines()) <= 60
    assert len(read("README.md").splitlines()) <= 320
