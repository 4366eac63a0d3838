"""Every figure in a table of the documents is the one that was measured."""

import pytest

from benchmarks.tables import DOCUMENTS, filled


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_those_of_the_results(document):
    text = document.read_text()
    assert "<!-- table: " in text
    assert filled(text) == text, "run: python -m benchmarks.report"
