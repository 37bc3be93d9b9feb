import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtune.errors import InputError
from ragtune.evaluator.report import charts, tables, words
from ragtune.evaluator.report.data import ReportData, TaskFacts
from ragtune.evaluator.report.examples import choose_examples, marked, runner_up
from ragtune.evaluator.report.render import as_json, code, write_report
from ragtune.types import Arm, ArmSummary, Comparison, Interval, Passage, Question, Row, Span, Verdict

EVIL = '<script>alert("x")</script> ![pixel](http://evil.example/p.png) | a `b` *c*'
TEXT = "Dogs travel free. A cat costs £4 in its box. Birds do not."
PASSAGE = Passage("pets#1", "policies/pets.md", TEXT, 100, 100 + len(TEXT), ("Pets", "Prices"))
OTHER = Passage("bikes#1", "policies/bikes.md", "Bicycles cost £6 each way.", 0, 26)
CAT = Question(
    "q1",
    "What does a cat cost?",
    ("£4", "4 pounds"),
    "facts",
    "test",
    (Span("policies/pets.md", 118, 144, TEXT[18:44]),),
)
ARMS = (
    Arm("prompt", False, "none", "base"),
    Arm("retrieve", False, "retrieved", "base"),
    Arm("raft", False, "retrieved", "raft"),
    Arm("oracle", False, "gold", "base", True),
)


def row(arm: str, question: str, score: float | None, text: str = "£4", **changes: object) -> Row:
    passages = ("pets#1", "bikes#1") if arm in ("retrieve", "raft") else ()
    made = Row(
        "facts", question, arm, score, {"exact_match": score, "token_f1": score}, text, passages, (), 99, 5, 0.5, False
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def summary(arm: str, mean: float, cost: float, **changes: object) -> ArmSummary:
    interval = Interval(mean, mean - 0.05, mean + 0.05)
    made = ArmSummary(arm, interval, 48, 0, cost, 412.4, 9.6, 0.5125, 1.2375, arm == "oracle", mean > 0.5)
    return replace(made, **changes)  # type: ignore[arg-type]


DECIDED = Verdict(
    "facts",
    "raft",
    "decided",
    "`raft` scores 0.73 (0.68 to 0.78), and no arm scores higher.",
    None,
    0.0834,
    (
        summary("prompt", 0.1, 0.0091),
        summary("retrieve", 0.52, 0.033, unscored=2),
        summary("raft", 0.734, 0.0304),
        summary("oracle", 0.83, 0.0149),
    ),
    (
        Comparison("raft", "prompt", Interval(0.634, 0.5, 0.75), 0.0001, 30, 17, 1),
        Comparison("raft", "oracle", Interval(-0.1, -0.2, -0.004), 0.042, 2, 40, 6),
    ),
)
UNDECIDED = replace(
    DECIDED, task="letters", status="undecided", reason="About 300 questions would tell.", questions_needed=287
)
FACTS = TaskFacts("facts", "short", "exact_match", "Answer briefly.", 48, 1, ("t1", "t2"), "Split by source document.")
QUESTIONS = {f"q{i}": replace(CAT, id=f"q{i}") for i in range(1, 8)} | {
    "u1": replace(CAT, id="u1", answers=(), evidence=())
}
ROWS = (
    *(row("raft", f"q{i}", s) for i, s in enumerate((1.0, 0.25, 0.0, None, 1.0, 0.75, 0.5), 1)),
    *(row("retrieve", f"q{i}", s, EVIL) for i, s in enumerate((0.0, 1.0, 0.0, 0.0, None, 0.25, 0.0), 1)),
    row("raft", "u1", 1.0, "The documents do not say.", refused=True, passage_ids=()),
    row("retrieve", "u1", 1.0, "", refused=True),
)
DATA = ReportData(
    project="harbourline",
    verdicts=(DECIDED, UNDECIDED),
    tasks=(FACTS, replace(FACTS, name="letters", instruction=EVIL)),
    arms=ARMS,
    rows=ROWS,
    questions=QUESTIONS,
    passages={"pets#1": PASSAGE, "bikes#1": OTHER},
    settings={"margin": "0.02", "confidence": "0.95"},
    provenance={"base_model": "smollm2-135m-instruct", "note": "see http://example.org"},
    currency="units",
)


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

    VOID = ("meta",)

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
    expected = ["verdict", "reading", "scores", "arms", "cost", "examples", "measures", "method", "provenance"]
    assert sections == expected


def test_the_verdict_says_arm_score_cost_status_and_reason(page: str) -> None:
    table = page[page.index('<table class="verdict">') : page.index("</table>")]
    text = " ".join("".join(Parsed(table + "</table>").text).split())
    for expected in (
        "facts raft model fine-tuned to read passages, given retrieved passages",
        "0.73 (0.68 to 0.78) 0.030 units decided",
        "raft scores 0.73 (0.68 to 0.78), and no arm scores higher.",
        "0.030 units undecided About 300 questions would tell.",
    ):
        assert expected in text
    assert "<code>raft</code> scores" in table


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
    page = write_report(replace(DATA, verdicts=(alone,), rows=rows), tmp_path).read_text(encoding="utf-8")
    assert Parsed(page).open == []
    assert "linear scale" in page and "logarithmic" not in page
    assert words.NO_EXAMPLES in page
    (measured,) = tables.measures(replace(DATA, rows=rows), alone)
    assert measured.means == {"token_f1": None}


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
    assert example["chosen"]["row"] == json.loads(json.dumps(asdict(ROWS[0])))
    assert [(p["id"], p["gold"], p["cited"]) for p in example["other"]["passages"]] == [
        ("pets#1", True, False),
        ("bikes#1", False, False),
    ]
    assert found["tasks"][0]["pareto_front"] == ["prompt", "raft"]
    assert found["tasks"][0]["runner_up"] == "retrieve"
    assert found == json.loads(json.dumps(as_json(DATA)))


def test_numbers_on_the_page_are_those_of_the_json(folder: Path, page: str) -> None:
    arms = page[page.index('id="arms"') : page.index('id="cost"')]
    for task in json.loads((folder / "report.json").read_text(encoding="utf-8"))["tasks"]:
        for arm in task["verdict"]["arms"]:
            score, cost = arm["score"], arm["cost"]
            assert f"{score['mean']:.2f} ({score['low']:.2f} to {score['high']:.2f})" in arms
            assert f"<td>{words.two_digits(cost)}</td>" in arms
    assert "<td>0.51</td><td>1.2</td><td>412</td><td>10</td>" in arms
    assert "<td>48 (2 unscored)</td>" in arms
    assert "<td>−0.10 (−0.20 to 0.00)</td><td>0.042</td><td>2</td><td>40</td><td>6</td>" in arms


def test_markdown_has_one_verdict_line_a_task(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    start = lines.index("|---|---|---|---|---|---|") + 1
    chosen = "model fine-tuned to read passages, given retrieved passages (`raft`) | 0.73 (0.68 to 0.78) | 0.030"
    assert lines[start : start + 3] == [
        f"| facts | {chosen} | decided | `raft` scores 0.73 (0.68 to 0.78), and no arm scores higher. |",
        f"| letters | {chosen} | undecided | About 300 questions would tell. |",
        "",
    ]
    assert re.search(r"(?<!\\)<", text) is None
    assert r"\<script\>" in text and r"!\[pixel\](http://evil.example/p.png) \| a \`b\` \*c\*" in text


# what the tables say


def test_words_for_every_arm() -> None:
    assert [words.describe(arm) for arm in ARMS] == [
        "base model, instruction only",
        "base model, given retrieved passages",
        "model fine-tuned to read passages, given retrieved passages",
        "base model, given the gold evidence",
    ]
    assert (
        words.describe(Arm("a", True, "retrieved", "base"))
        == "base model, given retrieved passages and worked examples"
    )
    assert words.describe(Arm("a", False, "none", "tune")) == "fine-tuned model, without passages"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.01712, "0.017"), (0.0996, "0.10"), (1234.0, "1200"), (2.5e-7, "0.00000025"), (3, "3.0"), (0.0, "0")],
)
def test_costs_have_two_significant_digits(value: float, expected: str) -> None:
    assert words.two_digits(value) == expected


def test_scores_have_the_decimals_that_their_interval_supports() -> None:
    assert words.interval(Interval(0.734, 0.68, 0.784)) == "0.73 (0.68 to 0.78)"
    assert words.interval(Interval(0.9123, 0.9049, 0.9199)) == "0.912 (0.905 to 0.920)"
    assert words.interval(Interval(-0.001, -0.1, 0.1), signed=True) == "0.00 (−0.10 to +0.10)"
    assert [words.p_value(p) for p in (0.0001, 0.0421, 1.0)] == ["< 0.001", "0.042", "1.00"]
    assert [words.two_digits_up(n) for n in (9, 92, 287, 3356)] == ["9", "92", "290", "3400"]


def test_tally_counts_what_is_decided() -> None:
    assert words.tally((DECIDED, UNDECIDED)) == "1 of 2 tasks is decided."
    assert words.tally((UNDECIDED,)) == "No task is decided."
    assert words.tally((DECIDED, DECIDED)) == "Every task is decided."


def test_names_of_measures() -> None:
    assert [words.heading(n) for n in ("token_f1", "ndcg_at_k", "citation_recall")] == [
        "Token F1",
        "nDCG@k",
        "Citation recall",
    ]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5), st.booleans()), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_pareto_front_is_what_nothing_dominates(points: list[tuple[int, int, bool]]) -> None:
    arms = tuple(summary(str(i), s / 10, c, reference=r) for i, (c, s, r) in enumerate(points))
    found = {(s.cost, round(10 * s.score.mean)) for s in tables.pareto_front(replace(DECIDED, arms=arms))}
    racing = {(c, s) for c, s, reference in points if not reference}
    assert found == {
        (c, s) for c, s in racing if not any(c2 <= c and s2 >= s and (c2, s2) != (c, s) for c2, s2 in racing)
    }


def test_measures_count_refusals_and_leave_out_what_is_missing() -> None:
    prompt, retrieve, raft, _ = tables.measures(DATA, DECIDED)
    assert (raft.wrong_refusals, raft.right_refusals) == ((0, 7), (1, 1))
    assert raft.means == {"token_f1": pytest.approx((1 + 0.25 + 0 + 1 + 0.75 + 0.5 + 1) / 7)}
    assert retrieve.format_failures is None
    assert (prompt.means, prompt.wrong_refusals) == ({}, (0, 0))
    shown = {line[0]: line[1:] for line in tables.measures_table(DATA, DECIDED).rows}
    assert shown["raft"] == ("0.64", "0 of 7", "1 of 1")
    assert shown["prompt"] == ("–", "–", "–")


def test_format_failures_of_labels_and_json() -> None:
    labels = {
        "q1": replace(CAT, answers=("claim",), evidence=()),
        "q2": replace(CAT, id="q2", answers=("praise",), evidence=()),
    }
    rows = (
        row("raft", "q1", 1.0, "claim", free_text=" Claim "),
        row("raft", "q2", 0.0, "fare", free_text="It is praise."),
        row("retrieve", "q1", 0.0, "praise", free_text="fare"),
    )
    data = replace(DATA, tasks=(replace(FACTS, format="label"), DATA.tasks[1]), questions=QUESTIONS | labels, rows=rows)
    found = {m.arm: m.format_failures for m in tables.measures(data, DECIDED)}
    assert (found["raft"], found["retrieve"], found["prompt"]) == ((1, 2), (0, 1), (0, 0))
    valid = (row("raft", f"q{i}", 1.0, scores={"valid_json": v}) for i, v in enumerate((1.0, 0.0, None), 1))
    data = replace(DATA, tasks=(replace(FACTS, format="json"), DATA.tasks[1]), rows=tuple(valid))
    assert {m.arm: m.format_failures for m in tables.measures(data, DECIDED)}["raft"] == (1, 2)


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


# pictures


def test_pictures_take_colours_font_and_size_from_the_page() -> None:
    for picture in (charts.scores_chart(DECIDED, "a"), charts.cost_chart(DECIDED, "units", "b")):
        root = ElementTree.fromstring(picture)
        assert set(root.attrib) == {"class", "viewBox", "role", "aria-labelledby"}
        assert root[0].tag == "title" and root[0].attrib["id"] == root.attrib["aria-labelledby"]
        colours = re.findall(r"(?:fill|stroke): ([^;\"]+)", picture)
        assert set(colours) <= {
            "none",
            *(f"var(--{name})" for name in ("ink", "muted", "soft", "line", "accent", "paper")),
        }
        assert "font-family" not in picture and "http" not in picture
        texts = [element.text for element in root.iter("text")]
        assert {"prompt", "retrieve", "raft", "oracle"} <= set(texts)


def test_the_chosen_arm_stands_out_and_references_are_hollow() -> None:
    root = ElementTree.fromstring(charts.scores_chart(DECIDED, "a"))
    (label,) = (element for element in root.iter("text") if element.text == "raft")
    assert "var(--accent)" in label.attrib["style"] and "font-weight: 700" in label.attrib["style"]
    fills = [
        re.findall(r"fill: (\S+?)(?:;|$)", e.attrib["style"])[0]
        for e in root.iter("use")
        if "fill" in e.attrib["style"]
    ]
    assert fills == ["var(--soft)", "var(--ink)", "var(--paper)", "var(--accent)"]  # the chosen one on top


def test_two_pictures_on_a_page_share_no_ids() -> None:
    first, second = (set(re.findall(r'id="([^"]+)"', charts.scores_chart(DECIDED, i))) for i in ("a", "b"))
    assert first and second and not first & second
    assert charts.scores_chart(DECIDED, "a") == charts.scores_chart(DECIDED, "a")


def test_names_with_markup_are_drawn_as_they_are() -> None:
    odd = replace(DECIDED, task="a<b & $c$", arm="$x$<b>", arms=(summary("$x$<b>", 1.0, 1e-7), summary("b", 1.0, 1e-7)))
    for picture in (charts.scores_chart(odd, "a"), charts.cost_chart(odd, "units", "b")):
        assert "$x$<b>" in [element.text for element in ElementTree.fromstring(picture).iter("text")]


@given(
    st.lists(st.tuples(st.floats(0, 400), st.floats(0, 230)), min_size=1, max_size=9),
    st.lists(st.integers(20, 110), min_size=9, max_size=9),
)
@settings(max_examples=15, deadline=None)
def test_labels_overlap_neither_each_other_nor_points(points: list[tuple[float, float]], widths: list[int]) -> None:
    bounds = (0.0, 0.0, 440.0, 240.0)
    sizes = np.array([(width, 13.0) for width in widths[: len(points)]])
    middles = charts.place_labels(np.array(points), sizes, bounds, np.array([(200.0, 100.0)]))
    low, high = middles - sizes / 2, middles + sizes / 2
    assert (low >= -1e-6).all() and (high[:, 0] <= 440 + 1e-6).all() and (high[:, 1] <= 240 + 1e-6).all()
    for i in range(len(points)):
        for j in range(i):
            assert ((low[i] >= high[j] - 1e-6) | (low[j] >= high[i] - 1e-6)).any()
        for x, y in points:
            assert not (low[i, 0] < x < high[i, 0] and low[i, 1] < y < high[i, 1])


def test_a_lone_label_stands_right_beside_its_point() -> None:
    (middle,) = charts.place_labels(
        np.array([(50.0, 50.0)]), np.array([(40.0, 12.0)]), (0, 0, 440, 240), np.empty((0, 2))
    )
    assert tuple(middle) == (50 + 7 + 20, 50)


# what doesn't fit together


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": (FACTS,)}, "task of a verdict, 'letters', is missing from the tasks"),
        ({"arms": ARMS[:-1]}, "arm of a verdict, 'oracle'"),
        ({"verdicts": (replace(DECIDED, arm="tune"),)}, "chosen arm, 'tune'"),
        ({"questions": {}}, "question of a row, 'q1'"),
        ({"passages": {"pets#1": PASSAGE}}, "passage of a row, 'bikes#1'"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        replace(DATA, **changes)  # type: ignore[arg-type]
