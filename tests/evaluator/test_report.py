import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from html import unescape
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_sample import (
    ARMS,
    CAT,
    DATA,
    DECIDED,
    DIAGNOSIS,
    EVIL,
    FACTS,
    FINDINGS,
    INGREDIENTS,
    PASSAGE,
    row,
    summary,
)

from ragtune.errors import InputError
from ragtune.evaluator.report import findings, measures, words
from ragtune.evaluator.report.data import Findings, ReportData
from ragtune.evaluator.report.examples import choose_examples, marked, runner_up
from ragtune.evaluator.report.render import as_json, code, write_report
from ragtune.types import Passage, Span


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report")
    assert write_report(DATA, place) == place / "report.html"
    return place


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


class Parsed(HTMLParser):
    """Elements in order; fails on an end tag that doesn't match."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


# the page


def test_the_page_is_well_formed_and_loads_nothing(page: str) -> None:
    parsed = Parsed(page)
    assert parsed.open == []
    assert {tag for tag, _ in parsed.elements} & {"script", "link", "iframe", "img", "object", "base", "form"} == set()
    names = {name for _, attributes in parsed.elements for name in attributes}
    assert not any(name.startswith("on") for name in names) and "src" not in names
    targets = [a["href"] for _, a in parsed.elements if a.get("href")] + re.findall(r"url\((.*?)\)", page)
    assert targets and all(target and target.startswith("#") for target in targets)
    assert "@import" not in page
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy}) in parsed.elements


def test_ids_are_unique_and_every_reference_has_its_target(page: str) -> None:
    elements = Parsed(page).elements
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    references = [a["href"] for _, a in elements if a.get("href")]
    references += [f"#{a['aria-labelledby']}" for _, a in elements if "aria-labelledby" in a]
    assert {str(reference)[1:] for reference in references} <= set(ids)


def test_untrusted_text_is_text(page: str) -> None:
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#34;x&#34;)") >= 3  # two answers and an instruction
    assert EVIL in "".join(Parsed(page).text)


def test_sections_stand_in_order(page: str) -> None:
    sections = [a["id"] for tag, a in Parsed(page).elements if tag == "section"]
    explained = ["verdict", "reading", "scores", "arms", "ingredients", "causes", "cost"]
    assert sections == [*explained, "examples", "measures", "method", "provenance"]


def test_the_verdict_says_arm_score_cost_status_and_reason(page: str) -> None:
    table = page[page.index('<table class="verdict">') : page.index("</table>")]
    text = " ".join("".join(Parsed(table + "</table>").text).split())
    for expected in (
        "facts raft model fine-tuned to read passages, given retrieved passages",
        "0.73 (0.68 to 0.78) 0.030 units decided",
        "raft scores 0.73 (0.68 to 0.78), and no arm scores higher.",
        "0.030 units undecided About 300 questions would tell.",
        "would tell. Probability of being the best: raft 90 %, retrieve 10 %.",
    ):
        assert expected in text
    assert "<code>raft</code> scores" in table


def test_citations_are_shown_where_there_is_evidence(tmp_path: Path) -> None:
    measured = {"citation_precision": 0.0, "citation_recall": 0.0}
    rows = tuple(replace(r, scores={**r.scores, **measured}) if r.arm == "raft" else r for r in DATA.rows)
    page = write_report(replace(DATA, rows=rows), tmp_path).read_text(encoding="utf-8")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    sentence = "5 of the 5 right answers that cite name no passage with evidence."
    assert sentence in page and sentence in text
    assert "<td>0.00 (8)</td><td>0.00 (8)</td><td>5 of 5</td>" in page
    assert "| **raft** | 0.00 (8) | 0.00 (8) | 5 of 5 |" in text


def test_examples_show_passages_with_the_evidence_marked(page: str) -> None:
    examples = page[page.index('id="examples"') : page.index('id="measures"')]
    assert "<mark>A cat costs £4 in its box.</mark>" in examples
    assert "policies/pets.md" in examples and "Pets &gt; Prices" in examples
    assert examples.count('class="gold"') == 6  # 3 examples, 2 arms that read, 1 gold passage each
    assert "2 passages read, 1 with the gold evidence" in examples
    letters = examples[examples.index("letters") :]
    assert words.NO_EXAMPLES in letters


def test_a_report_with_nothing_to_compare(tmp_path: Path) -> None:
    alone = replace(DECIDED, arm="prompt", arms=(summary("prompt", 0.0, 0.0),), comparisons=())
    rows = (row("prompt", "q1", None, "", scores={"exact_match": None, "token_f1": None}),)
    data = replace(DATA, verdicts=(alone,), rows=rows, findings={})
    page = write_report(data, tmp_path).read_text(encoding="utf-8")
    assert Parsed(page).open == []
    assert "linear scale" in page and "logarithmic" not in page
    for sentence in (words.NO_EXAMPLES, words.NO_INGREDIENTS, words.NO_DIAGNOSIS, words.NO_BREAK_EVEN):
        assert sentence in unescape(page) and sentence in (tmp_path / "report.md").read_text(encoding="utf-8")
    (measured,) = measures.measures(data, alone)
    assert measured.means == {"token_f1": measures.Mean(None, 0)}


def test_a_report_without_what_newer_runs_tell(tmp_path: Path) -> None:
    given = {f.name: getattr(DATA, f.name) for f in fields(DATA)[:10]}
    page = write_report(ReportData(**given), tmp_path).read_text(encoding="utf-8")
    assert Parsed(page).open == []
    absent = ("When training pays off", "What tuning made", "Which task a question", "Freshness", "answers were asked")
    assert not any(text in page for text in absent)


def test_every_picture_has_its_name_and_a_table_behind_it(page: str) -> None:
    for figure in re.findall(r"<figure>.*?</figure>", page, re.DOTALL):
        name = re.search(r"<title[^>]*>(.+?)</title>", figure)
        assert name is not None and len(name[1]) > 20
        assert figure.index("</svg>") < figure.index('<details class="numbers">') < figure.index("<table")
    assert page.count("<figure>") == page.count("<svg") == 2 + 2 + 2 + 1 + 1  # scores, costs, totals; shares, causes


def test_findings_stand_in_their_sections(page: str) -> None:
    text = " ".join(unescape(re.sub(r"<[^>]+>", "", page)).split())
    ingredients, causes, cost = (text.index(t) for t in ("A share (", "Each answer of", "What one question costs"))
    for sentence in (findings.ingredients_sentence(INGREDIENTS), words.NO_INGREDIENTS):
        assert ingredients < text.index(sentence) < causes
    for sentence in (
        findings.diagnosis_sentence(DIAGNOSIS).replace("`", ""),
        *findings.remedy_sentences(DIAGNOSIS),
        "Retrieval miss evidence was not among the passages",
        "Answered: £4 (score 0.25) Accepted: £4 · 4 pounds",
        "the base model is always right on 3, sometimes on 5 and never on 8",
        words.NO_DIAGNOSIS,
    ):
        assert causes < text.index(sentence) < cost
    method = text[text.rindex("Data and method") :]
    for sentence in ("344 of 384 answers", "tune forgot general knowledge", "the right task for 93 %", "3 of 70"):
        assert sentence in method


def test_equal_data_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    write_report(DATA, tmp_path)
    for name in ("report.html", "report.md", "report.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def _variables(css: str) -> Iterator[dict[str, str]]:
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    for block in (light, dark):
        yield dict(re.findall(r"--(\w[\w-]*): (#\w{6});", block))


def _luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_contrast_meets_wcag_aa_in_both_schemes() -> None:
    css = (resources.files("ragtune.evaluator.report") / "report.css").read_text(encoding="utf-8")
    for colours in _variables(css):
        pairs = [("ink", "paper"), ("muted", "paper"), ("accent", "paper"), ("ink", "panel"), ("ink", "gold")]
        pairs += [("ink", "accent-panel"), ("accent", "accent-panel")]
        for least, (text, ground) in [(4.5, pair) for pair in pairs] + [(3.0, ("soft", "paper"))]:
            high, low = sorted((_luminance(colours[text]), _luminance(colours[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= least, (text, ground)


def test_importing_the_report_does_not_load_matplotlib() -> None:
    program = "import sys, ragtune.evaluator.report.render; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# JSON and Markdown


def test_json_holds_the_inputs_unrounded(folder: Path) -> None:
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert [task["verdict"] for task in found["tasks"]] == json.loads(json.dumps([asdict(v) for v in DATA.verdicts]))
    assert [task["facts"] for task in found["tasks"]] == json.loads(json.dumps([asdict(t) for t in DATA.tasks]))
    assert found["settings"] == DATA.settings and found["provenance"] == DATA.provenance
    example = found["tasks"][0]["examples"][0]
    assert example["question"] == json.loads(json.dumps(asdict(CAT)))
    assert example["chosen"]["row"] == json.loads(json.dumps(asdict(DATA.rows[0])))
    assert [(p["id"], p["gold"], p["cited"]) for p in example["other"]["passages"]] == [
        ("pets#1", True, False),
        ("bikes#1", False, False),
    ]
    assert found["tasks"][0]["pareto_front"] == ["prompt", "raft"]
    assert found["tasks"][0]["findings"] == json.loads(json.dumps(asdict(FINDINGS)))
    assert found["tasks"][1]["findings"] == {"diagnosis": None, "ingredients": None, "knowledge": None}
    assert found["race"] == {"asked": 344, "in_full": 384, "error": 0.01}
    assert [f["weights"] for f in found["forgetting"]] == ["tune", "raft"] and found["router"]["precision"] == 0.96
    assert found["freshness"] == DATA.freshness and found["training_cost"] == DATA.training_cost
    assert found["tasks"][0]["runner_up"] == "retrieve"
    assert found == json.loads(json.dumps(as_json(DATA)))


def test_numbers_on_the_page_are_those_of_the_json(folder: Path, page: str) -> None:
    arms = page[page.index('id="arms"') : page.index('id="ingredients"')]
    for task in json.loads((folder / "report.json").read_text(encoding="utf-8"))["tasks"]:
        for arm in task["verdict"]["arms"]:
            score, cost = arm["score"], arm["cost"]
            assert f"{score['mean']:.2f} ({score['low']:.2f} to {score['high']:.2f})" in arms
            assert f"<td>{words.two_digits(cost)}</td>" in arms
    assert "<td>48 (2 unscored)</td><td>yes</td><td>10 %</td>" in arms
    assert "<td>dropped after 24</td><td>no</td><td>–</td>" in arms
    assert "<td>−0.10 (−0.20 to 0.00)</td><td>0.042</td><td>2</td><td>40</td><td>6</td>" in arms


def test_every_table_of_the_page_is_in_the_markdown(folder: Path, page: str) -> None:
    lines = (folder / "report.md").read_text(encoding="utf-8").replace("**", "").replace("\\", "").splitlines()
    written = {" ".join(line.strip("| ").split(" | ")) for line in lines if line.startswith("|")}
    tables = re.findall(r"<table(?! class=\"verdict\").*?</table>", page, re.DOTALL)
    rows = [row for table in tables for row in re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)]
    shown = {" ".join(unescape(re.sub(r"<[^>]+>", " ", row)).split()) for row in rows if "</td>" in row}
    assert len(shown) > 40
    assert [row for row in shown if not any(line.startswith(row) for line in written)] == []


def test_markdown_has_one_verdict_line_a_task(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    start = lines.index("|---|---|---|---|---|---|") + 1
    chosen = "model fine-tuned to read passages, given retrieved passages (`raft`) | 0.73 (0.68 to 0.78) | 0.030"
    probable = "Probability of being the best: `raft` 90 %, `retrieve` 10 %."
    assert lines[start : start + 3] == [
        f"| facts | {chosen} | decided | `raft` scores 0.73 (0.68 to 0.78), and no arm scores higher. |",
        f"| letters | {chosen} | undecided | About 300 questions would tell. {probable} |",
        "",
    ]
    assert re.search(r"(?<!\\)<", text) is None
    assert r"\<script\>" in text and r"!\[pixel\](http://evil.example/p.png) \| a \`b\` \*c\*" in text


# examples


def test_examples_are_the_clearest_wins_then_losses() -> None:
    assert runner_up(DECIDED) == "retrieve"
    found = [(e.question.id, e.won) for e in choose_examples(DATA, DECIDED)]
    assert found == [("q1", True), ("q6", True), ("q2", False)]  # q6 and q7 both win by 0.5; unscored ones are out


def test_without_another_arm_there_are_no_examples() -> None:
    alone = replace(DECIDED, arms=(summary("raft", 0.7, 0.03), summary("oracle", 0.8, 0.02)))
    assert runner_up(alone) is None and choose_examples(DATA, alone) == ()


@given(st.lists(st.tuples(st.integers(0, 80), st.integers(0, 80)), max_size=3))
@settings(max_examples=50, deadline=None)
def test_marked_pieces_cover_the_passage_and_flag_the_evidence(ends: list[tuple[int, int]]) -> None:
    passage = Passage("p", "d", "".join(chr(97 + i % 26) for i in range(40)), 20, 60)
    spans = (*(Span("d", min(e), max(e), "") for e in ends), Span("other", 20, 60, ""))
    flags = [flag for text, flag in marked(passage, replace(CAT, evidence=spans)) for _ in text]
    assert flags == [any(s.start <= 20 + i < s.end for s in spans[:-1]) for i in range(40)]
    assert "".join(text for text, _ in marked(passage, replace(CAT, evidence=spans))) == passage.text


def test_code_marks_only_paired_backticks() -> None:
    assert code("`a<b` wins & more") == "<code>a&lt;b</code> wins &amp; more"
    assert code("a ` b") == "a ` b"


# what doesn't fit together


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": (FACTS,)}, "task of a verdict, 'letters', is missing from the tasks"),
        ({"arms": ARMS[:-1]}, "arm of a verdict, 'oracle'"),
        ({"verdicts": (replace(DECIDED, arm="tune"),)}, "chosen arm, 'tune'"),
        ({"questions": {}}, "question of a row, 'q1'"),
        ({"findings": {"maps": Findings()}}, "task of the findings, 'maps'"),
        ({"findings": {"facts": Findings(replace(DIAGNOSIS, arm="prompt"))}}, "diagnosed arm, 'prompt'"),
        ({"findings": {"letters": Findings(replace(DIAGNOSIS, task="letters"))}}, "question of a cause, 'q1'"),
        ({"training_cost": {"raft": 25.0}}, "arm of a verdict, 'prompt', is missing from the training costs"),
        ({"questions_paid_off": 0}, "training is paid off over 0 questions; expected 1 or more"),
        ({"passages": {"pets#1": PASSAGE}}, "passage of a row, 'bikes#1'"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        replace(DATA, **changes)  # type: ignore[arg-type]
