"""The report in a real browser: opens from the disk, filters, sorts, and shows what models wrote as text."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from selenium.webdriver.support.wait import WebDriverWait
from test_correct_file import write
from test_systems import compete

from aligner import cli

pytestmark = pytest.mark.slow
ATTACK = "</script><script>document.title='owned'</script><img src=x onerror=document.title=1> & <b>bold</b>"
ALPACA = ROOT.parent / "shared/data/qac_aligner2b_alpacaeval.json"


def report(folder: Path, rows: list[dict[str, Any]]) -> str:
    after = write(folder / "after.jsonl", rows)
    labels = write(folder / "labels.jsonl", rows)
    assert cli.main(["evaluate", "--after", after, "--output", str(folder / "out"), "--judge", "human", "--labels", labels,
                     "--dimensions", "helpful"]) == 0  # fmt: skip
    return (folder / "out" / "report.html").as_uri()


def test_the_report_filters_sorts_and_runs_no_script_of_an_answer(browser, tmp_path):
    labels = ("after", "before", "tie")
    rows = [{"question": f"question {n}", "answer": f"answer {n} old", "corrected": f"answer {n} new", "label": labels[n % 3],
             "upstream": ("one", "other")[n % 2]} for n in range(90)]  # fmt: skip
    rows[4] |= {"question": ATTACK, "answer": ATTACK, "corrected": ATTACK + " more", "label": "before"}
    browser.get(report(tmp_path, rows))
    find = lambda name: browser.find_element("id", name)  # noqa: E731
    articles = lambda: browser.find_elements("css selector", "#rows article")  # noqa: E731

    def choose(name: str, value: str) -> None:
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        browser.execute_script(script, find(name), value)

    assert browser.title == "Aligner: evaluation" and find("count").text == "90 of 90"
    assert len(articles()) == 40, "forty at a time"
    assert "helpful: worse" in articles()[0].text, "the worst regressions first"
    find("more").click()
    assert len(articles()) == 80
    choose("filter", "helpful win")
    assert find("count").text == "30 of 90"
    choose("upstream", "one")
    assert find("count").text == "15 of 90"
    choose("upstream", "")
    choose("filter", "all")
    choose("sort", "row")
    assert articles()[0].text.startswith("question 0")
    choose("search", "owned")
    [article] = articles()
    assert article.text.startswith(ATTACK) and browser.title == "Aligner: evaluation"
    assert not browser.find_elements("css selector", "#rows script, #rows img, #rows b")
    assert article.find_element("css selector", "ins").text.strip() == "more"
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_texts_of_many_pairs_lie_beside_the_page_and_are_read_when_shown_or_searched(browser, tmp_path, monkeypatch):
    monkeypatch.setattr("aligner.evaluation.report.IN_THE_PAGE", 30)
    monkeypatch.setattr("aligner.evaluation.report.IN_A_FILE", 25)
    rows = [{"question": f"question {n}", "answer": f"answer {n} old" * 9, "corrected": f"answer {n} new", "label": "tie"}
            for n in range(90)]  # fmt: skip
    rows[77] |= {"question": ATTACK, "label": "after"}  # the best, so that it is shown last
    page = report(tmp_path, rows)
    [folder] = (tmp_path / "out").glob("report-*")
    assert sorted(file.name for file in folder.iterdir()) == ["0.js", "1.js", "2.js"]
    assert "question 89" not in (tmp_path / "out" / "report.html").read_text()
    browser.get(page)
    find = lambda name: browser.find_element("id", name)  # noqa: E731
    wait = lambda count: WebDriverWait(browser, 10).until(  # noqa: E731
        lambda _: len(browser.find_elements("css selector", "#rows article")) == count
    )

    def choose(name: str, value: str) -> None:
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        browser.execute_script(script, find(name), value)

    wait(40)
    read = lambda: [script.get_attribute("src")[-4:] for script in browser.find_elements("css selector", "script[src]")]  # noqa: E731
    assert read() == ["0.js"], "ten of the forty were not in the page"
    choose("search", "owned")
    wait(1)
    assert find("rows").text.startswith(ATTACK) and find("count").text == "1 of 90" and len(read()) == 3
    assert browser.title == "Aligner: evaluation" and not browser.find_elements("css selector", "#rows script, #rows b")
    report(tmp_path, rows[:60])
    assert folder not in (tmp_path / "out").glob("report-*"), "an earlier report's texts are gone"
    browser.get(page)
    shutil.rmtree(*(tmp_path / "out").glob("report-*"))
    choose("search", "question 3")
    WebDriverWait(browser, 10).until(lambda _: "keep the folder report-" in find("count").text)


def bars(browser: Any) -> list[str]:
    """What the bars say to a screen reader."""
    return [bar.get_attribute("aria-label") for bar in browser.find_elements("css selector", "#bars .track")]


def test_the_report_begins_with_a_sentence_and_bars_and_explains_its_columns(browser, tmp_path):
    labels = ("after", "before", "tie", "after")
    rows = [{"question": f"question {n}", "answer": "old", "corrected": "old" if n < 4 else "new", "label": labels[n % 4]}
            for n in range(8)]  # fmt: skip
    browser.get(report(tmp_path, rows))
    assert browser.find_element("id", "headline").text == (
        "Of 8 answers 50.0 % were changed. Of these 4, corrections were judged more helpful in 2 and less in 1."
    )
    assert bars(browser) == ["4 changed, 4 left as they were", "2 wins, 5 ties, 1 losses, 0 without a verdict"]
    browser.execute_script("document.getElementById('figures').open = true")
    headings = browser.find_elements("css selector", "#figures th")
    assert headings and all(heading.get_attribute("title") for heading in headings)
    assert (
        browser.find_element("id", "verdicts").text and "agreement" not in browser.find_element("id", "verdicts").text
    )


def test_a_report_without_a_judge_says_nothing_of_judges(browser, tmp_path):
    rows = [{"question": "q", "answer": "old", "corrected": new} for new in ("old", "new")]
    assert (
        cli.main(["evaluate", "--after", write(tmp_path / "after.jsonl", rows), "--output", str(tmp_path / "out")]) == 0
    )
    browser.get((tmp_path / "out" / "report.html").as_uri())
    browser.execute_script("document.getElementById('figures').open = true")
    shown = browser.find_element("tag name", "body").text.replace(str(tmp_path), "").lower()
    assert "of 2 answers 50.0 % were changed." in shown
    assert not [word for word in ("judge", "verdict", "win", "elo", "regression", "helpful") if word in shown]


def test_systems_stand_in_a_table_and_can_be_looked_at_match_by_match(browser, told, tmp_path):
    files = [
        f"<b>{n}</b>={write(tmp_path / f'{n}.jsonl', [{'question': 'q', 'answer': f'quality {n}'}] * 3)}"
        for n in (1, 2, 3)
    ]
    report = compete(told, tmp_path, *files)
    browser.get((tmp_path / "out" / "report.html").as_uri())
    rows = [row.text for row in browser.find_elements("css selector", "#elo tr")][1:]
    assert [row.split()[1] for row in rows] == ["<b>3</b>", "<b>2</b>", "<b>1</b>"], (
        "the best first, and names are text"
    )
    assert f"{report['elo']['helpful']['<b>3</b>']['elo']:.0f}" in rows[0]
    matches = [option.text for option in browser.find_elements("css selector", "#upstream option")]
    assert matches[1:] == ["<b>1</b> against <b>2</b>", "<b>1</b> against <b>3</b>", "<b>2</b> against <b>3</b>"]
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.skipif(not ALPACA.exists(), reason="needs shared/data")
@pytest.mark.parametrize("count", [1316, 2000])
def test_published_corrections_open_within_three_seconds_and_are_searched_at_once(count, browser, tmp_path):
    rows = json.loads(ALPACA.read_text())
    after = write(tmp_path / "after.jsonl", (rows + rows)[:count])
    cli.main(["evaluate", "--after", after, "--output", str(tmp_path)])
    began = time.monotonic()
    browser.get((tmp_path / "report.html").as_uri())
    assert browser.find_element("id", "count").text == f"{count:,} of {count:,}"
    assert time.monotonic() - began < 3
    began = time.monotonic()
    browser.execute_script("document.getElementById('search').value = 'the'; "
                           "document.getElementById('search').dispatchEvent(new Event('input'))")  # fmt: skip
    assert browser.find_element("id", "count").text != f"{count:,} of {count:,}" and time.monotonic() - began < 1
