"""When to use it: the page and the README say what the logs say."""

from pathlib import Path

import when
from arena.record import read
from language import pages, results

ROOT = Path(__file__).resolve().parents[2]


def test_page_and_readme_are_those_of_the_logs():
    assert when.page() == (ROOT / "docs" / "when-to-use.md").read_text("utf-8")
    language = next(one for one in when.findings() if one.name == "language")
    numbers = [language.ratio("egd", seconds=seconds)[1:] for seconds in (False, True)]
    numbers += [one.end for one in language.entries.values()]
    record = read(pages.LOGS / "compare.jsonl")
    cells = results.short_cells(record, read(pages.LOGS / pages.SHORT))["egd"]
    numbers += [cells[1][:5], cells[-2][1:], cells[-1][1:]]  # loss, steps and seconds over AdamW's
    assert len(numbers) == 8
    assert all(numbers)
    readme = (ROOT / "README.md").read_text("utf-8")
    assert all(number in readme for number in numbers), numbers


def test_a_race_is_told_in_the_arenas_own_numbers():
    addition = next(one for one in when.findings() if one.name == "addition-97")
    assert {name: one.steps for name, one in addition.entries.items()} == {
        "egd": 13,
        "muon": 15,
        "adamw": 29,
    }
    assert addition.ratio("egd", seconds=False) == "0.45"  # 13 / 29
