"""`specvit analysis report` and `curves`: one page that needs no other file, and a page of the user's own."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from handmade import mixed_study

from specvit.analysis.archive import unpack
from specvit.commands.analysis import main
from specvit.study.store import StudyFolder


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyFolder:
    monkeypatch.chdir(tmp_path)
    made = mixed_study(tmp_path)
    about = {**json.loads(made.file("study.json").read_text()), "question": "is a < b & c?", "table": {}}
    made.file("study.json").write_text(json.dumps(about))
    return made


class Page(HTMLParser):
    """What a page shows, and what it asks for."""

    def __init__(self, text: str) -> None:
        """Read it."""
        super().__init__()
        self.tags: list[str] = []
        self.asked: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what it asks for."""
        self.tags.append(tag)
        self.asked += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        """Note what it shows."""
        self.text += data


def test_one_page_has_everything_and_needs_nothing(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "toy", "--out", "out"]) == 0
    assert "written: out/report.html" in capsys.readouterr().out
    page = Page(Path("out/report.html").read_text())
    assert "is a < b & c?" in page.text and "viewport" in Path("out/report.html").read_text()
    assert page.asked and all(asked.startswith("data:image/png;base64,") for asked in page.asked)
    assert {"h1", "h2", "table", "img"} <= set(page.tags)
    for trial in study.trials():
        assert trial.run_id in page.text
    causes = [
        cause for t in study.trials() if study.state(t) not in ("completed",) and (cause := (t.end or {}).get("cause"))
    ]
    assert causes and all(cause in page.text for cause in causes)
    assert "still open" in page.text and "How to repeat it" in page.text


@pytest.mark.slow
def test_a_report_says_whether_a_choice_has_seen_the_test_rows(study: StudyFolder) -> None:
    unseen, seen = "that no choice has seen", "by which the search chose its settings"
    for metrics, words in ((None, unseen), ({"val_r2": "maximize"}, unseen), ({"test_r2": "maximize"}, seen)):
        study.create(**{**study.about(), "metrics": metrics})
        main(["report", str(study.path), "--metric", "test_r2", "--out", "out"])
        assert f"- metric: test_r2, on test rows {words}\n" in Path("out/report.md").read_text()


@pytest.mark.slow
def test_the_markdown_says_the_same(study: StudyFolder) -> None:
    main(["report", str(study.path)])
    text = (study.path / "report" / "report.md").read_text()
    images = re.findall(r"!\[\w+\]\((.+?)\)", text)
    assert images and all((study.path / "report" / image).exists() for image in images)
    titles = re.findall(r"^## (.+)$", text, re.M)
    assert titles == [
        "What came out",
        "Settings",
        "How the runs ended",
        "Failures and their causes",
        "Design",
        "Cost",
        "How to repeat it",
        "Definitions",
    ]


@pytest.mark.slow
def test_a_page_of_the_users_own_is_filled_and_gets_the_figures(study: StudyFolder) -> None:
    Path("mine").mkdir()
    Path("mine/seite.md").write_text(
        "# Ergebnis von {{ name }}\n\nFrage: {{ question }}\n\n{{ counts }}\n\n"
        "![Balken]({{ figure('ablation', 'bilder/eins.png') }}) {{ figure('ablation', 'bilder/eins.pdf') }}\n"
    )
    assert main(["report", "toy", "--out", "out", "--template", "mine/seite.md"]) == 0
    text = Path("out/seite.md").read_text()
    assert (
        text.startswith("# Ergebnis von toy\n\nFrage: is a < b & c?\n\n| factor |")
        and "![Balken](bilder/eins.png)" in text
    )
    assert Path("out/bilder/eins.png").read_bytes()[1:4] == b"PNG"
    assert Path("out/bilder/eins.pdf").read_bytes()[:5] == b"%PDF-"


@pytest.mark.slow
def test_templates_that_cannot_be_filled(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    templates = {
        None: "no such file",
        "{{ qestion }}": "'qestion' is undefined; there are name, question",
        "a\n{% if %}": "line 2: ",
        "{{ figure('nothing', 'a.png') }}": "names a figure that does not exist, 'nothing'; there are",
        "{{ figure('ablation', 'a.gif') }}": "use .png or .pdf",
        "{{ ''.__class__.__mro__ }}": "",
    }
    for template, complaint in templates.items():
        if template is not None:
            Path("page.md").write_text(template)
        assert main(["report", "toy", "--out", "out", "--template", "page.md"]) == 2
        error = capsys.readouterr().err
        assert re.fullmatch(r"specvit: page\.md: [^\n]+\n", error) and complaint in error
        assert not Path("out/page.md").exists()


HEADINGS = ["§1 Goal", "§2 Design", "§3 Figures", "§4 Key Insights", "§5 Conclusions", "§6 Appendix"]


@pytest.mark.slow
def test_the_record_in_chinese_of_a_study_that_failed_in_part(study: StudyFolder) -> None:
    """A single size, no hypotheses, a hostile question: blanks, and epochs that were evaluated."""
    study.create(**{**study.about(), "question": "![x](http://evil/x.png) <b> | c?"})
    assert main(["report", "toy", "--out", "out", "--template", "owner_zh"]) == 0
    text = Path("out/owner_zh.md").read_text()
    assert re.findall(r"^## (.+)$", text, re.M) == HEADINGS
    assert "还有 2 次运行没有结束" in text and "完成 1 次" in text and "失败 1 次" in text
    assert "无法证明判据是在运行之前确定的" in text and "| H1 | 【**待填写**】 |" in text
    assert "| 0.100 (1) | 0.400 (2) | 0.400 (2) | 0.400 (2) |" in text
    assert "!\\[x](http://evil/x.png) \\<b> \\| c?" in text and "single.png" not in text
    page = Page(Path("out/owner_zh.html").read_text())
    assert page.asked and all(asked.startswith("data:image/png;base64,") for asked in page.asked)
    assert 'lang="zh"' in Path("out/owner_zh.html").read_text() and "**" not in page.text


@pytest.mark.slow
def test_the_record_in_chinese_of_the_published_scaling_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = Path(__file__).parents[1] / "docs/results/scaling_small"
    study = StudyFolder(unpack(results / "runs.tar.xz", tmp_path))
    hypotheses = {"H1": {"claim": "ViT 优于 LightGBM", "criterion": "R² > .6 通过, < .5 调整"}}
    study.create(**{**(about := study.about()), "definition": {**about["definition"], "hypotheses": hypotheses}})
    assert main(["report", "scaling_small", "--out", "out", "--template", "owner_zh"]) == 0
    text = Path("out/owner_zh.md").read_text()
    assert "| H1 | ViT 优于 LightGBM | R² > .6 通过, \\< .5 调整 | 【**待填写**】 |" in text
    with (results / "scaling.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        score = f"{float(row['r2']):.3f} ± {float(row['r2_sd']):.3f}"
        interval = f"[{float(row['r2_low']):.3f}, {float(row['r2_high']):.3f}]"
        assert f"| {row['series']} | {int(row['rows']) // 1000}k | {score} | {interval} |" in text
        assert all(f"| {run_id} |" in text for run_id in row["run_ids"].split())
    assert len(rows) == 12 and text.count("在 2,000 到 20,000 条训练光谱的所有规模上") == 1
    assert "反超点的 95% 区间为 [2,000 以下, 20,000 以上]" in text and text.count("按种子配对") == 3
    assert Path("out/figures/single.png").exists() and "single.png" not in Path("out/report.md").read_text()
    assert Page(Path("out/owner_zh.html").read_text()).tags.count("img") == 2


def test_what_is_no_study_is_refused(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "tyo"]) == 2
    assert "tyo: is not a study; did you mean toy? there are toy" in capsys.readouterr().err


@pytest.mark.slow
def test_curves_of_all_runs_with_epochs(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curves", str(study.path), "--out", "here"]) == 0
    assert Path("here/curves.png").stat().st_size > 10_000 and Path("here/curves.pdf").exists()
    Path("outputs2").mkdir()
    assert main(["curves", "outputs2"]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_metric_that_no_run_has_is_refused(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "toy", "--metric", "test_r3"]) == 2
    assert "--metric test_r3: is a metric that no run has; did you mean test_r2" in capsys.readouterr().err


@pytest.mark.slow
def test_names_and_questions_load_nothing_and_run_nothing(study: StudyFolder) -> None:
    hostile = (
        "![x](http://evil/x.png) [y](http://evil/y) <http://evil/z> <img src=http://evil/w> ![z](figures/../../q.png)"
    )
    about = {**study.about(), "question": f"{hostile}\n\n[r]: http://evil/r\n\n![r] [r]"}
    study.create(**about)
    assert main(["report", "toy", "--out", "out"]) == 0
    text = Path("out/report.html").read_text()
    page = Page(text)
    assert page.asked and all(asked.startswith("data:image/png;base64,") for asked in page.asked)
    assert "default-src 'none'" in text and "a" not in page.tags
    assert "![x](http://evil/x.png)" in page.text and "<img src=http://evil/w>" in page.text
    assert not re.search(r"(?<!\\)<|!\[[xzr]", Path("out/report.md").read_text().split("## ")[0])
