"""Every error of the domain has a status, and a page that says what to do."""

from pathlib import Path

import pytest

from service import errors
from service.api.problems import STATUS, encode_problem, problem, slug

PAGES = Path(__file__).parents[2] / "docs" / "problems"


def leaves(kind):
    children = kind.__subclasses__()
    return {leaf for child in children for leaf in leaves(child)} if children else {kind}


def test_every_error_has_a_status():
    assert set(STATUS) == leaves(errors.ServiceError)


@pytest.mark.parametrize("kind", sorted(STATUS, key=slug), ids=slug)
def test_page_of_every_problem_names_its_status(kind):
    page = (PAGES / f"{slug(kind)}.md").read_text()
    assert f"({STATUS[kind]})" in page.splitlines()[0]


def test_no_page_is_left_over():
    assert {page.stem for page in PAGES.iterdir()} == {slug(kind) for kind in STATUS} | {"internal-error"}


def test_validation_problem_lists_its_places():
    error = errors.InvalidRequest([errors.FieldError(("inputs", 3), "inputs[3] is wrong")])
    document = problem(error, "r1")
    assert document == {
        "type": "/problems/invalid-request",
        "title": "Invalid request",
        "status": 422,
        "detail": "inputs[3] is wrong",
        "errors": [{"loc": ["inputs", 3], "msg": "inputs[3] is wrong"}],
        "request_id": "r1",
    }


def test_problem_can_quote_anything():
    assert b"?" in encode_problem(problem(errors.ModelNotFound("there is no model '\ud800'"), "r1"))
