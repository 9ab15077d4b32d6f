"""Plain English: phrases and names that were hard to understand must not come back, in code, tests or docs."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "ciod").rglob("*.j2"),
        *(ROOT / f for f in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    ]
)
MODULES = sorted(
    p
    for folder in ("ciod", "tests", "benchmarks", "scripts", "examples")
    for p in (ROOT / folder).rglob("*.py")
    if p != Path(__file__)
)

UNIT = (
    "batch|cell|class|epoch|frame|group|image|kind|layer|level|line|method|name|picture|position|process|run|second|seed|"
    "side|step|task"
)
COUNTED = (
    "anchors?|bars|bottleneck|boxes|cell|count|detections|entry|epochs?|files?|frames?|images?|labels?|line|number|one|"
    "pictures?|positions?|row|steps?|threads?|titles?"
)
KEYS = {("ciod/core/results_schema.py", "said")}  # keys of saved states, which older versions wrote
PHRASES = {  # regular expression → what to write instead
    r"gone on with": "resumed",
    r"go(es|ing)? on with": "resume",
    r"goes on": "continues, resumes",
    r"go on (at|from|where|to|alone)": "resume, continue",
    r"\bbegun\b": "started",
    r"\bstarves\b": "has only N boxes of",
    r"\bflatters?\b": "looks better than it is",
    r"\bnought\b": "zero, 0",
    r"(\b(with|of|best|such)|:) so (few|many)\b|not so many": "only N, this number of",
    r"has not so": "is larger than",
    r"(is|are) whole\b|whole (or|and) absent": "intact, complete",
    r"\btorn\b": "incomplete, damaged",
    r"\bwhose\?": "which method it belongs to",
    r"\bmend(s|ed)?\b": "fix",
    r"\bin all[.,;:)]": "in total",
    r"unless said|is said of|what .* said\b|\bnot said\b": "stated",
    r"\bthe very (pixels|images?|same|bytes|tensor)": "the same",
    r"stands? (there )?unlabelled": "is unlabelled",
    r"\banew\b": "again",
    r"\btold apart\b|\btells? (them|it|others?) apart": "distinguished",
    r"already wants|wants a (smaller|larger)": "needs",
    r"\bgo together\b": "are compatible",
    r"\bknows? no\b": "has no, does not know",
    r"does not name\b": "has no names of",
    r"(?<!`)\bnobody\b": "say what does not happen",
    r"what there (is|was)\b": "name it",
    r"\b(seed by seed|element by element|position by position)\b": "per ...",
    r"\b(image by image|level by level|class by class)\b": "per ...",
    rf"\b({COUNTED}) an? ({UNIT})\b": "per",
    r"\brecruits?\b": "adds its neighbours",
    r"\bha(s|ve) (the|its) say\b": "decides, overrides",
    r"(?<!there )\b(is|are|was) no (data set|module|number|picture|split)\b": "is not a",
    r"(?<!there )\b(is|are|was) no (text|video|web address|YAML|zip)\b": "is not a",
    r"\bthat (is|are) none\b|\bwhat is no\b": "that is not a",
    r"\bat hand\b": "available",
    r"\b(helps?|asks?|thrown? away) (no one|nobody|no teacher|what)": "say it directly",
    r"\bfor ever\b": "forever",
    r"slip of the hand": "typing error",
    r"\b(in|with) a sentence\b": "with a message",
    r"\bis told (of|about)\b": "counts, is called for",
    r"the (less|more) the": "lower is better",
    r"rewarded nor punished": "not trained",
    r"\bfor free\b": "inherited",
    r"labels (do not )?(speak|say nothing)": "labels are (in)complete",
    r"\banswers? for\b": "is matched with",
    r"without a word": "silently, without a message",
    r"\bsome (twenty|ten|\d)": "about",
    r"an average precision": "average precision",
    r"\bwhatever made\b": "independent of the source",
    r"drew no box": "produced no pseudo-labels",
    r"another process became": "another rank got",
    r"gaps and Ω flatter": "look better than they are",
    r"\bof (another|an earlier) time\b": "outdated, previous",
    r"\blies? beside\b": "is next to",
    r"\bleaves? (nothing|open)\b": "is incomplete",
    r"\bseldom\b": "rarely",
    r"\bhow it came\b": "its origin",
    r"\bthereof|whereof|hitherto|thereby\b": "use the usual word",
    r"\bdealt (out|at)\b|\bdeals? out\b": "assigned",
    r"by looking\b": "automatically",
    r"as it (stands|lies)\b": "unchanged",
    r"\bmachine's own\b": "that of the machine",
    r"\bof what (is|was)\b": "name it",
    r"\bpassed over\b": "skipped",
    r"\bfor good\b": "permanently, fixed",
    r"\bsticks? out\b": "extends beyond",
    r"\bcomes twice\b": "appears twice",
    r"\bof (another|any) maker\b": "of any framework, from elsewhere",
    r"\bwhat is there\b": "name it",
    r"\bthe time is up\b": "until the timeout",
    r"\] a (level|class|image)\b": "per",
    r"\bthe other way round\b": "the reverse",
    r"\bknows better\b": "decides",
    r"\bspoilt\b": "damaged, invalid",
    r"\bwho(ever)? (comes|says)\b": "name it",
    r"\bbest alone\b": "only the best",
    r"\b(of|with) one name\b(?! (per|for))": "with the same name",
    r"\bgives? out\b": "returns",
    r"\bis a sentence\b": "gives an error message",
    r"\b(the same|equal|rounding|runs?) but for\b|\bbut for rounding\b": "except for",
    r"\bthrown off\b": "loses",
    r"(?<!there )\b(is|are|was|were) no (?!longer|more|less|better)[\w'`]+ (that|which|of)\b": "is not a",
    r"(?<!there )\b(is|are|was|were) no (background|weights?|forgetting|warning|error|ranking|rounding)\b": "is not",
    r"\bis there already\b": "already exists",
    r"\bafresh\b": "again, newly",
    r"\bthat very\b": "exactly that",
    r"\(said by\b": "from, stated by",
    r'^\s*"""Of ': "name what it is, not only of what",
}
NAMES = frozenset({"said", "told", "here", "taking", "earlier", "usual", "spread", "begun", "doubts"})
WORDS = frozenset({"said", "told", "torn", "nought", "nobody", "whose", "begun", "seldom", "anew"})  # in names of tests
MODULE_NAMES = frozenset(
    {"columns", "doubt", "drawn", "extra", "found", "garbage", "lattice", "machine", "sentences", "teaching", "words"}
)


def prose(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of comments and strings of Python source."""
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in kinds:
            for i, line in enumerate(token.string.split("\n")):
                yield token.start[0] + i, line


def phrases(lines: Iterator[tuple[int, str]] | list[tuple[int, str]], where: str) -> list[str]:
    """One message per phrase found: file, line, the phrase, and what to write."""
    return [
        f"{where}:{number}: {match.group()!r}; write {instead!r}: {line.strip()[:100]}"
        for number, line in lines
        for pattern, instead in PHRASES.items()
        if (match := re.search(pattern, line, re.IGNORECASE))
    ]


def bound_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of every variable, argument, function and attribute that is assigned."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.lineno, node.name


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_page_has_a_phrase_to_avoid(path):
    found = phrases(list(enumerate(path.read_text(encoding="utf-8").splitlines(), 1)), str(path.relative_to(ROOT)))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_has_a_phrase_or_a_name_to_avoid(path):
    source, where = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
    found = phrases(prose(source), where)
    found += [
        f"{where}:{n}: the name '{name}' hides what it holds"
        for n, name in bound_names(ast.parse(source))
        if name in NAMES and (where, name) not in KEYS
    ]
    assert not found, "\n".join(found)


def test_names_of_tests_are_plain_statements():
    names = [
        (p.relative_to(ROOT).as_posix(), node.name)
        for p in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(p.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert len(names) > 1000
    assert [
        f"{p}: {n}"
        for p, n in names
        if WORDS & set(n.split("_")) or re.search("goe?s?_on(_|$)|(?<!there_)(is|are)_no_", n)
    ] == []


def test_no_module_has_a_name_that_hides_its_content():
    assert [str(p.relative_to(ROOT)) for p in MODULES if p.stem in MODULE_NAMES] == []


def test_a_planted_phrase_and_a_planted_name_are_found():
    source = (
        'def f(said):\n    """One run.\n\n    It has 3 boxes an image."""\n    raise ValueError(f"{said} starves it")\n'
    )
    found = [line.split("; ")[0] for line in phrases(prose(source), "x.py")]
    assert found == ["x.py:4: 'boxes an image'", "x.py:5: 'starves'"]
    page = ["# Resuming", "", "The run was gone on with."]
    assert phrases(list(enumerate(page, 1)), "x.md")[0].startswith("x.md:3: 'gone on with'; write 'resumed'")
    assert [name for _, name in bound_names(ast.parse(source)) if name in NAMES] == ["said"]
    assert len(PHRASES) >= 40
