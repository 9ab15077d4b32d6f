"""How to cite a method."""

from __future__ import annotations

import re
from pathlib import Path

from ciod import listing, methods
from ciod.methods.base import papers

BIB = Path(papers.__file__).parent / "papers.bib"


def test_every_method_of_a_paper_can_be_cited():
    for name in methods.available():
        cite = papers.bibtex(name)
        assert bool(cite) == bool(methods.find(name).paper), name
        assert cite.count("@") == cite.count("\n}") and "methods" not in cite


def test_entries_belong_to_methods_and_are_complete():
    text = BIB.read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{(\w+),$", text, re.M)
    assert len(entries) == len(set(entries)) == len(re.findall(r"^ +title +=", text, re.M))
    named = {m for of in re.findall(r"methods *= *\{(.*?)\}", text) for m in of.split(", ")}
    assert named <= set(methods.available())
    assert papers.bibtex("ewc", "erd", "erd").count("@") == 3 and papers.bibtex("finetune") == ""


def test_the_list_of_a_method_shows_how_to_cite_it(capsys):
    content = listing.show("methods", ["erd"], {})
    assert "@inproceedings{feng2022erd," in capsys.readouterr().out and content["bibtex"] == papers.bibtex("erd")
