"""How results are written: CSV, JSON, markdown, one HTML page, and the user's own page filled in."""

import base64
import math
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from specvit import __version__
from specvit.utils.errors import DataError
from specvit.utils.files import finite, write_json, write_text
from specvit.utils.provenance import commit
from specvit.utils.text import csv_text, markdown_table

Row = dict[str, Any]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; color: #222; }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; margin: .8rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
td:last-child { white-space: normal; min-width: 12rem; } th { min-width: 3.5rem; }
blockquote { margin: 1rem 0; padding: .1rem 1rem; border-left: .3rem solid #4169e1; background: #eef2fb; }
code, pre { background: #f4f4f4; border-radius: 3px; } pre { padding: .6rem; overflow-x: auto; }
@media (prefers-color-scheme: dark) {
  body { background: #181818; color: #ddd; } code, pre { background: #262626; } th, td { border-color: #444; }
  blockquote { background: #20263a; } img { background: white; }
}
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""A browser loads nothing for the page, from nowhere."""


def write_report(
    out: Path,
    name: str,
    *,
    rows: Sequence[Mapping[str, Any]],
    facts: Row,
    blocks: Iterable[str],
    columns: Sequence[str] | None = None,
) -> None:
    """Write `rows` as NAME.csv, `facts` as NAME.json and `blocks` of markdown as NAME.md into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{name}.csv", csv_text(rows, columns))
    write_text(out / f"{name}.md", joined(blocks))
    write_json(out / f"{name}.json", {**finite(facts), "specvit": __version__, "commit": commit()})


def joined(blocks: Iterable[str]) -> str:
    """Return blocks of markdown as one text, with an empty line between them; empty blocks are left out."""
    return "\n\n".join(block for block in blocks if block) + "\n"


def table(cells: Sequence[Sequence[str]]) -> str:
    """Return a block of markdown: a table of a header and rows."""
    return "\n".join(markdown_table(cells))


def bullets(sentences: Iterable[str]) -> str:
    """Return a block of markdown: a list of sentences without their full stops."""
    return "\n".join(f"- {sentence}." for sentence in sentences)


def with_spread(value: float | None, spread: float | None, *, whole: bool = False) -> str:
    """Return a score, or a `whole` number such as a step, with its spread if there is one."""
    if value is None or math.isnan(value):
        return ""
    digits = ",.0f" if whole else ".3f"
    return f"{value:{digits}}" + (f" ± {spread:{digits}}" if spread is not None else "")


def as_page(title: str, text: str, figures: Path, language: str = "en") -> str:
    """Return markdown as an HTML page that contains its images, which are relative to `figures`.

    It loads nothing else: links and other images remain text.
    """
    from html import escape

    from markdown_it import MarkdownIt

    images = {f"figures/{path.name}": path.read_bytes() for path in figures.glob("figures/*.png")}

    def image(renderer: object, tokens: Any, index: int, *_: object) -> str:
        alt, source = escape(tokens[index].content), str(tokens[index].attrs["src"])
        if source not in images:  # named by a run or a question, not by the report
            return f"![{alt}]({escape(source)})"
        return f'<img src="data:image/png;base64,{base64.b64encode(images[source]).decode()}" alt="{alt}">'

    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink", "reference"])
    reader.add_render_rule("image", image)
    body = reader.render(text).replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title><style>{STYLE}</style>"
    return f'<!doctype html>\n<html lang="{language}">{head}\n<body>\n{body}</body></html>\n'


def inert(text: str) -> str:
    """Return markdown in which names and questions cannot show an image or HTML."""
    return re.sub(r"(<|(?<=!)\[)", r"\\\1", text)


def fill(template: Path, values: dict[str, Any], out: Path, figures: dict[str, Path]) -> Path:
    """Write `template` with its {{ names }} filled into `out`, under its own name; raises `DataError`.

    `{{ figure("scaling", "img/one.png") }}` copies a figure to that place beside the page and becomes the path.
    """
    import jinja2
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters["cell"] = lambda value: " ".join(inert(str(value)).replace("|", "\\|").split())
    remedy = f"there are {', '.join(values)} and figure(NAME, PATH) of {', '.join(figures)}"
    try:
        page = environment.from_string(template.read_text(encoding="utf-8"))
        text = page.render(**values, figures=list(figures), figure=_copier(out, figures, template))
    except FileNotFoundError as problem:
        raise DataError(
            "no such file", where=str(template), remedy="--template takes a page with {{ names }}, or owner_zh"
        ) from problem
    except UnicodeDecodeError as problem:
        raise DataError(
            "is not a text file", where=str(template), remedy="--template takes a page with {{ names }}"
        ) from problem
    except jinja2.TemplateSyntaxError as problem:
        raise DataError(f"line {problem.lineno}: {problem.message}", where=str(template), remedy=remedy) from problem
    except (jinja2.TemplateError, TypeError) as problem:
        raise DataError(str(problem).rstrip("."), where=str(template), remedy=remedy) from problem
    target = out / template.name
    if target.resolve() == template.resolve():
        raise DataError("would overwrite itself", where=str(template), remedy="give another --out")
    write_text(target, text)
    return target


def _copier(out: Path, figures: dict[str, Path], template: Path) -> Callable[[str, str], str]:
    def figure(name: str, place: str) -> str:
        if name not in figures:
            remedy = f"there are {', '.join(figures)}"
            raise DataError(f"names a figure that does not exist, {name!r}", where=str(template), remedy=remedy)
        target = (out / place).resolve()
        source = figures[name].with_suffix(target.suffix)
        if not source.exists():
            raise DataError(f"no figure ends in {target.suffix!r}", where=str(template), remedy="use .png or .pdf")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target != source.resolve():
            shutil.copyfile(source, target)
        return place

    return figure
