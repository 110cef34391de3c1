"""What a release says of itself, and how it is published."""

import re
import tomllib

import pytest
import yaml

import advlib
from advbook.studies.results import titled
from advbook.studies.schema import ROOT, load_study
from advbook.studies.tables import per_cent, read_tables
from advlib.importing import read_predictions

WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/book.yml").read_text())
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


def test_citation_changelog_and_package_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "advlib.__version__"}
    assert citation["version"] == advlib.__version__
    assert citation["license"] == project["project"]["license"]
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert released[0] == f"{advlib.__version__}, {citation['date-released']}"
    assert headings.index(released[0]) <= 1  # nothing but "Unreleased" stands above it


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_the_readme_says_what_the_published_tables_say(name):
    study = titled(load_study(name), "committed")
    errors = {"adv": [], "adv_plus": []}
    for (_, method, _), table, _ in read_tables(study, "committed", ["pgd40"]):
        if method in errors:
            errors[method].append(advlib.metrics.error(table))
    adv, plus = (sum(found) / len(study.seeds) for found in errors.values())
    n = len(study.seeds)
    cells = [f"here, {study.title}, {n} seed{'s' * (n > 1)}", per_cent(adv), per_cent(plus)]
    row = " | ".join([*cells, per_cent(plus - adv, sign="+")])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"| {row} |" in readme
    for path in re.findall(r"\]\((book/\S+)\)", readme):
        assert (ROOT / path).is_file(), path


def test_the_readme_says_what_the_zoos_say():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for method in ("adv", "faal", "group_dro", "adv_plus"):
        row = []
        for study in map(load_study, ("cifar10_zoo", "fashion_mnist_zoo")):
            path = study.published / f"predictions/pgd40/{method}-seed0.parquet"
            each = advlib.metrics.class_error(read_predictions(path)).error
            row += [per_cent(each.mean(), 1), per_cent(each.max(), 1)]
            name = (study.names | study.ablation_names)[method]
        assert f"| {' | '.join([name, *row])} |" in readme


@pytest.mark.parametrize("step", [step for step in STEPS if "uses" in step], ids=str)
def test_actions_are_pinned_to_a_commit(step):
    assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"])


def test_only_the_jobs_that_publish_may_write_and_they_wait_for_the_tests():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    for name, job in WORKFLOW["jobs"].items():
        writes = "write" in job.get("permissions", {}).values()
        assert writes == (name in ("publish", "release"))
        if writes:
            assert set(job["needs"]) == {"test", "book"} and "github.ref" in job["if"]


def test_the_workflow_and_the_checklist_name_commands_that_there_are():
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.M))
    checklist = (ROOT / "book/contributing.md").read_text().partition("## A release\n")[2]
    said = " ".join(step.get("run", "") for step in STEPS) + checklist
    named = set(re.findall(r"\bmake ([a-z]+)", said))
    assert {"lint", "read", "test"} <= named <= targets
