"""What surrounds the code: licence, citation, what GitHub reads."""

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
    """The keys that the Citation File Format 1.2.0 requires, of the repo and of the paper."""
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
    assert "fail-fast" in job["strategy"] and job["runs-on"].startswith("ubuntu-")
    uses = [step["uses"].split("@")[0] for step in job["steps"] if "uses" in step]
    assert uses == ["actions/checkout", "actions/setup-python"]
    assert job["steps"][1]["with"]["python-version"] == "${{ matrix.python }}"
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert runs == COMMANDS["the workflow"] == ["make lint", "make test"]
    assert {run.removeprefix("make ") for run in runs} <= set(TARGETS)


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_each_issue_form_has_what_github_requires(form):
    """Top-level keys, types of fields, and what each type must have, by GitHub's form schema."""
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(content) <= {
        "name", "description", "body", "labels", "title", "assignees",
    }  # fmt: skip
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert fields
    for field in fields:
        assert set(field) <= {"type", "id", "attributes", "validations"}
        assert field["type"] in ("textarea", "input") and re.fullmatch(r"[\w-]+", field["id"])
        assert set(field["attributes"]) <= {
            "label",
            "description",
            "placeholder",
            "value",
            "render",
        }
        assert field["attributes"]["label"]
        assert field.get("validations", {"required": True}) == {"required": True}
    ids = [field["id"] for field in fields]
    labels = [field["attributes"]["label"] for field in fields]
    assert len({*ids}) == len(ids) and len({*labels}) == len(labels)
    for field in content["body"]:
        if field["type"] == "markdown":
            assert set(field["attributes"]) == {"value"}


def test_the_forms_ask_for_the_alignment_picture_and_the_state():
    assert {form.stem for form in FORMS} == {"training", "defect"}
    for form in FORMS:
        asked = " ".join(form.read_text(encoding="utf-8").split())
        assert "lignment picture" in asked and "trainer_state.json" in asked
        assert "epoch_N_teacher_forced.png" in asked
    required = {
        field["id"]
        for field in yaml.safe_load(read(".github/ISSUE_TEMPLATE/training.yml"))["body"]
        if field.get("validations") == {"required": True}
    }
    assert {"alignment", "state"} <= required


def test_blank_issues_stay_possible():
    assert yaml.safe_load(read(".github/ISSUE_TEMPLATE/config.yml")) == {
        "blank_issues_enabled": True
    }


def test_contributing_is_one_page_of_files_that_are_there():
    page = read("CONTRIBUTING.md")
    assert len(page.splitlines()) <= 60
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    names = re.findall(r"`(?:python )?([\w./]+\.(?:py|txt|sh|lock))\b", prose)
    assert len(names) > 5 and all((REPO / name).is_file() for name in names)
    headings = re.findall(r'under "([^"]+)"', " ".join(prose.split()))
    assert headings and all(f"\n## {heading}\n" in read("README.md") for heading in headings)
