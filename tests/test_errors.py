"""Suggestions for unknown names."""

from kwbench.errors import did_you_mean


def test_the_names_that_are_most_alike_are_suggested_first() -> None:
    assert did_you_mean("pgdd", ["square", "pgd", "apgd"]) == "did you mean 'pgd' or 'apgd'?"
    assert did_you_mean("squar", ["square", "pgd", "apgd"]) == "did you mean 'square'?"


def test_at_most_five_names_are_suggested() -> None:
    suggestions = did_you_mean("net", [f"net{number}" for number in range(9)])
    assert suggestions.count("'net") == 5
    assert " or 'net" in suggestions


def test_where_no_name_is_alike_five_are_listed_and_the_others_counted() -> None:
    names = ["a", "b", "c", "d", "e", "f", "g"]
    assert did_you_mean("zzz", names[:5]) == "known: a, b, c, d, e"
    assert did_you_mean("zzz", names) == "known: a, b, c, d, e and 2 more"
    assert did_you_mean("zzz", names, listed_by="kwbench models").endswith("and 2 more; `kwbench models` lists them")


def test_without_any_names_there_are_none() -> None:
    assert did_you_mean("zzz", []) == "there are none"
